"""What goes wrong between two NPUs is a typed error within its time, and the next push works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.errors import LLMException, LLMStatusCode, OutOfMemory, PeerLost, TransferTimeout
from tests.emulator.faulty import TIMEOUT_S, FaultyPair, settled

SOME = [1, 5, 6], [9, 0, 1]


HCCL = pytest.mark.parametrize("started", ["hccl"], indirect=True)  # one end alone is at work otherwise
IPC = pytest.mark.parametrize("started", ["device_ipc"], indirect=True)  # nothing is mapped otherwise


@pytest.fixture(scope="module", params=["device_ipc", "hccl"])
def started(request: pytest.FixtureRequest, npus: None) -> Iterator[FaultyPair]:
    pair = FaultyPair(request.param)
    pair.transport = request.param  # type: ignore[attr-defined]
    pair.start(1, 2)
    yield pair
    pair.fabric.close()


@pytest.fixture
def pair(started: FaultyPair) -> Iterator[FaultyPair]:
    yield started
    for cluster_id in (1, 2):
        started.on(cluster_id, "faults", "")
        started.on(cluster_id, "clear")


def transport(pair: FaultyPair) -> str:
    return str(pair.transport)  # type: ignore[attr-defined]


def check_push(pair: FaultyPair, source: int, target: int) -> None:
    """A push from 1 to 2 arrives exactly."""
    expected = pair.on(2, "blocks", target).copy()
    expected[:, SOME[1]] = pair.on(1, "blocks", source)[:, SOME[0]]
    assert pair.on(1, "push", source, 2, *SOME) == transport(pair)
    np.testing.assert_array_equal(pair.on(2, "blocks", target), expected)


def both(pair: FaultyPair) -> tuple[int, int]:
    made = pair.on(1, "make"), pair.on(2, "make")
    check_push(pair, *made)
    return made


class Within:
    """The time that a failing call took."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        assert time.monotonic() - self._began < self.limit_s


def test_opposite_pushes_at_once_do_not_wait_for_each_other(pair: FaultyPair) -> None:
    made = dict(zip((1, 2), both(pair), strict=True))
    calls = [
        pair.workers[source].push.remote(made[source], 3 - source, [block], [block + 8], 30.0)
        for block in range(2, 8)
        for source in (1, 2)
    ]
    assert {settled(call) for call in calls} == {transport(pair)}
    for source in (1, 2):
        landed = pair.on(3 - source, "blocks", made[3 - source])
        assert (landed[:, 10:] == source).all()


@HCCL
def test_an_operation_that_never_ends_is_a_timeout_and_the_next_push_works(pair: FaultyPair) -> None:
    source, target = both(pair)
    pair.on(2, "faults", "HcclBatchSendRecv:1:stall")
    with Within(TIMEOUT_S + 10), pytest.raises(TransferTimeout):
        pair.on(1, "push", source, 2, *SOME)
    pair.on(2, "faults", "")
    check_push(pair, source, target)


def test_a_refused_operation_is_told_with_the_drivers_words(pair: FaultyPair) -> None:
    source, target = both(pair)
    call = "aclrtMemcpyAsync" if transport(pair) == "device_ipc" else "HcclBatchSendRecv"
    pair.on(1, "faults", f"{call}:1:error=107000")
    with Within(TIMEOUT_S + 10), pytest.raises(LLMException, match="107000") as caught:
        pair.on(1, "push", source, 2, *SOME)
    assert caught.value.status_code is LLMStatusCode.LLM_FAILED
    pair.on(1, "faults", "")
    check_push(pair, source, target)


def test_a_peer_killed_inside_the_push_is_lost_and_its_successor_gets_the_next_one(pair: FaultyPair) -> None:
    source, _ = both(pair)
    theirs = pair.on(2, "pid")
    if transport(pair) == "hccl":
        pair.on(2, "faults", "HcclBatchSendRecv:1:kill")
    else:
        pair.kill(2)
    with Within(TIMEOUT_S + 10), pytest.raises(PeerLost):
        pair.on(1, "push", source, 2, *SOME)
    pair.start(2)
    check_push(pair, source, pair.on(2, "make"))
    assert not list(Path("/dev/shm").glob(f"torch_{theirs}_*"))  # torch's counters of shared memory


def test_a_pointer_that_nobody_allocated_is_refused_and_the_next_push_works(pair: FaultyPair) -> None:
    source, target = both(pair)
    nowhere = pair.on(1, "registered", 0x7000_0000_0000)
    with Within(TIMEOUT_S + 10), pytest.raises(LLMException) as caught:
        pair.on(1, "push", nowhere, 2, *SOME)
    assert not isinstance(caught.value, TransferTimeout)
    check_push(pair, source, target)


def test_a_target_that_nobody_allocated_is_refused(pair: FaultyPair) -> None:
    source = pair.on(1, "make")
    pair.on(2, "registered", 0x7000_0000_0000)
    with Within(TIMEOUT_S + 10), pytest.raises(LLMException) as caught:
        pair.on(1, "push", source, 2, *SOME)
    assert not isinstance(caught.value, TransferTimeout)


@HCCL
def test_communicators_go_with_the_process_at_either_end(pair: FaultyPair) -> None:
    for dying, left in ((1, 2), (2, 1)):
        made = both(pair)
        assert pair.on(2, "push", made[1], 1, [0], [0], 30.0) == "hccl"
        assert pair.on(left, "status")["transport_state"]["hccl"]["communicators"] == 2  # one each way
        pair.kill(dying)
        pair.on(left, "allocated")  # sweeps
        assert pair.on(left, "status")["transport_state"] == {}
        pair.on(left, "clear")
        pair.start(dying)


@HCCL
def test_a_link_that_is_closed_gives_both_ends_back(pair: FaultyPair) -> None:
    both(pair)
    pair.on(1, "leave")
    assert pair.on(2, "status")["transport_state"] == {}
    pair.kill(1)
    pair.start(1)


@HCCL
def test_a_cancelled_push_is_never_told_as_landed(pair: FaultyPair) -> None:
    shape = (4, 1 << 20)  # four tensors of 4 MiB, windows of 2 MiB into host memory
    source, target = pair.on(1, "make", "DEVICE", shape), pair.on(2, "make", "HOST", shape)
    pair.on(2, "faults", "stream_op:*:delay=0.1")
    cancelled, landed = pair.on(1, "cancel_and_push", source, 2)
    assert settled(pair.workers[2].wait_received.remote(landed, 10.0)).nbytes == 16 << 20
    assert (pair.on(2, "blocks", target) == 1).all()
    with pytest.raises(TransferTimeout):
        settled(pair.workers[2].wait_received.remote(cancelled, 0.1))


@HCCL
def test_a_count_that_differs_is_told_at_once_and_the_next_push_works(pair: FaultyPair) -> None:
    source, target = both(pair)
    pair.on(2, "miscount", True)
    with Within(TIMEOUT_S), pytest.raises(LLMException) as caught:
        pair.on(1, "push", source, 2, *SOME)
    assert not isinstance(caught.value, TransferTimeout)
    pair.on(2, "miscount", False)
    check_push(pair, source, target)


def test_a_push_waits_for_what_the_callers_stream_still_writes(pair: FaultyPair) -> None:
    source, target = both(pair)
    pair.on(1, "push_what_is_being_written", source, 2, "delay=0.4")
    landed = pair.on(2, "blocks", target)
    assert (landed[:, 5] == 0x77).all()


def test_a_stream_that_never_ends_its_work_is_a_timeout_and_nothing_moves(pair: FaultyPair) -> None:
    source, target = both(pair)
    before = pair.on(2, "blocks", target)
    with Within(TIMEOUT_S + 5), pytest.raises(TransferTimeout):
        pair.on(1, "push_what_is_being_written", source, 2, "delay=5")
    np.testing.assert_array_equal(pair.on(2, "blocks", target), before)
    time.sleep(2.5)
    check_push(pair, source, target)


def test_a_pool_that_is_too_small_is_named(pair: FaultyPair) -> None:
    with pytest.raises(OutOfMemory, match=r"device_pool\.memory_size"):
        pair.on(1, "make", "DEVICE", (1 << 16, 4, 1024))


@IPC
def test_memory_comes_back_when_a_process_that_mapped_it_died(pair: FaultyPair) -> None:
    empty = settled_memory(pair)
    both(pair)
    pair.on(2, "clear")
    assert pair.on(2, "allocated") > empty  # process 1 still has it mapped
    pair.kill(1)
    assert pair.on(2, "allocated") == empty
    pair.start(1)


@IPC
def test_memory_comes_back_when_the_other_side_unmaps_it(pair: FaultyPair) -> None:
    empty = settled_memory(pair)
    both(pair)
    pair.on(2, "clear")
    assert settled_memory(pair) == empty


def settled_memory(pair: FaultyPair) -> int:
    """Bytes in use on device 2 once device 1 has unmapped what is stale."""
    pair.on(1, "allocated")  # sweeps: stale ways go, and the owner is told
    return int(pair.on(2, "allocated"))
