"""The benchmark's logic: what it draws, verifies and computes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ray_kvfabric.bench.cases import BULK, CASES, Case, select
from ray_kvfabric.bench.endpoints import Target
from ray_kvfabric.bench.lanes import LaneKey
from ray_kvfabric.bench.measure import QUICK, measure
from ray_kvfabric.bench.rows import Measured, rows
from ray_kvfabric.bench.source import TARGET_ID, Source
from ray_kvfabric.bench.statistics import Figures, percentile, speed_ratio
from ray_kvfabric.bench.urgent import UrgentEffort, UrgentSource, measure_urgent
from ray_kvfabric.bench.worker import Local, Spawned, Worker
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.errors import ConfigError, FabricError, PeerLost
from ray_kvfabric.transport.loopback import LoopbackLink
from ray_kvfabric.transport.process_vm import ProcessVmLink
from ray_kvfabric.transport.shared_memory import SharedMemoryLink

pytestmark = pytest.mark.native

TINY = Case(name="tiny", num_tensors=3, block_nbytes=4096, blocks_per_call=2, num_blocks=8)
LARGE = Case(name="large", num_tensors=8, block_nbytes=32768, blocks_per_call=8, num_blocks=16)
EFFORT = QUICK._replace(rounds=2, small_reps=5, large_reps=2, memcpy_nbytes=1 << 20, shrink=False)

URGENTLY = UrgentEffort(rounds=2, reps=20, bulk=replace(BULK, blocks_per_call=8, num_blocks=8))


def spawn(name: str, make: Callable[..., Any], *arguments: object) -> Worker:
    """The source in this process, so that a test can reach into it; the target in another."""
    return Local(make(*arguments)) if make in (Source, UrgentSource) else Spawned(name, make, *arguments)


@pytest.mark.parametrize("case", [TINY, LARGE], ids=lambda case: case.name)
@pytest.mark.parametrize("fans", [False, True], ids=["to one", "to many"])
def test_a_case_is_measured_and_verified(case: Case, fans: bool) -> None:
    found = rows(measure(replace(case, fans=fans), EFFORT, spawn))
    lanes = [(row["contender"], row["transport"]) for row in found]
    ours = [("kvfabric", transport) for transport in ("shared_memory", "process_vm", "loopback")]
    granted = [("granted", "shared_memory"), ("verified", "shared_memory"), ("check", None)]
    many = [("one_to_many", "shared_memory"), ("singles", "shared_memory")] if fans else []
    yards = [("bare_c" if case.is_small else "limit", None), ("memcpy", None)]
    assert lanes == [*ours, *granted, *many, *yards]
    assert all(row["verified"] for row in found)
    assert all(row["reps"] == 2 * EFFORT.reps(case) for row in found)
    assert {row["contender"] for row in found if "overhead_us" in row} == ({"kvfabric"} if case.is_small else set())
    nbytes = {row["contender"]: row["bytes"] for row in found}
    assert all(nbytes[name] == case.nbytes for name in ("kvfabric", "granted", "verified", "check"))
    assert all(nbytes[name] == 4 * case.nbytes for name, _ in many)
    assert found[0]["ratio_push"] == 1.0


@pytest.mark.parametrize(
    ("link", "transport"),
    [(SharedMemoryLink, "shared_memory"), (ProcessVmLink, "process_vm"), (LoopbackLink, "loopback")],
)
def test_one_corrupted_byte_is_noticed(
    monkeypatch: pytest.MonkeyPatch, link: type[LoopbackLink], transport: str
) -> None:
    """Each push is followed by one that moves a wrong block of the last tensor into its last target block."""
    honest = link._write

    def corrupting(self: Any, source: Any, target: Any, plan: Any, order: Any, step: Any) -> tuple[int, int, int]:
        answer = honest(self, source, target, plan, order, step)
        if self.transport == transport:
            _damage(self, source, target, plan)
        return answer

    def _damage(self: Any, source: Any, target: Any, plan: Any) -> None:
        byte = (ctypes.c_ubyte * 1)(0x5A)
        copier = self.local.copier
        base, _, nbytes, stride = target[len(target) - 1]
        there = copier.RegionTable([(base + list(plan.target_blocks)[-1] * stride + nbytes - 1, 1, 1, 1)])
        here = copier.RegionTable([(ctypes.addressof(byte), 1, 1, 1)], owner=byte)
        first = copier.BlockList([0], "damage")
        if transport == "process_vm":
            copier.write_process(self.peer.pid, here, there, 0, 0, 1, first, first)
        else:
            copier.copy_blocks(here, there, 0, 0, 1, first, first)

    monkeypatch.setattr(link, "_write", corrupting)
    found = rows(measure(TINY, EFFORT, spawn))
    wrong = {row["transport"] for row in found if row["contender"] == "kvfabric" and not row["verified"]}
    assert wrong == {transport}
    problem = next(row["wrong"] for row in found if row["transport"] == transport)
    assert "tensor 2, block" in str(problem)


@pytest.mark.parametrize(("verify", "wrong"), [(None, {"granted"}), ("crc32c", {"verified", "check"})])
def test_one_corrupted_byte_of_a_granted_push_is_noticed(
    monkeypatch: pytest.MonkeyPatch, verify: str | None, wrong: set[str]
) -> None:
    """Of each pushed block of the first tensor, with digests or without, a byte is not as it was read."""
    honest = SharedMemoryLink._write

    def corrupting(self: Any, source: Any, target: Any, plan: Any, order: Any, step: Any) -> tuple[int, int, int]:
        answer = honest(self, source, target, plan, order, step)
        if order.use is not None and order.use.grant.verify == verify:
            base, _, _, stride = target[0]
            byte = ctypes.c_ubyte.from_address(base + list(plan.target_blocks)[-1] * stride)
            byte.value ^= 1
        return answer

    monkeypatch.setattr(SharedMemoryLink, "_write", corrupting)
    found = rows(measure(TINY, EFFORT, spawn))
    assert {row["contender"] for row in found if not row["verified"]} == wrong
    if verify is not None:
        assert "its writer read" in str(next(row["wrong"] for row in found if row["contender"] == "check"))


def test_a_target_that_one_to_many_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = CacheManager.push_blocks_to

    def forgetful(self: Any, targets: Any, *arguments: Any) -> Any:
        return honest(self, targets[:-1], *arguments)

    monkeypatch.setattr(CacheManager, "push_blocks_to", forgetful)
    found = rows(measure(replace(LARGE, fans=True), EFFORT, spawn))
    wrong = {row["contender"] for row in found if not row["verified"]}
    assert wrong == {"one_to_many"}


def test_an_urgent_push_is_measured_under_every_load() -> None:
    found = measure_urgent(URGENTLY, spawn)
    assert [row["detail"] for row in found] == ["idle link", "under bulk", "under bulk as urgent"]
    assert [row["bulk_gbps"] > 0 for row in found] == [False, True, True]  # type: ignore[operator]
    assert all(row["verified"] for row in found)
    assert all((row["bytes"], row["rounds"], row["reps"]) == (1 << 16, 2, 40) for row in found)
    assert (found[0]["ratio_idle_p50"], found[0]["ratio_idle_p99"]) == (1, 1)


@pytest.mark.parametrize("is_bulk", [True, False])
def test_a_corrupted_byte_beside_or_in_an_urgent_push_is_noticed(
    monkeypatch: pytest.MonkeyPatch, is_bulk: bool
) -> None:
    honest = SharedMemoryLink._write

    def corrupting(self: Any, source: Any, target: Any, plan: Any, order: Any, step: Any) -> tuple[int, int, int]:
        answer = honest(self, source, target, plan, order, step)
        if (order.use is None) is is_bulk:
            ctypes.c_ubyte.from_address(target[0][0]).value = 0x5A
        return answer

    monkeypatch.setattr(SharedMemoryLink, "_write", corrupting)
    found = measure_urgent(URGENTLY, spawn)
    assert not any(row["verified"] for row in found)
    assert "tensor 0, block 0" in str(found[0]["wrong"])


def test_a_block_that_was_not_written_is_noticed() -> None:
    with Spawned("target", Target, TARGET_ID) as target:
        target.call("open_cache", TINY, 0)
        held: list[int | None] = [None] * TINY.num_blocks
        assert target.call("first_wrong", 0, held) is None
        held[3] = 3
        assert "block 3 (from source block 3)" in target.call("first_wrong", 0, held)


@pytest.mark.parametrize("name", list(CASES))
def test_lists_differ_from_call_to_call_and_fit(name: str) -> None:
    case, random = CASES[name], Random(1)
    drawn = [case.draw(random) for _ in range(8)]
    assert len({str(lists) for lists in drawn}) == 8
    for blocks in (side for lists in drawn for side in lists):
        assert len(set(blocks)) == case.blocks_per_call
        assert set(blocks) <= set(range(case.num_blocks))
        if case.consecutive:
            assert blocks == list(range(blocks[0], blocks[0] + len(blocks)))


def test_cases_move_what_the_table_says() -> None:
    sizes = {name: case.nbytes / 2**20 for name, case in CASES.items()}
    assert sizes == {
        "small": 1 / 16,
        "llama_rand": 128,
        "llama_seq": 128,
        "mla_rand": 274.5,
        "mla_seq": 274.5,
        "big": 256,
    }


def test_an_unknown_case_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no case 'huge'; the cases are small, llama_rand.*big"):
        select(("small", "huge"))
    assert select(("urgent",), ("urgent",)) == []
    assert select((), ("urgent",)) == list(CASES.values())


def test_percentiles_lie_between_samples() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([7], 99) == 7
    assert percentile(list(range(101)), 99) == 99


def test_ratios_compare_rounds_of_the_same_time() -> None:
    ours = Figures(LaneKey("kvfabric", "x"), 100, [[10, 10], [40, 40], [30, 30]])
    other = Figures(LaneKey("memcpy"), 200, [[40, 40], [80, 80], [90, 90]])
    ratio = speed_ratio(ours, other)
    assert (ratio.middle, ratio.lowest, ratio.highest) == (1.5, 1.0, 2.0)
    assert ours.gbps.highest == 10


def test_one_to_many_is_compared_with_single_pushes_to_the_same_targets() -> None:
    def lane(name: str, times: int, taken: int) -> Figures:
        return Figures(LaneKey(name, "shared_memory"), times * LARGE.nbytes, [[taken]])

    pushes = [lane("kvfabric", 1, 250), lane("granted", 1, 500), lane("one_to_many", 4, 400), lane("singles", 4, 800)]
    yards = [Figures(LaneKey(name), LARGE.nbytes, [[100]]) for name in ("limit", "memcpy")]
    found = rows(Measured(LARGE, [*pushes, *yards], {}))
    assert [row["ratio_push"] for row in found] == [1.0, 0.5, 2.0, 1.25, 2.5, 2.5]


def test_the_fastest_loop_is_the_limit() -> None:
    slow = Figures(LaneKey("limit", detail="plain x 1"), LARGE.nbytes, [[400]])
    fast = Figures(LaneKey("limit", detail="wide x 2"), LARGE.nbytes, [[200]])
    ours = Figures(LaneKey("kvfabric", "shared_memory"), LARGE.nbytes, [[250]])
    memcpy = Figures(LaneKey("memcpy"), LARGE.nbytes, [[100]])
    found = rows(Measured(LARGE, [slow, ours, fast, memcpy], {}))
    assert [row.get("detail") for row in found] == [None, "wide x 2", None]
    assert found[0]["ratio_limit"] == 0.8


class _Faulty:
    def divide(self, by: int) -> float:
        return 1 / by

    def close(self) -> None:
        """Nothing is held."""


def test_a_worker_passes_errors_on_and_its_death() -> None:
    with Spawned("faulty", _Faulty) as worker:
        assert worker.call("divide", 2) == 0.5
        with pytest.raises(FabricError, match="ZeroDivisionError in process"):
            worker.call("divide", 0)
        worker._process.kill()
        with pytest.raises(PeerLost, match="worker 'faulty' died"):
            worker.call("divide", 1)
