"""Streams run on their own; what a caller has not waited for has not happened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time

from tests.emulator.rules.cann import D2D, D2H, Cann

SIZE = 1 << 12


def _buffers(cann: Cann) -> tuple[int, int]:
    a, b = cann.malloc(SIZE), cann.malloc(SIZE)
    cann.put(a, b"a" * SIZE)
    cann.put(b, b"b" * SIZE)
    return a, b


def _not_yet() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    cann.faults("stream_op:1:delay=0.5")
    start = time.monotonic()
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert time.monotonic() - start < 0.3, "the call waited for its op"
    assert cann.get(a, SIZE) == b"a" * SIZE, "the copy ran before it was waited for"
    status = ctypes.c_int(-1)
    cann.ok("aclrtStreamQuery", ctypes.c_void_p(stream), ctypes.byref(status))
    assert status.value == 1
    assert cann.wait(stream) == 0
    assert cann.get(a, SIZE) == b"b" * SIZE
    cann.ok("aclrtStreamQuery", ctypes.c_void_p(stream), ctypes.byref(status))
    assert status.value == 0


def test_a_program_that_does_not_wait_reads_old_bytes(child):
    child(_not_yet).result()


def _in_order() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    c = cann.malloc(SIZE)
    stream = cann.stream()
    cann.faults("stream_op:1:delay=0.2")
    assert cann.copy_async(c, SIZE, a, SIZE, D2D, stream) == 0
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    # Into pageable memory: it drains the stream, so it sees both.
    host = ctypes.create_string_buffer(SIZE)
    assert cann.copy_async(ctypes.addressof(host), SIZE, a, SIZE, D2H, stream) == 0
    assert host.raw == b"b" * SIZE
    assert cann.get(c, SIZE) == b"a" * SIZE


def test_ops_of_a_stream_keep_their_order(child):
    child(_in_order).result()


def _pinned() -> None:
    cann = Cann()
    a, _ = _buffers(cann)
    stream = cann.stream()
    pinned = ctypes.c_void_p()
    cann.ok("aclrtMallocHost", ctypes.byref(pinned), ctypes.c_size_t(SIZE))
    cann.faults("stream_op:1:delay=0.3")
    assert cann.copy_async(pinned.value, SIZE, a, SIZE, D2H, stream) == 0
    assert ctypes.string_at(pinned, 1) == b"\0", "a copy into pinned memory was waited for"
    assert cann.wait(stream) == 0
    assert ctypes.string_at(pinned, SIZE) == b"a" * SIZE


def test_a_copy_into_pinned_memory_is_not_waited_for(child):
    child(_pinned).result()


def _across(with_event: bool) -> bytes:
    cann = Cann()
    a, b = _buffers(cann)
    c = cann.malloc(SIZE)
    first, second = cann.stream(), cann.stream()
    cann.faults("stream_op:1:delay=0.4")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, first) == 0
    time.sleep(0.1)  # the delay is for this op
    if with_event:
        event = cann.event()
        cann.ok("aclrtRecordEvent", ctypes.c_void_p(event), ctypes.c_void_p(first))
        cann.ok("aclrtStreamWaitEvent", ctypes.c_void_p(second), ctypes.c_void_p(event))
    assert cann.copy_async(c, SIZE, a, SIZE, D2D, second) == 0
    assert cann.wait(second) == 0
    assert cann.wait(first) == 0
    return cann.get(c, 1)


def test_only_an_event_orders_two_streams(child):
    assert child(_across, True).result() == b"b"
    assert child(_across, False).result() == b"a"


def _timeout() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    event = cann.event()
    cann.faults("stream_op:1:delay=0.5")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    cann.ok("aclrtRecordEvent", ctypes.c_void_p(event), ctypes.c_void_p(stream))
    assert cann.wait(stream, 50) == 507046
    assert cann.call("aclrtSynchronizeEventWithTimeout", ctypes.c_void_p(event), 50) == 507047
    assert cann.call("aclrtSynchronizeDeviceWithTimeout", 50) == 507046
    assert cann.wait(stream) == 0


def test_a_wait_that_is_too_short_says_so_with_the_codes_of_cann(child):
    child(_timeout).result()


def _fails() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    cann.faults("stream_op:1:error=507011")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert cann.wait(stream) == 507011
    assert "injected" in cann.message()
    assert cann.get(a, 1) == b"a"
    assert cann.wait(stream) == 0
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.get(a, 1) == b"b"


def test_an_op_that_fails_makes_the_next_synchronize_fail(child):
    child(_fails).result()


def _abort() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    cann.faults("stream_op:1:stall")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert cann.wait(stream, 100) == 507046
    cann.ok("aclrtStreamAbort", ctypes.c_void_p(stream))
    assert cann.wait(stream) == 107023
    assert cann.get(a, 1) == b"a", "an aborted copy moved bytes"
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    assert cann.wait(stream) == 0


def test_an_abort_drops_the_running_op_and_those_behind_it(child):
    child(_abort).result()


def _force() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    cann.faults("aclrtMemcpyAsync:1:stall")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    cann.ok("aclrtDestroyStreamForce", ctypes.c_void_p(stream))
    assert cann.wait(stream) == 107017


def test_destroy_by_force_does_not_wait_and_the_handle_is_dead(child):
    child(_force).result()


def _other_device() -> None:
    cann = Cann(0)
    stream = cann.stream()
    cann.ok("aclrtSetDevice", 1)
    assert cann.wait(stream) == 107003
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cann.wait(stream)))
    thread.start()
    thread.join()
    assert codes == [107002], "the current device is a thread's own"


def test_a_stream_of_another_device_or_a_thread_without_one_is_refused(child):
    child(_other_device).result()


def _ends_with_work_left() -> None:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    cann.faults("stream_op:*:stall")
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0


def test_a_process_ends_although_a_stream_never_will(child):
    started = child(_ends_with_work_left)
    started.result()
    assert started.exitcode() == 0


def _device_files() -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("kvf-npu-memory" in link for link in links)


def _forks() -> tuple[int, int, int]:
    cann = Cann()
    _buffers(cann)
    stream = cann.stream()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = cann.call("aclrtMalloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64), 0)
        os.write(write, f"{code} {_device_files()}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert cann.wait(stream) == 0
    code, left = os.read(read, 100).split()
    return int(code), int(left), _device_files()


def test_a_forked_child_is_told_no_and_holds_none_of_the_memory(child):
    assert child(_forks).result() == (507000, 0, 2)


def _elapsed() -> float:
    cann = Cann()
    a, b = _buffers(cann)
    stream = cann.stream()
    start, end = cann.event(), cann.event()
    cann.faults("stream_op:2:delay=0.1")
    cann.ok("aclrtRecordEvent", ctypes.c_void_p(start), ctypes.c_void_p(stream))
    assert cann.copy_async(a, SIZE, b, SIZE, D2D, stream) == 0
    cann.ok("aclrtRecordEvent", ctypes.c_void_p(end), ctypes.c_void_p(stream))
    elapsed = ctypes.c_float()
    assert (
        cann.call("aclrtEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(start), ctypes.c_void_p(end))
        == 107006
    )
    cann.ok("aclrtSynchronizeEvent", ctypes.c_void_p(end))
    cann.ok("aclrtEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(start), ctypes.c_void_p(end))
    return elapsed.value


def test_events_tell_the_time_between_them_once_reached(child):
    assert 90 < child(_elapsed).result() < 5000
