"""A call that is not emulated is an error and leaves a line; success would leave garbage in a tensor."""

from __future__ import annotations

import ctypes

import pytest

from tests.emulator.rules.cann import D2D, SEND, UINT8, Cann

REFUSED = ["aclopCompileAndExecute", "aclrtMallocPhysical", "aclrtReserveMemAddress", "aclrtMapMem", "aclmdlSetDump"]


def _codes() -> list[tuple[int, str]]:
    cann = Cann()
    return [(cann.call(name), cann.message()) for name in REFUSED]


def test_a_call_that_is_not_emulated_is_an_error_with_a_message_and_a_line(child, tmp_path):
    log = tmp_path / "calls"
    answers = child(_codes, KVFABRIC_EMULATED_LOG=str(log)).result()
    assert [code for code, _ in answers] == [200001] * len(REFUSED)
    assert all(name in message for name, (_, message) in zip(REFUSED, answers, strict=True))
    unimplemented = [line.split()[2] for line in log.read_text().splitlines() if line.split()[1] == "unimplemented"]
    assert unimplemented == REFUSED


def _absent() -> None:
    cann = Cann()
    for name in ["aclrtMemcpyBatchAsync", "aclrtLaunchKernelWithConfig"]:
        with pytest.raises(AttributeError):
            getattr(cann.acl, name)
    with pytest.raises(AttributeError):
        cann.hccl.HcclAllReduce  # noqa: B018


def test_what_torch_npu_does_not_link_to_is_absent_as_in_an_older_cann(child):
    child(_absent).result()


def _some_calls() -> int:
    cann = Cann()
    a, b = cann.malloc(4096), cann.malloc(4096)
    stream = cann.stream()
    assert cann.copy_async(a, 4096, b, 128, D2D, stream) == 0
    assert cann.copy_async(a, 64, b, 128, D2D, stream) != 0
    comm = cann.join(cann.root(), 1, 0)
    assert cann.batch([(SEND, a, 64, UINT8, 0), (1, b, 64, UINT8, 0)], comm, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.wait(0) == 0
    assert cann.call("aclrtFree", ctypes.c_void_p(1)) != 0
    return comm


def test_each_call_leaves_a_line_with_what_it_moved_and_its_code(child, tmp_path):
    log = tmp_path / "calls"
    started = child(_some_calls, KVFABRIC_EMULATED_LOG=str(log))
    comm = started.result()
    lines = log.read_text().splitlines()
    assert {line.split()[0] for line in lines} == {str(started.pid)}
    calls = [line.split(" ", 1)[1] for line in lines]
    assert "aclrtMemcpyAsync kind=3 bytes=128 rc=0" in calls
    assert "aclrtMemcpyAsync kind=3 bytes=128 rc=107000" in calls
    assert f"HcclBatchSendRecv comm={comm:#x} rank=0 sends=1 recvs=1 bytes=128 rc=0" in calls
    assert "aclrtFree address=0x1 rc=107000" in calls
