"""copy_cache, copy_blocks, swap_blocks and remap_registered_memory: inside one endpoint (contract 11.7 to 11.10)."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import Cache, CacheDesc, DataType, MemInfo, Memtype, Placement
from ray_kvfabric.integrations.llm_datadist import _options
from tests.contract.conftest import deviates, invalid, wrong_ints
from tests.contract.moves import (
    KEY,
    NEAR,
    NO_BLOCK_LISTS,
    Refusal,
    addresses,
    answers,
    blocks_at,
    fails,
    linked,
    memory_of,
    moves,
    rows_at,
    stays,
)
from tests.contract.world import Ends, content, describe

INVALID = "LLM_PARAM_INVALID"
CPU = describe(placement="HOST")


class TestCopyCache:
    @pytest.mark.parametrize(
        ("rows", "offset", "size", "span"),
        [
            ((0, 0), 0, -1, slice(0, 16)),
            ((7, 3), 0, -1, slice(0, 16)),
            ((3, 7), 5, -1, slice(5, 16)),
            ((1, 2), 0, 4, slice(0, 4)),
            ((1, 2), 15, 1, slice(15, 16)),
            ((True, False), True, 3, slice(1, 4)),
        ],
    )
    @pytest.mark.parametrize("placements", [("DEVICE", "DEVICE"), ("HOST", "DEVICE"), ("DEVICE", "HOST")])
    def test_bytes_of_a_row_land_at_the_same_offset(
        self, ends: Ends, rows: tuple[int, int], offset: int, size: int, span: slice, placements: tuple[str, str]
    ) -> None:
        manager = ends.open(NEAR).manager
        source, target = (rows_at(manager, seed, placement=each) for seed, each in enumerate(placements))
        with moves(target, source) as expected:
            expected[:, int(rows[1]), span] = content(source)[:, int(rows[0]), span]
            assert manager.copy_cache(target, source, rows[1], rows[0], offset, size) is None

    def test_a_shorter_row_into_a_longer_one(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        source, target = rows_at(manager, 1, shape=(4, 8)), rows_at(manager, 2, shape=(2, 20), kind="DT_UINT8")
        with moves(target, source) as expected:
            expected[:, 1, 2:8] = content(source)[:, 3, 2:]
            manager.copy_cache(target, source, 1, 3, 2)
        with moves(source, target) as expected:
            expected[:, 1, 2:5] = content(target)[:, 0, 2:5]
            manager.copy_cache(source, target, 1, 0, 2, 3)

    def test_inside_one_cache(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        cache = rows_at(manager, 1)
        with moves(cache) as expected:
            expected[:, 5] = expected[:, 2]
            manager.copy_cache(cache, cache, dst_batch_index=5, src_batch_index=2, req_id=77)

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            *(({field: None}, AttributeError) for field in ("dst", "src")),
            *(({field: 1}, TypeError) for field in ("dst", "src")),
            *(
                ({field: value}, kind)
                for field, width in (
                    ("dst_batch_index", "uint32"),
                    ("src_batch_index", "uint32"),
                    ("offset", "uint64"),
                    ("size", "int64"),
                    ("req_id", "uint64"),
                )
                for value, kind in wrong_ints(width)
                if (field, value) != ("req_id", None)
            ),
            *(({"size": value}, INVALID) for value in (0, -2, 17, False)),
            *(({"dst_batch_index": value}, INVALID) for value in (8, 2**32 - 1)),
            ({"src_batch_index": 8}, INVALID),
            *(({"offset": value}, INVALID) for value in (16, 17, 2**64 - 1)),
            ({"offset": 8, "size": 9}, INVALID),
        ],
        ids=repr,
    )
    def test_what_does_not_fit_is_refused(self, ends: Ends, changes: Any, refusal: Refusal) -> None:
        manager = ends.open(NEAR).manager
        source, target = rows_at(manager, 1), rows_at(manager, 2)
        with stays(source, target), answers(refusal):
            manager.copy_cache(**{"dst": target, "src": source, **changes})

    def test_caches_that_do_not_fit_are_refused(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        rows, blocks = rows_at(manager, 1), blocks_at(manager, 2)
        for target, source in ((blocks, rows), (rows, blocks), (rows, rows_at(manager, 3, num_tensors=2))):
            with stays(target, source), invalid():
                manager.copy_cache(target, source)
        longer = rows_at(manager, 4, shape=(8, 20))
        with stays(rows), invalid("a row of dst"):
            manager.copy_cache(rows, longer)

    @pytest.mark.parametrize("freed", ["dst", "src"])
    def test_a_freed_cache_is_not_found(self, ends: Ends, freed: str) -> None:
        manager = ends.open(NEAR).manager
        caches = {"dst": rows_at(manager, 1), "src": rows_at(manager, 2)}
        manager.deallocate_cache(caches[freed])
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            manager.copy_cache(**caches, dst_batch_index=99)


class TestCopyBlocks:
    @pytest.mark.parametrize("info", [{0: [1]}, {3: [0, 7], 2: [2, 4]}, {True: [False]}, {5: []}, {}])
    def test_each_source_goes_to_each_listed_block(self, ends: Ends, info: dict[int, list[int]]) -> None:
        manager = ends.open(NEAR).manager
        cache, other = blocks_at(manager, 1), blocks_at(manager, 2, model_id=None)
        with moves(cache, other) as expected:
            for source, targets in info.items():
                expected[:, [int(target) for target in targets]] = content(cache)[:, [int(source)]]
            assert manager.copy_blocks(cache, info) is None

    def test_chains_have_the_dict_s_order(self, ends: Ends) -> None:
        assert deviates("ordered_chains")
        manager = ends.open(NEAR).manager
        cache = blocks_at(manager, 1)
        with moves(cache) as expected:
            expected[:, [1, 2, 3]] = expected[:, [0]]
            manager.copy_blocks(cache, {0: [1], 1: [2], 2: [3]})
        with moves(cache) as expected:
            expected[:, 7], expected[:, 6] = expected[:, 6].copy(), expected[:, 5].copy()
            manager.copy_blocks(cache, {6: [7], 5: [6]})

    @pytest.mark.parametrize(
        ("info", "refusal"),
        [
            (None, AttributeError),
            *((info, TypeError) for info in ([], 1, [(0, [1])], {0: (1,)}, {0: 1}, {0: None})),
            *(({0: blocks}, TypeError) for blocks in NO_BLOCK_LISTS if isinstance(blocks, list)),
            *(({source: [1]}, TypeError) for source in ("0", None, 1.0, np.int64(1), -1)),
            ({"0": []}, TypeError),
            *((info, INVALID) for info in ({8: [0]}, {0: [8]}, {0: [1], 2: [3, 9]})),
        ],
        ids=repr,
    )
    def test_what_does_not_fit_is_refused(self, ends: Ends, info: Any, refusal: Refusal) -> None:
        manager = ends.open(NEAR).manager
        cache = blocks_at(manager, 1)
        with stays(cache), answers(refusal, "copy_block_info"):
            manager.copy_blocks(cache, info)

    @pytest.mark.parametrize(("cache", "refusal"), [(None, AttributeError), (1, TypeError)])
    def test_only_blocks_caches_have_blocks(self, ends: Ends, cache: Any, refusal: Refusal) -> None:
        manager = ends.open(NEAR).manager
        with answers(refusal, "cache"):
            manager.copy_blocks(cache, {})
        with invalid("not a blocks cache"):
            manager.copy_blocks(rows_at(manager, 1), {0: [1]})
        freed = blocks_at(manager, 1)
        manager.deallocate_blocks_cache(freed)
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            manager.copy_blocks(freed, {0: [1]})

    def test_a_wrong_index_answers_before_a_freed_cache(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        cache = blocks_at(manager, 1)
        manager.deallocate_blocks_cache(cache)
        with answers(TypeError, "copy_block_info"):
            manager.copy_blocks(cache, {0: [-1]})
        with fails("LLM_KV_CACHE_NOT_EXIST"):
            manager.copy_blocks(cache, {0: [99]})


class TestSwapBlocks:
    @pytest.mark.parametrize("to_host", [True, False])
    @pytest.mark.parametrize("pairs", [{0: 0}, {3: 5, 7: 1, 4: 1}, {True: False}, {}])
    def test_blocks_go_one_way(self, ends: Ends, to_host: bool, pairs: dict[int, int]) -> None:
        manager = ends.open(NEAR).manager
        device = blocks_at(manager, 1, model_id=None)
        host = blocks_at(manager, 2, model_id=None, placement="HOST", shape=(9, 16))
        source, target = (device, host) if to_host else (host, device)
        with moves(target, source) as expected:
            for here, there in pairs.items():
                expected[:, int(there)] = content(source)[:, int(here)]
            assert manager.swap_blocks(source, target, pairs) is None

    def test_a_cpu_cache_takes_part(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        device, kept = blocks_at(manager, 1), memory_of(CPU)
        host = Cache.create_cpu_cache(CPU, addresses(kept))
        manager.swap_blocks(device, host, {2: 7})
        np.testing.assert_array_equal(np.stack(kept).reshape(4, 8, 16)[:, 7], content(device)[:, 2])
        with moves(device) as expected:
            expected[:, 0] = np.stack(kept).reshape(4, 8, 16)[:, 1]
            manager.swap_blocks(host, device, {1: 0})

    def test_blocks_are_counted_in_the_batch_dimension(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        device, kept = blocks_at(manager, 1), memory_of(CPU)
        desc = CacheDesc(4, (2, 8, 8), DataType.DT_INT8, Placement.HOST, batch_dim_index=1)
        manager.swap_blocks(device, Cache.create_cpu_cache(desc, addresses(kept)), {2: 7})
        np.testing.assert_array_equal(np.stack(kept).reshape(4, 8, 16)[:, 7], content(device)[:, 2])

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            *(({field: None}, AttributeError) for field in ("src_cache", "dst_cache", "src_to_dst")),
            *(({field: 1}, TypeError) for field in ("src_cache", "dst_cache", "src_to_dst")),
            *(({"src_to_dst": pairs}, TypeError) for pairs in ([(0, 1)], {"0": 1}, {0: "1"}, {0: 1.0}, {0: [1]})),
            *(({"src_to_dst": pairs}, INVALID) for pairs in ({8: 0}, {0: 8}, {-1: 0}, {0: -1}, {0: 0, 1: 2**70})),
        ],
        ids=repr,
    )
    def test_what_does_not_fit_is_refused(self, ends: Ends, changes: Any, refusal: Refusal) -> None:
        manager = ends.open(NEAR).manager
        device, host = blocks_at(manager, 1), blocks_at(manager, 2, model_id=None, placement="HOST")
        with stays(host, device), answers(refusal):
            manager.swap_blocks(**{"src_cache": device, "dst_cache": host, "src_to_dst": {0: 1}, **changes})

    def test_caches_that_do_not_fit_are_refused(self, ends: Ends) -> None:
        manager = ends.open(NEAR).manager
        device = blocks_at(manager, 1)
        forms: list[dict[str, Any]] = [{"num_tensors": 2}, {"shape": (8, 17)}, {"placement": "DEVICE"}]
        others = [blocks_at(manager, 2, **{"model_id": None, "placement": "HOST", **form}) for form in forms]
        freed = blocks_at(manager, 3, model_id=None, placement="HOST")
        manager.deallocate_blocks_cache(freed)
        for other in (*others, freed, rows_at(manager, 3, placement="HOST")):
            for pair in ((device, other), (other, device)):
                with stays(device), invalid():
                    manager.swap_blocks(*pair, {})

    def test_memory_that_is_not_mapped_is_refused(self, ends: Ends) -> None:
        assert deviates("unmapped_addresses")
        manager = ends.open(NEAR).manager
        device = blocks_at(manager, 1)
        nowhere = manager.register_blocks_cache(CPU, [1, 2, 3, 4])
        for host in (nowhere, pickle.loads(pickle.dumps(nowhere)), Cache.create_cpu_cache(CPU, [1, 2, 3, 4])):
            for pair in ((device, host), (host, device)):
                with stays(device), invalid("address 0x"):
                    manager.swap_blocks(*pair, {0: 0})

    def test_without_a_device_there_is_nothing_to_swap_with(self, ends: Ends) -> None:
        _options.choose(_options.Options())
        manager = ends.open(NEAR).manager
        kept = memory_of(CPU)
        device = manager.register_blocks_cache(describe(), addresses(kept))
        host = Cache.create_cpu_cache(CPU, addresses(kept))
        manager.swap_blocks(host, device, {})
        with invalid("there is no device"):
            manager.swap_blocks(host, device, {0: 1})

    def test_without_a_device_nothing_is_copied_in_its_memory(self, ends: Ends) -> None:
        """A device address is no address of this process, whatever lies there."""
        assert deviates("device_caches_need_a_device")
        _options.choose(_options.Options())
        manager = ends.open(NEAR).manager
        kept = memory_of(describe())
        for addrs in ([1, 2, 3, 4], addresses(kept)):
            blocks, rows = manager.register_blocks_cache(describe(), addrs), manager.register_cache(describe(), addrs)
            with invalid("device memory"):
                manager.copy_blocks(blocks, {0: [1]})
            with invalid("device memory"):
                manager.copy_cache(rows, rows, 0, 1)
            with fails("LLM_KV_CACHE_NOT_EXIST", "has no memory here"):
                rows.numpy(0)


class TestRemap:
    DEVICE = MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 64)

    @pytest.mark.parametrize(
        "infos",
        [
            None, 1, [], (), (DEVICE,), [DEVICE, 1], [None], "memory",
            MemInfo(Memtype.MEM_TYPE_HOST, 4096, 64), MemInfo(None, 4096, 64),
            MemInfo(Memtype.MEM_TYPE_DEVICE, -1, 64), MemInfo(Memtype.MEM_TYPE_DEVICE, 2**64, 64),
            MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, 2**64),
            *(MemInfo(Memtype.MEM_TYPE_DEVICE, address, 64) for address in (0, None)),
            *([MemInfo(Memtype.MEM_TYPE_DEVICE, 4096, size)] for size in (0, -1, None)),
        ],
    )  # fmt: skip
    def test_every_mistake_is_an_invalid_parameter(self, ends: Ends, infos: Any) -> None:
        near, _ = linked(ends)
        with invalid("mem_infos"):
            near.remap_registered_memory(infos)

    @pytest.mark.parametrize("infos", [DEVICE, [DEVICE], [DEVICE, DEVICE]])
    def test_it_needs_a_link_and_does_nothing(self, ends: Ends, infos: Any) -> None:
        near, far = linked(ends)
        source, target = blocks_at(near, 1), blocks_at(far, 2)
        with fails("LLM_NOT_YET_LINK"):
            ends.open(3).manager.remap_registered_memory(infos)
        near.pull_blocks(KEY, source, [0], [0])  # native links open by themselves
        with stays(source, target):
            assert near.remap_registered_memory(infos) is None
