"""One cache of this endpoint: what was asked for, what it became, and views of its memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from ray_kvfabric.cache.handle import Cache, Opener
from ray_kvfabric.cache.keys import CacheKey
from ray_kvfabric.cache.layout import Region, regions_of
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.memory.device_pool import DeviceMemory
from ray_kvfabric.memory.foreign import Borrowed, check_mapped
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.plan import LayerRequest
from ray_kvfabric.route import CacheInfo
from ray_kvfabric.transport.base import Stretch


class Wanted(NamedTuple):
    """A cache as the caller describes it. `model_id` names a blocks cache, `keys` the rows of a continuous one."""

    desc: CacheDesc
    is_blocks: bool = True
    model_id: int | None = None
    keys: Sequence[CacheKey] = ()
    remote_accessible: bool = True
    grants_only: bool = False


@dataclass(slots=True)
class CacheEntry:
    """One live cache. `is_probed` says that its bare addresses were found mapped.

    `is_doomed`: deallocated while keys of it were left; freed with the last of them (contract 11.5).
    `pulled` counts, for each row key, the tensors that peers have pulled.
    """

    info: CacheInfo
    cache: Cache
    table: RegionTable
    memory: HostMemory | DeviceMemory | None
    borrowed: tuple[Borrowed, ...]
    is_probed: bool
    is_doomed: bool = False
    inside: set[int] = field(default_factory=set)  # local transfers that use the memory, each by a number of its own
    someone_left: threading.Event | None = None  # made by whoever waits for them
    pulled: dict[tuple[str, int, int], set[int]] = field(default_factory=dict)
    block_nbytes: int = 0  # of one block in all tensors

    def __post_init__(self) -> None:
        self.block_nbytes = sum(region.block_nbytes for region in self.info.regions)

    def nbytes_of_block(self, layers: LayerRequest) -> int:
        """Of one block, or row, in the layers that are asked for; equal tensors are taken for granted."""
        asked = layers.source or layers.target
        if asked is None:
            return self.block_nbytes
        regions = self.info.regions
        return min(len(regions), len(asked) * layers.tensors_per_layer) * regions[0].block_nbytes

    def leave(self, number: int) -> None:
        self.inside.discard(number)
        if self.someone_left is not None:
            self.someone_left.set()

    def await_local_users(self, deadline: Deadline) -> bool:
        """Whether all have left in time. Nobody enters any more when this is called."""
        self.someone_left = self.someone_left or threading.Event()
        while self.inside:  # looked at after the event is there: whoever leaves later sets it
            if not self.someone_left.wait(deadline.remaining_s):
                return False
            self.someone_left.clear()
        return True

    def stretches(self) -> list[Stretch]:
        """The memory under the regions, as few stretches as are known."""
        if isinstance(self.memory, DeviceMemory):
            return [Stretch(self.memory.address, self.memory.nbytes, self.memory.tensor)]
        owners = [each.owner for each in self.borrowed] or [self.memory] * len(self.info.regions)
        return [
            Stretch(region.base, region.extent, owner) for region, owner in zip(self.info.regions, owners, strict=True)
        ]

    def end_cache(self) -> None:
        """The handle shows no memory any more."""
        if self.memory is not None:
            self.cache.forget_addresses()
        else:
            self.cache.forget_memory()


def check_shape(desc: CacheDesc) -> None:
    """Raises LLMException (LLM_PARAM_INVALID) for a shape that no cache has. `num_tensors` may be any number yet."""
    regions_of(CacheDesc(1, desc.shape, desc.data_type), [1])


def tensor_opener(
    regions: tuple[Region, ...], memory: HostMemory | DeviceMemory | None, borrowed: tuple[Borrowed, ...], kind: str
) -> Opener:
    """Tensor index to its bytes, or uint8 on the device; a view keeps the memory alive.

    LLM_PARAM_INVALID for bytes that are not mapped. Bare addresses of a device cannot be opened.
    """

    def open_tensor(index: int) -> Any:
        region = regions[index]
        if memory is not None:
            return memory.view(region.base, region.extent)
        if kind == "device":
            return _device_view(region, borrowed[index].owner)
        if borrowed[index].owner is None:
            check_mapped(f"tensor {index}", [(region.base, region.extent)])
        return _raw_view(region, borrowed[index].owner)

    return open_tensor


def _device_view(region: Region, tensor: Any) -> Any:
    return tensor.detach().view(-1).view(import_module("torch").uint8)[: region.extent]


def _raw_view(region: Region, owner: object) -> memoryview:
    array = (ctypes.c_ubyte * region.extent).from_address(region.base)
    array.owner = owner  # type: ignore[attr-defined]  # lives as long as a view of the array
    return memoryview(array).cast("B")
