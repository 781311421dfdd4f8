"""pull_blocks: what each argument may be, and in which order that is looked at (contract 12.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, CacheKeyByIdAndIndex
from tests.contract.conftest import deviates, invalid
from tests.contract.moves import (
    FAR,
    KEY,
    NO_BLOCK_LISTS,
    UNSET,
    Refusal,
    addresses,
    answers,
    blocks_at,
    fails,
    linked,
    memory_of,
    rows_at,
    stays,
)
from tests.contract.world import Ends, describe

INVALID = "LLM_PARAM_INVALID"
ROW = CacheKeyByIdAndIndex(FAR, 2)


@dataclass
class Pull:
    """A pull that is right but for what a test changes."""

    ends: Ends
    near: Any
    target: Cache

    def __call__(self, **changes: Any) -> None:
        given = {"src_cache_key": KEY, "dst_cache": self.target, "src_blocks": [0, 1], "dst_blocks": [6, 7]}
        self.near.pull_blocks(**{**given, **changes})


@pytest.fixture(params=[True, False], ids=["one_sided", "request"])
def pull(ends: Ends, request: pytest.FixtureRequest) -> Iterator[Pull]:
    """Nothing may be written in these tests. The peer has a blocks cache, id 1, and a continuous one, id 2."""
    near, far = linked(ends, one_sided=request.param)
    blocks_at(far, 1)
    rows_at(far, 2)
    made = Pull(ends, near, blocks_at(near, 3))
    with stays(made.target):
        yield made


@pytest.mark.parametrize(
    ("key", "refusal"),
    [
        (None, AttributeError),
        (1, TypeError),
        ("key", TypeError),
        (BlocksCacheKey(FAR, -1), TypeError),
        (BlocksCacheKey(2**64, 0), TypeError),
    ],
)
def test_the_key_is_one_of_three_classes(pull: Pull, key: Any, refusal: Refusal) -> None:
    with answers(refusal, "src_cache_key"):
        pull(src_cache_key=key)


@pytest.mark.parametrize("key", [KEY, ROW])
@pytest.mark.parametrize(("cache", "refusal"), [(None, AttributeError), (1, TypeError)])
def test_the_target_is_a_cache(pull: Pull, key: Any, cache: Any, refusal: Refusal) -> None:
    with answers(refusal, "dst_cache"):
        pull(src_cache_key=key, dst_cache=cache)


@pytest.mark.parametrize("key", [KEY, ROW])
def test_the_target_is_a_blocks_cache_of_this_manager(pull: Pull, key: Any) -> None:
    desc = describe(placement="HOST")
    with invalid("not a blocks cache"):
        pull(src_cache_key=key, dst_cache=rows_at(pull.near, 1))
    no_sources = {} if key is KEY else {"src_blocks": []}
    with fails("LLM_KV_CACHE_NOT_EXIST"):
        pull(src_cache_key=key, **no_sources, dst_cache=Cache.create_cpu_cache(desc, addresses(memory_of(desc))))


@pytest.mark.parametrize("key", [KEY, ROW])
@pytest.mark.parametrize("field", ["src_blocks", "dst_blocks"])
@pytest.mark.parametrize("blocks", [None, *NO_BLOCK_LISTS], ids=repr)
def test_blocks_are_lists_or_tuples_of_unsigned_ints(pull: Pull, key: Any, field: str, blocks: Any) -> None:
    given = {} if key is KEY else {"src_blocks": []}
    with answers(TypeError, field):
        pull(src_cache_key=key, **{**given, field: blocks})


@pytest.mark.parametrize("key", [KEY, ROW])
def test_dst_blocks_may_not_be_empty(pull: Pull, key: Any) -> None:
    for changes in ({"dst_blocks": []}, {"src_blocks": (), "dst_blocks": ()}):
        with invalid("dst_blocks is empty"):
            pull(src_cache_key=key, **changes)
    with invalid("dst_blocks is empty"):
        pull.near.pull_blocks(key, pull.target)


def test_a_blocks_key_needs_src_blocks_before_a_link(pull: Pull) -> None:
    for cluster_id in (FAR, 99):
        with invalid("src_blocks"):
            pull(src_cache_key=BlocksCacheKey(cluster_id, 0), src_blocks=[])


@pytest.mark.parametrize("key", [ROW, CacheKey(FAR, 5)])
def test_a_row_takes_no_src_blocks(pull: Pull, key: Any) -> None:
    with invalid("src_blocks"):
        pull(src_cache_key=key, src_blocks=[0], dst_blocks=[0])


@pytest.mark.parametrize("key", [CacheKey(FAR, UNSET), CacheKey(FAR, 1, 0, 2)])
def test_a_cache_key_has_either_a_request_or_a_prefix(pull: Pull, key: CacheKey) -> None:
    with invalid("exactly one of req_id and prefix_id"):
        pull(src_cache_key=key, src_blocks=[], dst_blocks=[0])


@pytest.mark.parametrize("key", [KEY, ROW])
@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        *(({"tensor_num_per_layer": value}, TypeError) for value in (None, 1.0, "2", np.int64(2))),
        ({"tensor_num_per_layer": -1}, ValueError),
        ({"tensor_num_per_layer": 2**32}, ValueError),
        ({"tensor_num_per_layer": 0}, INVALID),
        *(({"src_layer_range": value}, TypeError) for value in ([0, 1], (0, 1), 1, "01")),
        *(({"dst_layer_range": value}, TypeError) for value in ([0, 1], (0, 1), 1, "01")),
        *(({field: range(0, 2, 2)}, INVALID) for field in ("src_layer_range", "dst_layer_range")),
        *(({field: range(-1, 1)}, INVALID) for field in ("src_layer_range", "dst_layer_range")),
        *(({field: range(2**32 - 1, 2**32)}, ValueError) for field in ("src_layer_range", "dst_layer_range")),
        ({"src_layer_range": range(1, 3), "dst_layer_range": range(2)}, INVALID),
        ({"src_layer_range": range(2), "dst_layer_range": range(1, 3)}, INVALID),
        ({"src_layer_range": range(2), "dst_layer_range": range(1)}, INVALID),
        ({"src_layer_range": range(1)}, INVALID),
        ({"dst_layer_range": range(1), "tensor_num_per_layer": 3}, INVALID),
    ],
    ids=repr,
)
def test_layers_are_checked_as_they_are(pull: Pull, key: Any, changes: Any, refusal: Refusal) -> None:
    given = {} if key is KEY else {"src_blocks": [], "dst_blocks": [0]}
    with answers(refusal):
        pull(src_cache_key=key, **given, **changes)


def test_other_keywords(pull: Pull) -> None:
    if pull.ends.face == "native":
        assert deviates("pull_keywords")
        with answers(TypeError, "anything"):
            pull(anything=1)
        return
    with fails("LLM_NOT_YET_LINK"):  # ignored, whatever their values are
        pull(src_cache_key=BlocksCacheKey(99, 0), anything=None, src_blocks_range=-1)


STEPS: tuple[tuple[dict[str, Any], Refusal, str], ...] = (
    ({"src_cache_key": 1}, TypeError, "src_cache_key"),
    ({"dst_cache": 1}, TypeError, "dst_cache"),
    ({"src_blocks": "0"}, TypeError, "src_blocks"),
    ({"dst_blocks": "0"}, TypeError, "dst_blocks"),
    ({"dst_blocks": []}, INVALID, "dst_blocks is empty"),
    ({"tensor_num_per_layer": None}, TypeError, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": 0}, INVALID, "tensor_num_per_layer"),
)


@pytest.mark.parametrize("first", range(len(STEPS)))
def test_an_earlier_check_speaks(pull: Pull, first: int) -> None:
    changes, refusal, says = STEPS[first]
    for others in (*(each for each, _, _ in STEPS[first + 1 :]), {"src_blocks": []}):
        with answers(refusal, says):
            pull(**{**others, **changes})


def test_positions_are_key_cache_and_blocks(pull: Pull) -> None:
    with invalid("src_blocks[0] is 8"):
        pull.near.pull_blocks(KEY, pull.target, [8], [0])
    with invalid("dst_blocks[0] is 8"):
        pull.near.pull_blocks(KEY, pull.target, [0], [8])
