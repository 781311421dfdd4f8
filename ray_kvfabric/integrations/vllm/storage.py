"""Where an engine's KV cache lies, and its tensors as caches of the endpoint.

On a CPU host a consumer's cache is put into fabric memory, which other processes map: an engine allocates it as one
torch.zeros of int8, and FabricStorage answers that call. Elsewhere the engine's own memory is registered.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.vllm.layout import KVLayout, TensorForm

logger = logging.getLogger(__name__)

Tensors = Mapping[str, Sequence[torch.Tensor]]  # by layer


def allow_matrix_tiles() -> None:
    """Asks Linux for AMX's tiles, once a process. Large matrix products do; an engine that only decodes may meet its
    attention kernels before any, which end it with SIGILL.
    """
    allow = getattr(torch.cpu, "_init_amx", None)
    if allow is not None:
        allow()


class FabricStorage(TorchFunctionMode):
    """While entered, the first torch.zeros of `nbytes` int8 in host memory gets memory of the endpoint."""

    def __init__(self, manager: CacheManager, nbytes: int) -> None:
        super().__init__()
        self._manager = manager
        self._nbytes = nbytes
        self.is_used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and not self.is_used and self._is_kv_cache(args, kwargs):
            self.is_used = True
            desc = CacheDesc(1, [1, self._nbytes], DataType.DT_INT8, Placement.HOST)
            cache = self._manager.allocate_blocks_cache(desc, grants_only=True)
            return cache.torch(0).view(-1)
        return func(*args, **kwargs)

    def _is_kv_cache(self, args: Any, kwargs: Mapping[str, Any]) -> bool:
        is_on_host = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        return is_on_host and kwargs.get("dtype") is torch.int8 and tuple(args) == (self._nbytes,)


class Allocation:
    """FabricStorage for engines that ask for an allocator, and for those that do not (vLLM 0.29)."""

    def __init__(self, manager: CacheManager, nbytes: int) -> None:
        self.storage = FabricStorage(manager, nbytes)
        self._entered = ExitStack()

    def enter(self) -> None:
        self._entered.enter_context(self.storage)

    def leave(self) -> None:
        """Once the KV cache is there. Says when it is not where it was meant to be."""
        self._entered.close()
        if not self.storage.is_used:
            logger.warning(
                "the engine did not allocate its KV cache as expected: it lies in the engine's own memory, and pushes "
                "take the slower transport process_vm"
            )


def tensors_of(kv_caches: Mapping[str, Any]) -> Tensors:
    """What an engine registers, a tensor or a tuple of tensors for each layer, as lists without empty ones."""
    found: dict[str, list[torch.Tensor]] = {}
    for layer, value in kv_caches.items():
        given = [value] if isinstance(value, torch.Tensor) else list(value)
        found[layer] = [tensor for tensor in given if tensor is not None and tensor.numel()]
    return found


def form_of(layer: str, tensor: torch.Tensor, num_blocks: int) -> TensorForm:
    """Blocks along dim 0; kernels may count several of theirs for one of the engine's `num_blocks`.

    Raises ConfigError for blocks that lie scattered.
    """
    if not tensor.is_contiguous() or tensor.shape[0] % num_blocks:
        raise ConfigError(
            f"layer {layer!r}: the {num_blocks} blocks of the KV cache must lie one behind the other; "
            f"shape {tuple(tensor.shape)}, strides {tensor.stride()}"
        )
    return TensorForm(num_blocks, tensor.numel() // num_blocks * tensor.element_size())


def register(manager: CacheManager, layout: KVLayout, tensors: Tensors) -> list[Cache]:
    """One cache a lane; peers write into them under grants only."""
    caches = []
    for lane, members in zip(layout.lanes, layout.tensors, strict=True):
        mine = [tensors[layer][index] for layer, index in members]
        place = Placement.HOST if mine[0].device.type == "cpu" else Placement.DEVICE
        desc = CacheDesc(len(mine), [lane.form.num_blocks, lane.form.block_nbytes], DataType.DT_INT8, place)
        flat: list[object] = [tensor.view(-1) for tensor in mine]
        caches.append(manager.register_blocks_cache(desc, flat, grants_only=True))
    return caches


def kv_nbytes(sizes: Sequence[int]) -> int:
    """Of the one storage under all layers; 0 where the engine has several, or none."""
    distinct = set(sizes)
    if len(distinct) > 1:
        logger.warning(
            "the KV cache has parts of %s bytes: pushes into it take the slower process_vm", sorted(distinct)
        )
    return distinct.pop() if len(distinct) == 1 else 0
