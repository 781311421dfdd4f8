"""Arguments of transfer_cache_async to a LayerOrder, and a LayerOrder to its steps (contract 12.5): no peer, no thread.

    LayerOrder   what was asked for, checked as far as the source alone allows
    LayerStep    one source layer that some config wants
    LayerPart    that layer on its way to one config's destination

A layer is always two tensors, K then V.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.layer_transfer import (
    LayerConfig,
    LayerSynchronizer,
    TransferConfig,
    TransferWithCacheKeyConfig,
    check_equal_lengths,
    check_uint64s,
)
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.plan import TENSORS_PER_LAYER


@dataclass(frozen=True, slots=True)
class LayerOrder:
    """A checked transfer. `configs` are copies: what the caller does to its own does not reach a running transfer.

    source_blocks  target_blocks  piece_nbytes
    given          given          any          blocks to blocks, as many on both sides
    None           given          above 0      one batch row, cut into pieces of that many bytes
    None           None           0            one stride of each tensor
    """

    src_cache: Cache
    synchronizer: LayerSynchronizer
    configs: tuple[LayerConfig, ...]
    source_layers: tuple[range, ...]  # of each config
    source_blocks: tuple[int, ...] | None
    target_blocks: tuple[int, ...] | None
    piece_nbytes: int
    num_layers: int


class LayerPart(NamedTuple):
    """Source layer `source_layer` for config `position`: either a destination layer or two addresses."""

    position: int
    source_layer: int
    target_layer: int | None
    target_addresses: tuple[int, ...] | None
    is_last: bool  # of this config


class LayerStep(NamedTuple):
    """`parts` are in the order of the configs, at least one."""

    layer: int
    parts: tuple[LayerPart, ...]


def steps(order: LayerOrder) -> Iterator[LayerStep]:
    """Layers in rising order, those alone that some config wants."""
    for layer in range(order.num_layers):
        parts = tuple(
            _part(position, config, layers, layer)
            for position, (config, layers) in enumerate(zip(order.configs, order.source_layers, strict=True))
            if layer in layers
        )
        if parts:
            yield LayerStep(layer, parts)


def _part(position: int, config: LayerConfig, layers: range, layer: int) -> LayerPart:
    """Destinations count from the start of the config's own range, not from layer 0 of the source."""
    offset = layer - layers.start
    is_last = layer == layers[-1]
    if isinstance(config, TransferConfig):
        first = TENSORS_PER_LAYER * offset
        addresses = tuple(config.dst_addrs[first : first + TENSORS_PER_LAYER])
        return LayerPart(position, layer, None, addresses, is_last)
    return LayerPart(position, layer, config.dst_layer_range[offset], None, is_last)


def check_layer_transfer(
    src_cache: Cache,
    layer_synchronizer: LayerSynchronizer,
    transfer_configs: Sequence[LayerConfig],
    src_block_indices: Sequence[int] | None,
    dst_block_indices: Sequence[int] | None,
    dst_block_memory_size: int | None,
    kinds: tuple[type, ...],
    *,
    allows_host: bool = False,
) -> LayerOrder:
    """The synchronous checks of contract 12.5, in its order. `kinds` are the config classes that are allowed.

    LLM-DataDist takes no HOST source here; `allows_host` does.

    Raises TypeError and ValueError for types and widths, LLMException (LLM_PARAM_INVALID) for the rest. A config
    without a source range gets every layer: the caller's own object is changed.
    """
    _check_source(src_cache, allows_host)
    sources = _given(src_block_indices, "src_block_indices")
    targets = _given(dst_block_indices, "dst_block_indices")
    piece_nbytes = 0
    if dst_block_memory_size is not None:
        piece_nbytes = check_int(dst_block_memory_size, "uint64", "dst_block_memory_size")
    _check_blocks(sources, targets, piece_nbytes)
    if not isinstance(layer_synchronizer, LayerSynchronizer):
        raise TypeError(f"layer_synchronizer must be a LayerSynchronizer, got {type(layer_synchronizer).__name__}")
    _check_kinds(transfer_configs, kinds)
    num_layers = _layers_of(src_cache)
    checked = [
        _checked_config(config, f"transfer_configs[{position}]", num_layers, has_blocks=sources is not None)
        for position, config in enumerate(transfer_configs)
    ]
    configs, layers = tuple(config for config, _ in checked), tuple(layers for _, layers in checked)
    return LayerOrder(src_cache, layer_synchronizer, configs, layers, sources, targets, piece_nbytes, num_layers)


def _check_source(src_cache: Cache, allows_host: bool) -> None:
    check_type(src_cache, Cache, "src_cache")
    placement = src_cache.cache_desc.placement
    if placement is Placement.HOST and not allows_host:
        raise ParamInvalid(f"src_cache {src_cache.cache_id} must be placed on DEVICE, got {placement}")
    if src_cache.cache_id < 0:
        raise TypeError(f"src_cache.cache_id must be a uint64, got {src_cache.cache_id}")


def _given(indices: Sequence[int] | None, field: str) -> tuple[int, ...] | None:
    """An empty list counts as none given."""
    return tuple(check_uint64s(() if indices is None else indices, field)) or None


def _check_blocks(sources: tuple[int, ...] | None, targets: tuple[int, ...] | None, piece_nbytes: int) -> None:
    if sources and not targets:
        raise ParamInvalid(
            f"src_block_indices has {len(sources)} entries, dst_block_indices none: transfer from blocks to cache is "
            "not supported"
        )
    if sources and targets and len(sources) != len(targets):
        raise ParamInvalid(f"src_block_indices has {len(sources)} entries, dst_block_indices has {len(targets)}")
    if targets and not sources and not piece_nbytes:
        raise ParamInvalid(
            f"dst_block_indices has {len(targets)} entries, src_block_indices none: dst_block_memory_size must say "
            f"how to cut a row, got {piece_nbytes}"
        )
    if piece_nbytes and not targets:
        raise ParamInvalid(f"dst_block_memory_size is {piece_nbytes}, dst_block_indices has no entries")


def _check_kinds(configs: Sequence[LayerConfig], kinds: tuple[type, ...]) -> None:
    if not isinstance(configs, list | tuple):
        raise TypeError(f"transfer_configs must be a list or tuple, got {type(configs).__name__}")
    for position, config in enumerate(configs):
        if not isinstance(config, kinds):
            allowed = " or a ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"transfer_configs[{position}] must be a {allowed} here, got {type(config).__name__}")


def _layers_of(src_cache: Cache) -> int:
    num_tensors = src_cache.cache_desc.num_tensors
    if num_tensors % TENSORS_PER_LAYER:
        raise ParamInvalid(
            f"src_cache {src_cache.cache_id} has {num_tensors} tensors, not a multiple of {TENSORS_PER_LAYER} a layer"
        )
    return num_tensors // TENSORS_PER_LAYER


def _checked_config(config: LayerConfig, field: str, num_layers: int, *, has_blocks: bool) -> tuple[LayerConfig, range]:
    """A copy that the caller cannot reach, and its source layers."""
    if has_blocks and config.src_batch_index:
        raise ParamInvalid(
            f"{field}.src_batch_index must be 0 when src_block_indices are given, got {config.src_batch_index}"
        )
    layers = config.src_layer_range
    if layers is None:
        layers = config.src_layer_range = range(num_layers)
    if layers.stop > num_layers:
        raise ParamInvalid(f"{field}.src_layer_range {layers!r} ends beyond the {num_layers} layers of src_cache")
    kept = copy(config)
    if isinstance(kept, TransferWithCacheKeyConfig):
        check_equal_lengths(kept, f"{field}.")
    else:
        kept.dst_addrs = tuple(kept.dst_addrs)
        _check_addresses(kept.dst_addrs, field, layers)
    return kept, layers


def _check_addresses(addresses: Sequence[int], field: str, layers: range) -> None:
    if len(addresses) != TENSORS_PER_LAYER * len(layers):
        raise ParamInvalid(
            f"{field}.dst_addrs has {len(addresses)} entries, its {len(layers)} layers ({layers!r}) need "
            f"{TENSORS_PER_LAYER * len(layers)}"
        )
