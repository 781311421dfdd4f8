"""Two linked managers of either face with filled caches, and the proof that only what should move moved."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.errors import LLMException, LLMStatusCode
from tests.contract.world import Ends, content, describe, fill

Bytes = NDArray[np.uint8]  # [tensor, block or row, byte]
NEAR, FAR = 1, 2  # cluster ids: the end that calls the verbs, and its peer
KEY = BlocksCacheKey(FAR, 0)
UNSET = 2**64 - 1
BOTH_MODES = pytest.mark.parametrize("one_sided", [True, False], ids=["one_sided", "request"])
Refusal = str | type[Exception]  # the name of an LLMException's code, or a class that is none
NO_BLOCK_LISTS = ["ab", range(2), 5, {0: 1}, np.arange(2), [1.0], ["1"], [None], [np.int64(1)], [-1], [2**64]]


def linked(ends: Ends, **options: Any) -> tuple[Any, Any]:
    """The managers of two ends that may transfer."""
    near, far = ends.open(NEAR, **options), ends.open(FAR, **options)
    ends.link(near, far)
    return near.manager, far.manager


def blocks_at(manager: Any, seed: int, model_id: int | None = 0, **form: Any) -> Cache:
    """A filled blocks cache."""
    key = None if model_id is None else BlocksCacheKey(0, model_id)
    cache: Cache = manager.allocate_blocks_cache(describe(**form), key)
    fill(cache, seed)
    return cache


def rows_at(manager: Any, seed: int, req_ids: Sequence[int] = (), **form: Any) -> Cache:
    """A filled continuous cache; `req_ids[i]` names row i."""
    cache: Cache = manager.allocate_cache(describe(**form), [CacheKey(0, req_id) for req_id in req_ids])
    fill(cache, seed)
    return cache


def memory_of(desc: CacheDesc, seed: int = 1) -> list[Bytes]:
    """Somebody's tensors; who registers their addresses keeps them."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 256, desc.size, dtype=np.uint8) for _ in range(desc.num_tensors)]


def addresses(tensors: Sequence[Bytes]) -> list[int]:
    return [tensor.ctypes.data for tensor in tensors]


def row(cache: Cache, batch_index: int = 0, cluster_id: int = FAR) -> CacheKeyByIdAndIndex:
    return CacheKeyByIdAndIndex(cluster_id, cache.cache_id, batch_index)


@contextmanager
def moves(target: Cache, *others: Cache) -> Iterator[Bytes]:
    """Yields the target's bytes, to be made what they should become; every byte of the others must stay."""
    expected, kept = content(target), [content(other) for other in others]
    yield expected
    np.testing.assert_array_equal(content(target), expected)
    for other, before in zip(others, kept, strict=True):
        np.testing.assert_array_equal(content(other), before)


@contextmanager
def stays(*caches: Cache) -> Iterator[None]:
    """No byte of them changes."""
    with moves(*caches):
        yield


@contextmanager
def fails(code: str, says: str = "") -> Iterator[None]:
    """LLMException with that status code, such as "LLM_TIMEOUT"."""
    with pytest.raises(LLMException, match=re.escape(says) or None) as caught:
        yield
    assert caught.value.status_code is LLMStatusCode[code]


@contextmanager
def answers(refusal: Refusal, says: str = "") -> Iterator[None]:
    if isinstance(refusal, str):
        with fails(refusal, says):
            yield
    else:
        with pytest.raises(refusal, match=re.escape(says) or None) as caught:
            yield
        assert not isinstance(caught.value, LLMException)
