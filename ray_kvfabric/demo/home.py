"""A model's K and V in a fabric cache: the arrays that it computes on, and what lies between them and the cache.

    InPlace    a HOST cache: the arrays are views of the cache's memory, and nothing lies between
    Mirrored   a DEVICE cache: arrays in host memory, whole blocks of which are copied to the device and back

Tensors 2 l and 2 l + 1 of the cache are K and V of layer l.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.demo.paged_kv import PagedKV


class Home(Protocol):
    """`kv` is what the model reads and writes."""

    kv: PagedKV

    def store(self, layer: int, blocks: Sequence[int]) -> None:
        """Afterwards the cache holds these blocks of the layer as the arrays have them."""

    def load(self, layer: int, blocks: Sequence[int]) -> None:
        """Afterwards the arrays hold these blocks of the layer as the cache has them."""


def home_of(cache: Cache, block_table: Sequence[int]) -> Home:
    is_host = cache.cache_desc.placement is Placement.HOST
    return InPlace(cache, block_table) if is_host else Mirrored(cache, block_table)


class InPlace:
    """Arrays and cache are the same memory."""

    def __init__(self, cache: Cache, block_table: Sequence[int]) -> None:
        tensors = [cache.numpy(index).view(np.float32) for index in range(cache.cache_desc.num_tensors)]
        self.kv = PagedKV(tensors[::2], tensors[1::2], block_table)

    def store(self, layer: int, blocks: Sequence[int]) -> None:
        """They lie there already."""

    def load(self, layer: int, blocks: Sequence[int]) -> None:
        """They lie there already."""


class Mirrored:
    """The arrays start as zeros; from the device they get only what `load` copies, and it gets what `store` does.

    A block is contiguous on both sides, so each copy is one plain copy of the driver and no operator.
    """

    def __init__(self, cache: Cache, block_table: Sequence[int]) -> None:
        torch: Any = import_module("torch")
        count = cache.cache_desc.num_tensors
        arrays = [np.zeros(tuple(cache.cache_desc.shape), np.float32) for _ in range(count)]
        self.kv = PagedKV(arrays[::2], arrays[1::2], block_table)
        self._host = [torch.from_numpy(array) for array in arrays]
        self._device = [cache.torch(index) for index in range(count)]

    def store(self, layer: int, blocks: Sequence[int]) -> None:
        self._copy(self._host, self._device, layer, blocks)

    def load(self, layer: int, blocks: Sequence[int]) -> None:
        self._copy(self._device, self._host, layer, blocks)

    def _copy(self, source: list[Any], target: list[Any], layer: int, blocks: Sequence[int]) -> None:
        for tensor in (2 * layer, 2 * layer + 1):
            for block in blocks:
                target[tensor][block].copy_(source[tensor][block])
