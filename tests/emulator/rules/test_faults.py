"""Faults come at the same call each time."""

from __future__ import annotations

import ctypes
import signal
import time

import pytest

from tests.emulator.rules.cann import D2D, Cann
from tests.emulator.rules.processes import ChildDied


def _codes(calls: int) -> list[int]:
    cann = Cann()
    return [cann.call("aclrtCreateStream", ctypes.byref(ctypes.c_void_p())) for _ in range(calls)]


def test_the_nth_call_fails_in_each_process_alike(child):
    spec = "aclrtCreateStream:2:error=507008,aclrtCreateStream:4:error=507009"
    for _ in range(2):
        assert child(_codes, 5, KVFABRIC_EMULATED_FAULTS=spec).result() == [0, 507008, 0, 507009, 0]
    assert child(_codes, 3, KVFABRIC_EMULATED_FAULTS="aclrtCreateStream:*:error=7").result() == [7, 7, 7]


def _set_later() -> list[int]:
    cann = Cann()
    codes = _codes(2)
    cann.faults("aclrtCreateStream:1:error=5")
    codes += _codes(2)
    cann.faults("")
    return codes + _codes(1)


def test_faults_set_by_a_program_count_from_there(child):
    assert child(_set_later).result() == [0, 0, 5, 0, 0]


def _misspelt() -> list[int]:
    cann = Cann()
    wrong = [
        "aclrtFree",
        "aclrtFree:1",
        "aclrtFree:0:kill",
        "aclrtFree:x:kill",
        "aclrtFree:1:die",
        "aclrtFree:1:error=",
        ":1:kill",
    ]
    wrong += ["aclrtFree:1:error=0", "aclrtFree:1:delay=-1", "aclrtFree:1:delay=soon"]
    return [cann.acl.kvf_emulator_set_faults(spec.encode()) for spec in wrong]


def test_a_misspelt_fault_is_refused(child):
    assert set(child(_misspelt).result()) == {-1}
    with pytest.raises(ChildDied) as died:
        child(_codes, 1, KVFABRIC_EMULATED_FAULTS="aclrtFree:now:kill").result()
    assert died.value.exitcode == -signal.SIGABRT


def test_a_fault_can_kill(child):
    with pytest.raises(ChildDied) as died:
        child(_codes, 5, KVFABRIC_EMULATED_FAULTS="aclrtCreateStream:3:kill").result()
    assert died.value.exitcode == -signal.SIGKILL


def _timed() -> float:
    start = time.monotonic()
    _codes(1)
    return time.monotonic() - start


def test_a_fault_can_delay(child):
    assert child(_timed, KVFABRIC_EMULATED_FAULTS="aclrtCreateStream:1:delay=0.4").result() >= 0.4


def _stalled() -> None:
    cann = Cann()
    a, b = cann.malloc(64), cann.malloc(64)
    stream = cann.stream()
    cann.faults("aclrtMemcpyAsync:2:stall")
    for _ in range(3):
        assert cann.copy_async(a, 64, b, 64, D2D, stream) == 0
    assert cann.wait(stream, 100) == 507046
    cann.ok("aclrtStreamAbort", ctypes.c_void_p(stream))
    assert cann.wait(stream) == 107023


def test_a_fault_can_stall_an_op_until_it_is_aborted(child):
    child(_stalled).result()


def _counts() -> list[int]:
    cann = Cann()
    _codes(3)
    counts = [cann.acl.kvf_emulator_count(b"aclrtCreateStream"), cann.acl.kvf_emulator_count(b"aclrtNever")]
    cann.acl.kvf_emulator_reset_counts()
    return [*counts, cann.acl.kvf_emulator_count(b"aclrtCreateStream")]


def test_calls_are_counted(child):
    assert child(_counts).result() == [3, 0, 0]
