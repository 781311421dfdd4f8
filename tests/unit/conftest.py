"""Endpoints without Ray, shared by the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheManager, DataType, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.directory import DictDirectory

SETTINGS = EndpointSettings.model_validate({"mem_pool": {"memory_size": "64MiB"}, "sync_kv_timeout_ms": 10_000})


@dataclass
class Two:
    """Two endpoints of one process, 1 and 2, that know each other."""

    directory: DictDirectory
    source: CacheManager
    target: CacheManager


@pytest.fixture
def two() -> Iterator[Two]:
    directory = DictDirectory()
    with (
        CacheManager(1, directory=directory, settings=SETTINGS) as source,
        CacheManager(2, directory=directory, settings=SETTINGS) as target,
    ):
        yield Two(directory, source, target)


@pytest.fixture
def manager(two: Two) -> CacheManager:
    return two.source


def desc(num_tensors: int = 4, shape: tuple[int, ...] = (8, 16), kind: str = "DT_FLOAT16") -> CacheDesc:
    return CacheDesc(num_tensors, shape, DataType[kind], Placement.HOST)


def content(cache: Cache) -> np.ndarray[Any, Any]:
    """All tensors' bytes, [tensor, block, byte]."""
    tensors = [cache.numpy(index).copy().reshape(-1).view(np.uint8) for index in range(cache.cache_desc.num_tensors)]
    return np.stack(tensors).reshape(len(tensors), cache.cache_desc.shape[0], -1)


def fill(cache: Cache, seed: int) -> None:
    random = np.random.default_rng(seed)
    for index in range(cache.cache_desc.num_tensors):
        flat = cache.numpy(index).reshape(-1).view(np.uint8)
        flat[:] = random.integers(0, 256, flat.size)


KEY = BlocksCacheKey(2, 0)
