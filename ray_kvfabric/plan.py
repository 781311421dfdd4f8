"""From layer ranges and block lists to what is copied: pure, the same on both ends.

LayerRequest   what the caller asked for, checked as far as the source alone allows
LayerSpan      the same in regions of both caches, checked against both
Plan           a span and the two block lists
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

from ray_kvfabric.cache.checks import check_int, check_layer_range, check_type
from ray_kvfabric.cache.layout import Region, describe
from ray_kvfabric.errors import ParamInvalid

TENSORS_PER_LAYER = 2  # K then V


class Blocks(Protocol):
    """Block indices, already known to be non-negative ints; `name` is what errors call them."""

    @property
    def name(self) -> str: ...
    @property
    def maximum(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


class Run(NamedTuple):
    """Neighbouring blocks whose source and target indices both rise by one: one copy."""

    source_start: int
    target_start: int
    num_blocks: int


class LayerRequest(NamedTuple):
    """Layers [source] go to layers [target]; a None means every tensor of that cache."""

    source: range | None
    target: range | None
    tensors_per_layer: int


class Cut(NamedTuple):
    """How one side of a transfer is cut into blocks: block i starts `offset + i * stride` bytes into a tensor."""

    offset: int
    num_blocks: int
    nbytes: int
    stride: int

    @property
    def stop(self) -> int:
        return self.offset + (self.num_blocks - 1) * self.stride + self.nbytes


class Part(NamedTuple):
    """Cuts of equal block size on both sides, and which block of the one goes to which of the other."""

    source: Cut
    target: Cut
    source_blocks: tuple[int, ...]
    target_blocks: tuple[int, ...]


class LayerSpan(NamedTuple):
    """Regions source_first + i pair with target_first + i; layers are the target's."""

    source_first: int
    target_first: int
    num_regions: int
    first_layer: int
    num_layers: int


class Fit(NamedTuple):
    """A span that both caches can serve, and how many blocks each has."""

    span: LayerSpan
    source_limit: int
    target_limit: int


class Plan(NamedTuple):
    """One transfer, checked against both caches."""

    span: LayerSpan
    source_blocks: Blocks
    target_blocks: Blocks


def request_layers(
    source: range | None, target: range | None, tensors_per_layer: int, num_tensors: int
) -> LayerRequest:
    """Checks what needs no peer (contract 12.1, steps 5 to 8). `num_tensors` is the local cache's.

    A range that is left out beside a given one counts from layer 0 of the local cache.
    """
    if source is None and target is None and isinstance(tensors_per_layer, int):
        return _every_tensor(tensors_per_layer, num_tensors)
    if type(source) is range is type(target) and type(tensors_per_layer) is int:
        return _some_layers(source, target, tensors_per_layer, num_tensors)
    return _checked_layers(source, target, tensors_per_layer, num_tensors)


def _checked_layers(
    source: range | None, target: range | None, tensors_per_layer: int, num_tensors: int
) -> LayerRequest:
    per_layer = _check_per_layer(tensors_per_layer)
    every_layer = range(num_tensors // per_layer)
    source = every_layer if source is None else check_layer_range(source, "src_layer_range")
    target = every_layer if target is None else check_layer_range(target, "dst_layer_range")
    if num_tensors % per_layer:
        raise ParamInvalid(
            f"tensor_num_per_layer {per_layer} does not divide the {num_tensors} tensors of the source cache"
        )
    if len(source) != len(target):
        raise ParamInvalid(
            f"src_layer_range has {len(source)} layers ({source!r}), dst_layer_range {len(target)} ({target!r})"
        )
    return LayerRequest(source, target, per_layer)


_some_layers = lru_cache(1024)(_checked_layers)  # an engine asks for the same ones with every step


def _check_per_layer(tensors_per_layer: int) -> int:
    per_layer = check_int(tensors_per_layer, "uint32", "tensor_num_per_layer")
    if per_layer == 0:
        raise ParamInvalid("tensor_num_per_layer must be at least 1, got 0")
    return per_layer


@lru_cache
def _every_tensor(tensors_per_layer: int, num_tensors: int) -> LayerRequest:
    """Cached: most pushes ask for the same."""
    per_layer = _check_per_layer(tensors_per_layer)
    if per_layer > max(num_tensors, TENSORS_PER_LAYER):
        raise ParamInvalid(f"tensor_num_per_layer must be in [1, {num_tensors}], got {per_layer}")
    return LayerRequest(None, None, per_layer)


def request_pulled_layers(
    source: range | None, target: range | None, tensors_per_layer: int, num_tensors: int
) -> LayerRequest:
    """The lax rule of a pull (contract 12.3): an empty range is none, each may be given alone.

    A side without a range means all of its tensors. `num_tensors` is the local, the target cache's.
    """
    per_layer = _check_per_layer(tensors_per_layer)
    source, target = _lax_range(source, "src_layer_range"), _lax_range(target, "dst_layer_range")
    if source is None and target is None:
        return LayerRequest(None, None, per_layer)
    if num_tensors % per_layer:
        raise ParamInvalid(
            f"tensor_num_per_layer {per_layer} does not divide the {num_tensors} tensors of the target cache"
        )
    layers = num_tensors // per_layer
    if target is not None and target.stop > layers:
        raise ParamInvalid(f"dst_layer_range {target!r} ends beyond the {layers} layers of the target cache")
    wanted = layers if target is None else len(target)
    if source is not None and len(source) != wanted:
        raise ParamInvalid(f"src_layer_range has {len(source)} layers ({source!r}), the target side has {wanted}")
    return LayerRequest(source, target, per_layer)


def _lax_range(layers: range | None, field: str) -> range | None:
    if layers is None or not check_type(layers, range, field):
        return None
    if layers.step != 1 or layers.start < 0:
        raise ParamInvalid(f"{field} must have step 1 and start at 0 or later, got {layers!r}")
    check_int(layers.stop, "uint32", f"{field}.stop")
    return layers


def span_layers(request: LayerRequest, source_tensors: int, target_tensors: int) -> LayerSpan:
    """The request in regions. Raises LLMException (LLM_PARAM_INVALID) naming the side that does not fit.

    That the local side divides into layers was checked with the request; of the other one only the end counts.
    """
    per_layer = request.tensors_per_layer
    source_first, source_count = _side("src_layer_range", "source", request.source, per_layer, source_tensors)
    target_first, target_count = _side("dst_layer_range", "target", request.target, per_layer, target_tensors)
    if source_count != target_count:
        raise ParamInvalid(
            f"num_tensors differ: the source cache has {source_count}, the target cache {target_count} in the layers "
            "asked for"
        )
    return LayerSpan(
        source_first, target_first, source_count, target_first // per_layer, max(source_count // per_layer, 1)
    )


def _side(field: str, side: str, layers: range | None, per_layer: int, num_tensors: int) -> tuple[int, int]:
    """First tensor and how many; without a range all of them."""
    if layers is None:
        return 0, num_tensors
    if layers.stop > num_tensors // per_layer:
        raise ParamInvalid(f"{field} {layers!r} ends beyond the {num_tensors // per_layer} layers of the {side} cache")
    return layers.start * per_layer, len(layers) * per_layer


def check_regions(
    span: LayerSpan, source: tuple[Region, ...], target: tuple[Region, ...], names: tuple[str, str]
) -> None:
    """Each pair of regions has blocks of equal bytes. `names` say which cache is which in the error."""
    for offset in range(span.num_regions):
        left = source[span.source_first + offset]
        right = target[span.target_first + offset]
        if left.block_nbytes != right.block_nbytes:
            raise ParamInvalid(
                f"block sizes differ in tensor {span.source_first + offset}: {names[0]} has {describe(left)}, "
                f"{names[1]} has {describe(right)}"
            )


def blocks_fit(fit: Fit, source: Blocks, target: Blocks) -> bool:
    """Lists of equal, positive length whose indices lie inside both caches."""
    return 0 < len(source) == len(target) and source.maximum < fit.source_limit and target.maximum < fit.target_limit


def blocks_refusal(fit: Fit, source: Blocks, target: Blocks, names: tuple[str, str]) -> ParamInvalid:
    """Why `blocks_fit` said no, with both sides."""
    if len(source) != len(target):
        return ParamInvalid(f"src_blocks has {len(source)} entries, dst_blocks has {len(target)}")
    if source.maximum >= fit.source_limit:
        return _index_refusal("src_blocks", source, fit.source_limit, names[0])
    return _index_refusal("dst_blocks", target, fit.target_limit, names[1])


def _index_refusal(field: str, blocks: Blocks, limit: int, name: str) -> ParamInvalid:
    position = list(blocks).index(blocks.maximum)
    return ParamInvalid(f"{field}[{position}] is {blocks.maximum}, {name} has blocks [0, {limit})")


def merge_runs(source_blocks: Iterable[int], target_blocks: Iterable[int]) -> list[Run]:
    """Pairs of blocks as runs, in list order: no sorting, no de-duplication (contract 10.5)."""
    runs: list[Run] = []
    for source, target in zip(source_blocks, target_blocks, strict=True):
        last = runs[-1] if runs else None
        if last and source == last.source_start + last.num_blocks and target == last.target_start + last.num_blocks:
            runs[-1] = last._replace(num_blocks=last.num_blocks + 1)
        else:
            runs.append(Run(source, target, 1))
    return runs


def row_to_row(source_offset: int, target_offset: int, nbytes: int) -> list[Part]:
    """One stretch of bytes a tensor."""
    return [Part(Cut(source_offset, 1, nbytes, nbytes), Cut(target_offset, 1, nbytes, nbytes), (0,), (0,))]


def row_to_blocks(source: Cut, piece_nbytes: int, target: Cut, target_blocks: tuple[int, ...]) -> list[Part]:
    """One row (`source`, of one block) cut into pieces; piece i goes to target block `target_blocks[i]`.

    The row's last piece may be shorter. Raises LLMException (LLM_PARAM_INVALID) when the row has too few.
    """
    pieces = -(-source.nbytes // piece_nbytes)
    if len(target_blocks) > pieces:
        raise ParamInvalid(
            f"dst_blocks has {len(target_blocks)} entries, the source row of {source.nbytes} bytes fills {pieces} "
            f"blocks of {piece_nbytes} bytes"
        )
    full = min(len(target_blocks), source.nbytes // piece_nbytes)
    parts = []
    if full:
        cut = Cut(source.offset, full, piece_nbytes, piece_nbytes)
        parts.append(_onto(target, cut, tuple(range(full)), target_blocks[:full]))
    if full < len(target_blocks):
        rest = source.nbytes - full * piece_nbytes
        tail = Cut(source.offset + full * piece_nbytes, 1, rest, rest)
        parts.append(_onto(target, tail, (0,), target_blocks[full:]))
    return parts


def _onto(target: Cut, source: Cut, source_blocks: tuple[int, ...], target_blocks: tuple[int, ...]) -> Part:
    """The target as far as these blocks reach: a short last piece may end where a whole one would not fit."""
    used = target._replace(num_blocks=max(target_blocks) + 1, nbytes=source.nbytes)
    return Part(source, used, source_blocks, target_blocks)
