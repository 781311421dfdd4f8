"""transfer_cache_async and CacheTask: layers that leave one by one, as they are computed (contract 8.12 and 12.5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheKey, CacheKeyByIdAndIndex, DataType
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from ray_kvfabric.errors import LLMException, LLMStatusCode, TransferTimeout
from tests.contract.conftest import deviates, invalid, wrong_ints
from tests.contract.moves import (
    FAR,
    KEY,
    Refusal,
    addresses,
    answers,
    blocks_at,
    linked,
    memory_of,
    moves,
    row,
    rows_at,
    stays,
)
from tests.contract.world import Ends, content, describe

INVALID = "LLM_PARAM_INVALID"
OK = LLMStatusCode.LLM_SUCCESS
LIMIT_MS = 20_000  # of every wait here; reached only when the code is wrong
LAYERS = 3  # of the caches here: six tensors
LAYERED = {"num_tensors": 2 * LAYERS}


class Computes(LayerSynchronizer):
    """Answers with what `compute` gives for the layer; records how it was called."""

    def __init__(self, compute: Callable[[int], Any] = lambda layer: True) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self._compute = compute

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.calls.append((layer_index, timeout_in_millis))
        return self._compute(layer_index)  # type: ignore[no-any-return]

    @property
    def layers(self) -> list[int]:
        return [layer for layer, _ in self.calls]


def keyed(source: range, target: range | None = None, key: Any = KEY, row: int = 0) -> TransferWithCacheKeyConfig:
    return TransferWithCacheKeyConfig(key, source, source if target is None else target, row)


def addressed(target: Cache, layers: range, onto: range, row: int = 0, skip: int = 0) -> TransferConfig:
    """Layers `layers` to where the target's tensors of the layers `onto` begin, `skip` bytes further on."""
    addrs = [target.tensor_addrs[2 * layer + half] + skip for layer in onto for half in (0, 1)]
    return TransferConfig(FAR, addrs, layers, row)


def results(
    near: Any, source: Cache, configs: Sequence[Any], *blocks: Any, when: LayerSynchronizer | None = None
) -> list[LLMStatusCode | None]:
    """What a transfer ends with; every way to ask agrees."""
    task = near.transfer_cache_async(source, when or Computes(), list(configs), *blocks)
    codes: list[LLMStatusCode | None] = task.get_results(LIMIT_MS)
    assert task.get_results() == codes
    assert task.synchronize(LIMIT_MS) is next((code for code in codes if code), OK)
    return codes


@contextmanager
def only(target: Cache, source: Cache, layers: range, onto: range) -> Iterator[tuple[Any, Any]]:
    """Yields the bytes of the source's `layers` and what those of the target's layers `onto` should become."""
    with moves(target, source) as expected:
        tensors, places = (slice(2 * each.start, 2 * each.stop) for each in (layers, onto))
        yield content(source)[tensors], expected[places]


class TestToACache:
    """One-sided mode: TransferWithCacheKeyConfig."""

    @pytest.mark.parametrize(
        ("layers", "onto"),
        [
            (range(LAYERS), range(LAYERS)),
            (range(1), range(1)),
            (range(1), range(2, 3)),
            (range(2, 3), range(1)),
            (range(1, 3), range(2)),
        ],
    )
    def test_blocks_land_in_the_layers_of_the_destination_range(self, ends: Ends, layers: range, onto: range) -> None:
        assert deviates("destination_layers")
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        with only(target, source, layers, onto) as (given, expected):
            expected[:, [7, 0, 4]] = given[:, [2, 3, 4]]
            assert results(near, source, [keyed(layers, onto)], [2, 3, 4], (7, 0, 4)) == [OK]

    def test_blocks_go_to_a_cache_by_its_id(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, None, **LAYERED)
        with moves(target, source) as expected:
            expected[:, 1] = content(source)[:, 6]
            assert results(near, source, [keyed(range(LAYERS), key=row(target))], [6], [1]) == [OK]

    def test_the_size_of_a_block_may_be_said_if_it_is_right(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        with moves(target, source) as expected:
            expected[:, 5] = content(source)[:, 0]
            assert results(near, source, [keyed(range(LAYERS))], [0], [5], 16) == [OK]
        with stays(target):
            assert results(near, source, [keyed(range(LAYERS))], [1], [5], 8) == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_the_size_of_a_block_is_the_cache_s_whatever_became_of_its_description(self, ends: Ends) -> None:
        near, far = linked(ends)
        desc = CacheDesc(2, [8, 16], DataType.DT_INT8)
        source, target = near.allocate_blocks_cache(desc), blocks_at(far, 2, num_tensors=2)
        desc.update_dim(1, 32)
        for size, code in ((16, "LLM_SUCCESS"), (32, "LLM_PARAM_INVALID"), (None, "LLM_SUCCESS")):
            assert results(near, source, [keyed(range(1))], [0], [5], size) == [LLMStatusCode[code]]
        desc.update_dim(1, 0)
        with moves(target) as expected:
            expected[:, 6] = 0
            assert results(near, source, [keyed(range(1))], [0], [6]) == [OK]

    @pytest.mark.parametrize(("source_row", "target_row"), [(0, 0), (7, 2), (3, 7)])
    def test_a_row_lands_in_the_row_of_the_key(self, ends: Ends, source_row: int, target_row: int) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, **LAYERED), rows_at(far, 2, **LAYERED)
        with only(target, source, range(1, 3), range(2)) as (given, expected):
            expected[:, target_row] = given[:, source_row]
            config = keyed(range(1, 3), range(2), row(target, target_row), source_row)
            assert results(near, source, [config]) == [OK]

    def test_without_indices_a_blocks_cache_gives_block_0_alone(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        with moves(target, source) as expected:
            expected[:, 0] = content(source)[:, 0]
            assert results(near, source, [keyed(range(LAYERS))], [], ()) == [OK]

    @pytest.mark.parametrize(("onto", "pieces"), [([6], 1), ([3, 1], 2), ([7, 2, 0], 3)])
    def test_a_row_is_cut_into_blocks(self, ends: Ends, onto: list[int], pieces: int) -> None:
        assert deviates("remainder_of_the_row")
        near, far = linked(ends)
        source, target = rows_at(near, 1, shape=(4, 20), **LAYERED), blocks_at(far, 2, shape=(8, 8), **LAYERED)
        with only(target, source, range(2), range(1, 3)) as (given, expected):
            for piece, block in enumerate(onto):
                part = given[:, 3, 8 * piece : 8 * (piece + 1)]
                expected[:, block, : part.shape[1]] = part
            config = keyed(range(2), range(1, 3), row(target), 3)
            assert results(near, source, [config], None, onto, 8) == [OK]

    @pytest.mark.parametrize(
        ("shape", "onto", "size"),
        [((4, 20), [0, 1, 2, 3], 8), ((4, 20), [0], 4), ((4, 20), [8], 8), ((1, 8), [0], 8)],
        ids=["too few pieces", "another size than the peer's", "no such block", "a whole tensor"],
    )
    def test_a_row_that_is_cut_wrongly_is_refused(
        self, ends: Ends, shape: tuple[int, int], onto: list[int], size: int
    ) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, shape=shape, **LAYERED), blocks_at(far, 2, shape=(8, 8), **LAYERED)
        with stays(target):
            codes = results(near, source, [keyed(range(1), key=row(target))], None, onto, size)
        assert codes == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_blocks_are_for_a_blocks_cache(self, ends: Ends) -> None:
        near, far = linked(ends)
        target = rows_at(far, 2, **LAYERED)
        config = keyed(range(1), key=row(target))
        with stays(target):
            assert results(near, blocks_at(near, 1, None, **LAYERED), [config], [0], [0]) == [
                LLMStatusCode.LLM_PARAM_INVALID
            ]
            rows = rows_at(near, 1, shape=(8, 32), **LAYERED)
            assert results(near, rows, [config], None, [0], 16) == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_keys_are_not_used_up(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = rows_at(near, 1, **LAYERED), rows_at(far, 2, req_ids=[0], **LAYERED)
        for _ in range(2):
            with moves(target) as expected:
                expected[:, 0] = content(source)[:, 1]
                config = keyed(range(LAYERS), key=CacheKeyByIdAndIndex(FAR, 0), row=1)
                assert results(near, source, [config]) == [OK]


class TestToAddresses:
    """Request mode: TransferConfig."""

    @pytest.fixture
    def pair(self, ends: Ends) -> tuple[Any, Any]:
        return linked(ends, one_sided=False)

    @pytest.mark.parametrize(("layers", "onto"), [(range(LAYERS), range(LAYERS)), (range(1, 3), range(2))])
    def test_a_row_lands_where_the_addresses_say(self, pair: tuple[Any, Any], layers: range, onto: range) -> None:
        near, far = pair
        source, target = rows_at(near, 1, **LAYERED), rows_at(far, 2, **LAYERED)
        with only(target, source, layers, onto) as (given, expected):
            expected[:, 3] = given[:, 5]
            assert results(near, source, [addressed(target, layers, onto, row=5, skip=3 * 16)]) == [OK]

    def test_blocks_count_from_the_address(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        with only(target, source, range(LAYERS), range(LAYERS)) as (given, expected):
            expected[:, [2, 7]] = given[:, [4, 1]]
            config = addressed(target, range(LAYERS), range(LAYERS), skip=16)
            assert results(near, source, [config], [4, 1], [1, 6]) == [OK]

    def test_a_row_is_cut_into_pieces(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        source, target = rows_at(near, 1, shape=(4, 20), **LAYERED), blocks_at(far, 2, shape=(8, 8), **LAYERED)
        with only(target, source, range(1), range(2, 3)) as (given, expected):
            expected[:, 5] = given[:, 2, :8]
            expected[:, 3] = given[:, 2, 8:16]
            expected[:, 0, :4] = given[:, 2, 16:]
            config = addressed(target, range(1), range(2, 3), row=2)
            assert results(near, source, [config], None, [5, 3, 0], 8) == [OK]

    def test_a_short_last_piece_may_end_with_the_cache(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        source, target = rows_at(near, 1, shape=(4, 20), num_tensors=2), rows_at(far, 2, shape=(4, 20), num_tensors=2)
        with moves(target) as expected:
            expected[:, 3] = content(source)[:, 2]
            addrs = [address + 60 for address in target.tensor_addrs]
            assert results(near, source, [TransferConfig(FAR, addrs, None, 2)], None, [0, 1, 2], 8) == [OK]
        with stays(target):
            codes = results(near, source, [TransferConfig(FAR, addrs, None, 2)], None, [0, 2, 1], 8)
        assert codes == [LLMStatusCode.LLM_PARAM_INVALID]  # a whole piece would go beyond it

    @pytest.mark.parametrize(
        ("cluster_id", "row_index", "blocks", "code"),
        [
            (99, 0, (), "LLM_NOT_YET_LINK"),
            (FAR, 8, (), INVALID),
            (FAR, 0, ([0], [0]), INVALID),
            (FAR, 0, (None, [0, 1, 2], 8), INVALID),
            (FAR, 0, (None, [0], 8 * 16), INVALID),
        ],
        ids=["no link", "no such row", "rows are no blocks", "too few pieces", "a whole tensor"],
    )
    def test_what_does_not_fit(
        self, pair: tuple[Any, Any], cluster_id: int, row_index: int, blocks: Any, code: str
    ) -> None:
        near, far = pair
        source, target = rows_at(near, 1, num_tensors=2), rows_at(far, 2, num_tensors=2)
        config = TransferConfig(cluster_id, target.tensor_addrs, None, row_index)
        with stays(target):
            assert results(near, source, [config], *blocks) == [LLMStatusCode[code]]

    def test_a_blocks_cache_is_cut_into_its_own_blocks(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        source, target = blocks_at(near, 1, None, num_tensors=2), blocks_at(far, 2, num_tensors=2)
        config = TransferConfig(FAR, target.tensor_addrs)
        with moves(target, source) as expected:
            expected[:, [5, 2]] = content(source)[:, [0, 1]]
            assert results(near, source, [config], None, [5, 2], 16) == [OK]
        with stays(target):
            assert results(near, source, [config], None, [5], 8) == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_a_layer_s_two_addresses_are_independent(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        source, target = rows_at(near, 1, num_tensors=2), rows_at(far, 2, num_tensors=2)
        with moves(target) as expected:
            expected[1, 4], expected[0, 6] = content(source)[0, 0], content(source)[1, 0]
            addrs = [target.tensor_addrs[1] + 4 * 16, target.tensor_addrs[0] + 6 * 16]
            assert results(near, source, [TransferConfig(FAR, addrs)]) == [OK]

    @pytest.mark.parametrize(
        ("addrs", "code"),
        [
            (lambda one, other: [one[0] - 1, one[1]], "LLM_KV_CACHE_NOT_EXIST"),
            (lambda one, other: [one[0] + 8 * 16, one[1]], "LLM_KV_CACHE_NOT_EXIST"),
            (lambda one, other: [one[0], other[1]], INVALID),
            (lambda one, other: [one[0], one[1] + 7 * 16 + 1], INVALID),
        ],
        ids=["before a cache", "behind it", "in two caches", "the row ends outside"],
    )
    def test_both_addresses_lie_in_one_cache(
        self, pair: tuple[Any, Any], addrs: Callable[[list[int], list[int]], list[int]], code: str
    ) -> None:
        assert deviates("addresses_in_a_cache")
        near, far = pair
        tensors = [memory_of(describe(2), seed) for seed in (2, 3)]
        one, other = (far.register_cache(describe(2), addresses(each), (), True) for each in tensors)
        source = rows_at(near, 1, num_tensors=2)
        config = TransferConfig(FAR, addrs(one.tensor_addrs, other.tensor_addrs))
        with stays(one, other):
            assert results(near, source, [config]) == [LLMStatusCode[code]]

    def test_the_cache_at_the_address_is_remote_accessible(self, pair: tuple[Any, Any]) -> None:
        near, far = pair
        tensors = memory_of(describe(2))
        target = far.register_cache(describe(2), addresses(tensors), remote_accessible=False)
        source = rows_at(near, 1, num_tensors=2)
        with stays(target):
            assert results(near, source, [TransferConfig(FAR, target.tensor_addrs)]) == [
                LLMStatusCode.LLM_PARAM_INVALID
            ]


class TestOneAfterAnother:
    def test_a_layer_has_landed_before_the_next_is_asked_for(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        before, given = content(target), content(source)
        seen: list[Any] = []
        when = Computes(lambda layer: not seen.append(content(target)))  # type: ignore[func-returns-value]
        assert results(near, source, [keyed(range(LAYERS))], [1], [6], when=when) == [OK]
        assert when.calls == [(layer, None) for layer in range(LAYERS)]
        for layer, found in enumerate(seen):
            np.testing.assert_array_equal(found[: 2 * layer, 6], given[: 2 * layer, 1])
            np.testing.assert_array_equal(found[2 * layer :], before[2 * layer :])

    def test_a_layer_is_read_after_it_was_computed(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)

        def compute(layer: int) -> bool:
            for tensor in (2 * layer, 2 * layer + 1):
                source.numpy(tensor)[:] = 100 + tensor
            return True

        with moves(target) as expected:
            expected[:, 0] = 100 + np.arange(2 * LAYERS)[:, None]
            assert results(near, source, [keyed(range(LAYERS))], [3], [0], when=Computes(compute)) == [OK]

    def test_a_layer_is_asked_for_once_and_only_if_somebody_wants_it(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        other = blocks_at(far, 3, 5, **LAYERED)
        with moves(target, source) as expected, moves(other) as expected_too:
            expected[:2, 0] = expected_too[4:, 0] = content(source)[4:, 0]
            when = Computes()
            configs = [keyed(range(2, 3), range(1)), keyed(range(2, 3), key=BlocksCacheKey(FAR, 5))]
            assert results(near, source, configs, [0], [0], when=when) == [OK, OK]
        assert when.layers == [2]

    def test_no_config_is_no_work(self, ends: Ends) -> None:
        near, _ = linked(ends)
        when = Computes()
        assert results(near, blocks_at(near, 1, None), [], when=when) == []
        assert when.calls == []

    def test_the_time_limit_is_a_layer_s_and_not_the_computation_s(self, ends: Ends) -> None:
        assert deviates("limit_of_the_whole_call")
        near, far = linked(ends, **{"llm.SyncKvCacheWaitTime": "1000"})
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        computed = threading.Event()
        task = near.transfer_cache_async(
            source, Computes(lambda layer: layer or computed.wait(LIMIT_MS)), [keyed(range(LAYERS))], [0], [7]
        )
        with moves(target) as expected:
            expected[:, 7] = content(source)[:, 0]
            assert task.synchronize(1100) is LLMStatusCode.LLM_TIMEOUT
            computed.set()
            assert task.synchronize(LIMIT_MS) is OK


class TestResults:
    """What a job ends with, and when; contract 8.12 and the end of 12.5."""

    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (lambda: False, "LLM_PARAM_INVALID"),
            (lambda: None, "LLM_PARAM_INVALID"),
            (lambda: 0, "LLM_PARAM_INVALID"),
            (lambda: "", "LLM_PARAM_INVALID"),
            (lambda: 1 / 0, "LLM_FAILED"),
            (lambda: raise_(TimeoutError("not computed in time")), "LLM_TIMEOUT"),
            (lambda: raise_(TransferTimeout("not computed in time")), "LLM_TIMEOUT"),
            (lambda: raise_(LLMException("without a code")), "LLM_FAILED"),
            (lambda: raise_(SystemExit(0)), "LLM_FAILED"),
        ],
        ids=["false", "None", "0", "empty", "an error", "out of time", "our timeout", "no code", "SystemExit"],
    )
    def test_a_layer_that_is_not_computed_is_no_success(
        self, ends: Ends, answer: Callable[[], object], code: str
    ) -> None:
        assert deviates("layer_errors")
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        when = Computes(lambda layer: layer < 1 or answer())
        configs = [keyed(range(1)), keyed(range(1, 3)), keyed(range(2, 3))]
        with moves(target) as expected:
            expected[:2, 4] = content(source)[:2, 0]
            assert results(near, source, configs, [0], [4], when=when) == [OK, LLMStatusCode[code], None]
        assert when.layers == [0, 1]

    def test_a_transfer_that_fails_ends_the_job(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        when = Computes()
        configs = [keyed(range(1)), keyed(range(1, 2), key=BlocksCacheKey(FAR, 9)), keyed(range(1, 3))]
        with moves(target) as expected:
            expected[:2, 0] = content(source)[:2, 0]
            codes = results(near, source, configs, [0], [0], when=when)
        assert codes == [OK, LLMStatusCode.LLM_KV_CACHE_NOT_EXIST, None]
        assert when.layers == [0, 1]

    def test_two_configs_of_one_cluster_have_their_own_results(self, ends: Ends) -> None:
        assert deviates("result_of_each_config")
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        with moves(target) as expected:
            expected[:2, 0] = content(source)[:2, 0]
            codes = results(near, source, [keyed(range(1)), keyed(range(1), range(3, 4))], [0], [0])
        assert codes == [OK, LLMStatusCode.LLM_PARAM_INVALID]

    @pytest.mark.parametrize(
        ("config", "blocks", "code"),
        [
            (keyed(range(1), key=BlocksCacheKey(99)), ([0], [0]), "LLM_NOT_YET_LINK"),
            (keyed(range(1), key=CacheKeyByIdAndIndex(FAR, 77)), ([0], [0]), "LLM_KV_CACHE_NOT_EXIST"),
            (keyed(range(1), range(3, 4)), ([0], [0]), INVALID),
            (keyed(range(1)), ([8], [0]), INVALID),
            (keyed(range(1)), ([0], [8]), INVALID),
            (keyed(range(1)), ([2**64 - 1], [0]), INVALID),
            (keyed(range(1), key=CacheKeyByIdAndIndex(FAR, 1, 1)), (), INVALID),
            (keyed(range(1), key=CacheKeyByIdAndIndex(FAR, -1)), (), "LLM_FAILED"),
            (keyed(range(1), key=CacheKeyByIdAndIndex(FAR, 1), row=1), (), INVALID),
        ],
        ids=[
            "no link",
            "no such cache",
            "no such layer",
            "no such source block",
            "no such target block",
            "the largest uint64",
            "no such target row",
            "no id",
            "no such source row",
        ],
    )
    def test_what_both_ends_do_not_fit(
        self, ends: Ends, config: TransferWithCacheKeyConfig, blocks: tuple[list[int], ...], code: str
    ) -> None:
        near, far = linked(ends)
        target = blocks_at(far, 2, **LAYERED)
        assert target.cache_id == 1
        with stays(target):
            assert results(near, blocks_at(near, 1, None, **LAYERED), [config], *blocks) == [LLMStatusCode[code]]

    def test_blocks_come_from_a_blocks_cache(self, ends: Ends) -> None:
        near, far = linked(ends)
        target = blocks_at(far, 2, **LAYERED)
        with stays(target):
            codes = results(near, rows_at(near, 1, **LAYERED), [keyed(range(1))], [0], [0])
        assert codes == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_a_freed_source_is_not_found(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        near.deallocate_blocks_cache(source)
        with stays(target):
            codes = results(near, source, [keyed(range(1))], [0], [0])
        assert codes == [LLMStatusCode.LLM_KV_CACHE_NOT_EXIST]

    @pytest.mark.parametrize("closed", ["source", "target"])
    def test_both_caches_are_remote_accessible(self, ends: Ends, closed: str) -> None:
        near, far = linked(ends)
        here, there = memory_of(describe(2)), memory_of(describe(2))
        source = near.register_blocks_cache(describe(2), addresses(here), None, closed != "source")
        target = far.register_blocks_cache(describe(2), addresses(there), KEY, closed != "target")
        with stays(target):
            assert results(near, source, [keyed(range(1))], [0], [0]) == [LLMStatusCode.LLM_PARAM_INVALID]

    def test_out_of_time_is_a_timeout_of_every_config_and_the_job_goes_on(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        computed = threading.Event()
        configs = [keyed(range(1)), keyed(range(1, 2))]
        with moves(target) as expected:
            expected[:4, 2] = content(source)[:4, 1]
            task = near.transfer_cache_async(source, Computes(lambda layer: computed.wait(20)), configs, [1], [2])
            for timeout in (0, 1, False):
                assert task.get_results(timeout) == [LLMStatusCode.LLM_TIMEOUT] * 2
                assert task.synchronize(timeout_in_millis=timeout) is LLMStatusCode.LLM_TIMEOUT
            computed.set()
            assert task.get_results(timeout_in_millis=None) == [OK, OK]

    @pytest.mark.parametrize(("timeout", "kind"), [each for each in wrong_ints("uint32") if each[0] is not None])
    def test_a_timeout_is_a_uint32(self, ends: Ends, timeout: Any, kind: type[Exception]) -> None:
        near, _ = linked(ends)
        task = near.transfer_cache_async(blocks_at(near, 1, None), Computes(), [])
        for wait in (task.synchronize, task.get_results):
            with answers(kind, "timeout_in_millis"):
                wait(timeout)
        assert task.synchronize(2**32 - 1) is OK


class TestArguments:
    """All of these raise at once: nothing is asked of the synchronizer, nothing moves."""

    @pytest.fixture
    def refuses(self, ends: Ends) -> Callable[..., None]:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None), blocks_at(far, 2)

        def refuse(refusal: Refusal, says: str, **changes: Any) -> None:
            when = Computes()
            given = {"src_cache": source, "layer_synchronizer": when, "transfer_configs": [keyed(range(1))]}
            with stays(target), answers(refusal, says):
                near.transfer_cache_async(**{**given, **changes})
            assert when.calls == []

        return refuse

    @pytest.mark.parametrize("source", [None, 1, "cache"])
    def test_the_source_is_a_cache(self, refuses: Callable[..., None], source: Any) -> None:
        refuses(TypeError, "src_cache", src_cache=source)

    @pytest.mark.parametrize("field", ["src_block_indices", "dst_block_indices"])
    def test_indices_are_lists_of_uint64s(self, refuses: Callable[..., None], field: str) -> None:
        for wrong in (range(1), {1}, "1", 1, np.arange(1)):
            refuses(TypeError, field, **{field: wrong})
        for value, kind in wrong_ints("uint64"):
            refuses(kind, f"{field}[1]", **{field: [0, value]})

    def test_the_size_of_a_block_is_a_uint64(self, refuses: Callable[..., None]) -> None:
        for value, kind in wrong_ints("uint64"):
            if value is not None:
                refuses(kind, "dst_block_memory_size", dst_block_memory_size=value)

    @pytest.mark.parametrize(
        ("sources", "targets", "size"),
        [([0], None, None), ([0], [], 0), ([0], [1, 2], None), (None, [1], None), ([], [1], 0), (None, None, 16)],
    )
    def test_blocks_and_their_size_belong_together(
        self, refuses: Callable[..., None], sources: Any, targets: Any, size: Any
    ) -> None:
        refuses(INVALID, "block", src_block_indices=sources, dst_block_indices=targets, dst_block_memory_size=size)

    @pytest.mark.parametrize("synchronizer", [None, 1, lambda layer, timeout: True])
    def test_the_synchronizer_is_one(self, refuses: Callable[..., None], synchronizer: Any) -> None:
        refuses(TypeError, "layer_synchronizer", layer_synchronizer=synchronizer)

    @pytest.mark.parametrize("configs", [None, keyed(range(1)), {}, [None], [keyed(range(1)), CacheKey(2, 1)]])
    def test_configs_are_a_list(self, refuses: Callable[..., None], configs: Any) -> None:
        refuses(TypeError, "transfer_configs", transfer_configs=configs)

    def test_layers_are_pairs_of_tensors(self, ends: Ends, refuses: Callable[..., None]) -> None:
        odd = ends.open(5).manager.allocate_blocks_cache(describe(3))
        refuses(INVALID, "3 tensors", src_cache=odd)

    def test_source_layers_lie_inside(self, refuses: Callable[..., None]) -> None:
        refuses(INVALID, "[1].src_layer_range", transfer_configs=[keyed(range(2)), keyed(range(1, 3))])

    def test_a_row_has_no_blocks(self, refuses: Callable[..., None]) -> None:
        config = keyed(range(1), key=CacheKeyByIdAndIndex(FAR, 1), row=1)
        refuses(
            INVALID,
            "[0].src_batch_index",
            transfer_configs=[config],
            src_block_indices=[0],
            dst_block_indices=[0],
        )

    def test_ranges_that_were_changed_are_compared_again(self, refuses: Callable[..., None]) -> None:
        config = keyed(range(2))
        config.src_layer_range = range(1)
        refuses(INVALID, "dst_layer_range", transfer_configs=[config])

    STEPS: tuple[tuple[dict[str, Any], Refusal, str], ...] = (
        ({"src_cache": None}, TypeError, "src_cache"),
        ({"src_block_indices": ["0"]}, TypeError, "src_block_indices"),
        ({"dst_block_indices": [-1]}, ValueError, "dst_block_indices"),
        ({"dst_block_memory_size": "0"}, TypeError, "dst_block_memory_size"),
        ({"src_block_indices": [0]}, INVALID, "src_block_indices has 1"),
        ({"layer_synchronizer": 1}, TypeError, "layer_synchronizer"),
        ({"transfer_configs": [None]}, TypeError, "transfer_configs"),
        ({"transfer_configs": [keyed(range(9))]}, INVALID, "src_layer_range"),
    )

    @pytest.mark.parametrize("first", range(len(STEPS) - 1))
    def test_an_earlier_check_speaks(self, refuses: Callable[..., None], first: int) -> None:
        changes, refusal, says = self.STEPS[first]
        for others, _, _ in self.STEPS[first + 1 :]:
            refuses(refusal, says, **{**others, **changes})

    def test_the_caches_of_nobody_and_of_the_host(self, ends: Ends) -> None:
        assert deviates("layer_transfer_takes_more")
        near, far = linked(ends)
        desc = describe(placement="HOST")
        cpu = Cache.create_cpu_cache(desc, addresses(memory_of(desc)))
        host, target = blocks_at(near, 1, None, placement="HOST"), blocks_at(far, 2)
        if ends.face == "native":
            with answers(TypeError, "cache_id"):
                near.transfer_cache_async(cpu, Computes(), [])
            with moves(target) as expected:
                expected[:, 1] = content(host)[:, 0]
                assert results(near, host, [keyed(range(2))], [0], [1]) == [OK]
            return
        for source in (cpu, host):
            with stays(target), invalid("must be placed on DEVICE"):
                near.transfer_cache_async(source, 1, [None], ["0"])

    @pytest.mark.parametrize("one_sided", [True, False])
    def test_each_mode_has_its_config(self, ends: Ends, one_sided: bool) -> None:
        near, far = linked(ends, one_sided=one_sided)
        source, target = blocks_at(near, 1, None), blocks_at(far, 2)
        by_key, by_address = keyed(range(1)), addressed(target, range(1, 2), range(1, 2))
        if ends.face == "native":
            with moves(target) as expected:
                expected[:, 5] = content(source)[:, 0]
                assert results(near, source, [by_key, by_address], [0], [5]) == [OK, OK]
            return
        wrong = by_address if one_sided else by_key
        with stays(target), answers(TypeError, "transfer_configs[0]"):
            near.transfer_cache_async(source, Computes(), [wrong])

    def test_there_are_two_addresses_a_layer(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        source, target = rows_at(near, 1), rows_at(far, 2)
        for layers, count in ((None, 2), (None, 5), (range(1), 4), (range(2), 3)):
            config = TransferConfig(FAR, target.tensor_addrs[:1] * count, layers)
            with stays(target), invalid(f"dst_addrs has {count} entries"):
                near.transfer_cache_async(source, Computes(), [config])

    def test_a_range_left_out_is_filled_in(self, ends: Ends) -> None:
        near, far = linked(ends, one_sided=False)
        source, target = rows_at(near, 1), rows_at(far, 2)
        config = TransferConfig(FAR, target.tensor_addrs)
        with moves(target) as expected:
            expected[:, 0] = content(source)[:, 0]
            assert results(near, source, [config]) == [OK]
        assert config.src_layer_range == range(2)

    def test_what_is_changed_later_does_not_reach_the_transfer(self, ends: Ends) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1, None, **LAYERED), blocks_at(far, 2, **LAYERED)
        config, here, there = keyed(range(1)), [0], [6]
        computed = threading.Event()
        with moves(target) as expected:
            expected[:2, 6] = content(source)[:2, 0]
            task = near.transfer_cache_async(source, Computes(lambda layer: computed.wait(20)), [config], here, there)
            config.src_layer_range = config.dst_layer_range = range(1, 3)
            here[0], there[0] = 5, 5
            computed.set()
            assert task.synchronize(LIMIT_MS) is OK

    def test_after_the_end_nothing_is_started(self, ends: Ends) -> None:
        near, _ = linked(ends)
        source = blocks_at(near, 1, None)
        ends.close()
        when = Computes()
        with invalid():
            near.transfer_cache_async(source, when, [keyed(range(1))], [0], [0])
        assert when.calls == []


def raise_(error: BaseException) -> bool:
    raise error
