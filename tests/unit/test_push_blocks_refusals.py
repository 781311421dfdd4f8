"""What push_blocks and pull_blocks refuse: with which class, code and words, and that no byte moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheKey, LLMException, LLMStatusCode
from tests.unit.conftest import KEY, Two, content, desc, fill

INVALID = LLMStatusCode.LLM_PARAM_INVALID
OK: dict[str, Any] = {"src_blocks": [0, 1], "dst_blocks": [2, 3]}


@pytest.fixture
def caches(two: Two) -> tuple[Cache, Cache]:
    source = two.source.allocate_blocks_cache(desc())
    target = two.target.allocate_blocks_cache(desc(), BlocksCacheKey(0, 0))
    fill(source, 1)
    fill(target, 2)
    return source, target


WRONG_TYPES = [
    ({"dst_cache_key": None}, TypeError, "dst_cache_key"),
    ({"dst_cache_key": CacheKey(2, 1)}, TypeError, "dst_cache_key"),
    ({"dst_cache_key": BlocksCacheKey(2, -1)}, TypeError, "model_id"),
    ({"dst_cache_key": BlocksCacheKey(2**64, 0)}, TypeError, "cluster_id"),
    ({"src_cache": None}, TypeError, "src_cache"),
    ({"src_cache": 1}, TypeError, "src_cache"),
    ({"src_blocks": range(2)}, TypeError, "src_blocks"),
    ({"src_blocks": [0, 1.0]}, TypeError, r"src_blocks.*1"),
    ({"src_blocks": [0, np.int64(1)]}, TypeError, "src_blocks"),
    ({"src_blocks": [0, -1]}, TypeError, "src_blocks"),
    ({"src_blocks": [0, 2**64]}, TypeError, "src_blocks"),
    ({"dst_blocks": None}, TypeError, "dst_blocks"),
    ({"dst_blocks": [0, "1"]}, TypeError, "dst_blocks"),
    ({"tensor_num_per_layer": None}, TypeError, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": 2.0}, TypeError, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": "2"}, TypeError, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": -1}, ValueError, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": 2**32}, ValueError, "tensor_num_per_layer"),
    ({"src_layer_range": [0, 1]}, TypeError, "src_layer_range"),
    ({"dst_layer_range": 1}, TypeError, "dst_layer_range"),
]

REFUSED = [
    ({"dst_blocks": []}, INVALID, "dst_blocks"),
    ({"src_blocks": []}, INVALID, "src_blocks"),
    ({"src_blocks": None}, INVALID, "src_blocks"),
    ({"src_blocks": [0]}, INVALID, "src_blocks has 1 .*dst_blocks has 2"),
    ({"src_blocks": [0, 8]}, INVALID, r"src_blocks\[1\] is 8, cache 1 of endpoint 1 has blocks \[0, 8\)"),
    ({"dst_blocks": [8, 0]}, INVALID, r"dst_blocks\[0\] is 8, cache 1 of endpoint 2 has blocks \[0, 8\)"),
    ({"tensor_num_per_layer": 0}, INVALID, "tensor_num_per_layer"),
    ({"tensor_num_per_layer": 5}, INVALID, r"tensor_num_per_layer must be in \[1, 4\]"),
    ({"src_layer_range": range(0, 2, 2)}, INVALID, "src_layer_range must have step 1"),
    ({"src_layer_range": range(1, 1)}, INVALID, "src_layer_range"),
    ({"dst_layer_range": range(-1, 1)}, INVALID, "dst_layer_range"),
    ({"src_layer_range": range(1), "dst_layer_range": range(2)}, INVALID, "1 layers.*2"),
    (
        {"src_layer_range": range(2, 3), "dst_layer_range": range(1)},
        INVALID,
        "src_layer_range.*2 layers.*source",
    ),
    (
        {"src_layer_range": range(1), "dst_layer_range": range(2, 3)},
        INVALID,
        "dst_layer_range.*2 layers.*target",
    ),
    (
        {"src_layer_range": range(1), "dst_layer_range": range(1), "tensor_num_per_layer": 3},
        INVALID,
        "3 .*divide",
    ),
    ({"dst_cache_key": BlocksCacheKey(2, 9)}, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, "model_id 9"),
    ({"dst_cache_key": BlocksCacheKey(3, 0)}, LLMStatusCode.LLM_NOT_YET_LINK, "cluster_id 3"),
]


@pytest.mark.parametrize(("change", "kind", "words"), WRONG_TYPES)
def test_a_wrong_type_is_a_type_error_that_names_the_argument(
    two: Two, caches: tuple[Cache, Cache], change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    source, target = caches
    before = content(target)
    with pytest.raises(kind, match=words):
        two.source.push_blocks(**{"dst_cache_key": KEY, "src_cache": source, **OK, **change})
    np.testing.assert_array_equal(content(target), before)


@pytest.mark.parametrize(("change", "code", "words"), REFUSED)
def test_what_does_not_fit_is_refused_with_its_code_and_moves_nothing(
    two: Two, caches: tuple[Cache, Cache], change: dict[str, Any], code: LLMStatusCode, words: str
) -> None:
    source, target = caches
    before = content(target)
    with pytest.raises(LLMException, match=words) as caught:
        two.source.push_blocks(**{"dst_cache_key": KEY, "src_cache": source, **OK, **change})
    assert caught.value.status_code is code
    np.testing.assert_array_equal(content(target), before)


def test_a_type_error_comes_before_every_refusal(two: Two, caches: tuple[Cache, Cache]) -> None:
    with pytest.raises(TypeError, match="src_blocks"):
        two.source.push_blocks(BlocksCacheKey(3, 9), caches[0], [0.5], [], tensor_num_per_layer=0)


def test_a_freed_source_is_not_found_before_the_link_is_asked_for(two: Two, caches: tuple[Cache, Cache]) -> None:
    two.source.deallocate_blocks_cache(caches[0])
    with pytest.raises(LLMException, match="cache 1") as caught:
        two.source.push_blocks(BlocksCacheKey(3, 9), caches[0], [0], [0])
    assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST


def test_a_cpu_cache_cannot_be_pushed(two: Two, caches: tuple[Cache, Cache]) -> None:
    with pytest.raises(TypeError, match="create_cpu_cache"):
        two.source.push_blocks(KEY, Cache.create_cpu_cache(desc(), caches[0].tensor_addrs), [0], [0])


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"shape": (8, 17)}, "block sizes differ.*32 bytes.*34 bytes"),
        ({"num_tensors": 6}, "num_tensors differ: the source cache has 4, the target cache 6"),
        ({"kind": "DT_FLOAT", "shape": (8, 8)}, "element widths differ.*DT_FLOAT16.*DT_FLOAT$"),
    ],
)
def test_a_target_of_another_form_is_named_with_both_sides(
    two: Two, caches: tuple[Cache, Cache], form: dict[str, Any], words: str
) -> None:
    other = two.target.allocate_blocks_cache(desc(**form), BlocksCacheKey(0, 7))
    before = content(other)
    with pytest.raises(LLMException, match=words) as caught:
        two.source.push_blocks(BlocksCacheKey(2, 7), caches[0], [0], [0])
    assert caught.value.status_code is INVALID
    np.testing.assert_array_equal(content(other), before)


@pytest.mark.parametrize("side", ["source", "target"])
def test_memory_closed_to_remote_access_is_refused(two: Two, caches: tuple[Cache, Cache], side: str) -> None:
    arrays: list[object] = [np.zeros(128, np.uint16) for _ in range(4)]
    closed = getattr(two, side).register_blocks_cache(desc(), arrays, BlocksCacheKey(0, 5), remote_accessible=False)
    source, key = (closed, KEY) if side == "source" else (caches[0], BlocksCacheKey(2, 5))
    with pytest.raises(LLMException, match="remote_accessible=False") as caught:
        two.source.push_blocks(key, source, [0], [0])
    assert caught.value.status_code is INVALID


def test_one_tensor_and_the_default_two_a_layer_moves_the_tensor(two: Two) -> None:
    source = two.source.allocate_blocks_cache(desc(1))
    target = two.target.allocate_blocks_cache(desc(1), BlocksCacheKey(0, 1))
    fill(source, 5)
    two.source.push_blocks(BlocksCacheKey(2, 1), source, [3], [4])
    np.testing.assert_array_equal(content(target)[:, 4], content(source)[:, 3])


def test_ranges_of_equal_length_may_start_apart(two: Two, caches: tuple[Cache, Cache]) -> None:
    source, target = caches
    expected = content(target)
    expected[0:2, 6] = content(source)[2:4, 0]
    two.source.push_blocks(KEY, source, [0], [6], range(1, 2), range(1))
    np.testing.assert_array_equal(content(target), expected)


def test_true_counts_as_one_tensor_a_layer(two: Two, caches: tuple[Cache, Cache]) -> None:
    source, target = caches
    expected = content(target)
    expected[3, 6] = content(source)[3, 0]
    two.source.push_blocks(KEY, source, (0,), (6,), range(3, 4), range(3, 4), True)
    np.testing.assert_array_equal(content(target), expected)


def test_a_pull_from_oneself_is_refused(two: Two, caches: tuple[Cache, Cache]) -> None:
    with pytest.raises(LLMException, match="this endpoint itself") as caught:
        two.source.pull_blocks(BlocksCacheKey(1, 0), caches[0], [0], [1])
    assert caught.value.status_code is INVALID


def test_in_a_pull_an_empty_range_means_every_layer(two: Two, caches: tuple[Cache, Cache]) -> None:
    local, remote = caches
    two.source.pull_blocks(KEY, local, [7], [0], src_layer_range=range(0), dst_layer_range=range(0))
    np.testing.assert_array_equal(content(local)[:, 0], content(remote)[:, 7])


def test_a_pull_names_its_own_sides(two: Two, caches: tuple[Cache, Cache]) -> None:
    with pytest.raises(LLMException, match=r"dst_blocks\[0\] is 8, cache 1 of endpoint 1"):
        two.source.pull_blocks(KEY, caches[0], [0], [8])


def test_a_push_into_oneself_copies_pair_by_pair(two: Two) -> None:
    own = two.source.allocate_blocks_cache(desc(), BlocksCacheKey(0, 0))
    fill(own, 9)
    expected = content(own)
    for source, target in ((0, 1), (1, 2), (5, 5)):
        expected[:, target] = expected[:, source]
    two.source.push_blocks(BlocksCacheKey(1, 0), own, [0, 1, 5], [1, 2, 5])
    np.testing.assert_array_equal(content(own), expected)


@pytest.mark.parametrize("transfer_id", ["", "xyz", "A" * 32, "0" * 31, 5])
def test_a_transfer_id_is_32_hexadecimal_digits(two: Two, caches: tuple[Cache, Cache], transfer_id: Any) -> None:
    with pytest.raises((TypeError, LLMException), match="transfer_id"):
        two.source.start_push(KEY, caches[0], [0], [0], transfer_id=transfer_id)


def test_an_unknown_transfer_is_unknown(two: Two) -> None:
    with pytest.raises(LookupError, match="0" * 32):
        two.source.result("0" * 32, 1.0)


def test_a_closed_endpoint_refuses_every_verb(two: Two, caches: tuple[Cache, Cache]) -> None:
    two.source.close()
    with pytest.raises(LLMException, match="endpoint 1 is closed"):
        two.source.push_blocks(KEY, caches[0], [0], [0])
    with pytest.raises(LLMException, match="endpoint 1 is closed"):
        two.source.allocate_blocks_cache(desc())
    two.source.close()
