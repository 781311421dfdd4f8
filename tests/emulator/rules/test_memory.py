"""Device memory: a buffer that is not live, out of bounds, on the wrong side or unaligned is refused."""

from __future__ import annotations

import ctypes
import signal

import pytest

from tests.emulator.rules.cann import (
    BY_ADDRESS,
    D2D,
    D2H,
    H2D,
    HUGE_FIRST,
    HUGE_ONLY,
    HUGE_PAGE,
    NORMAL_ONLY,
    Cann,
    CannError,
)
from tests.emulator.rules.processes import ChildDied

KIB = 1 << 10


def _device_bytes_survive() -> None:
    cann = Cann()
    address = cann.malloc(10 * KIB)
    cann.put(address, bytes(range(256)) * 40)
    other = cann.malloc(10 * KIB)
    stream = cann.stream()
    assert cann.copy_async(other, 10 * KIB, address, 10 * KIB, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.get(other, 10 * KIB) == bytes(range(256)) * 40


def test_bytes_come_back_through_two_device_buffers(child):
    child(_device_bytes_survive).result()


def _refusals() -> None:
    cann = Cann()
    stream = cann.stream()
    a, b = cann.malloc(4 * KIB), cann.malloc(4 * KIB)
    host = ctypes.create_string_buffer(8 * KIB)
    cann.put(b, b"b" * 4 * KIB)
    h = ctypes.addressof(host)
    wrong = {
        "past the end of the target": (a + 4 * KIB - 64, 128, b, 128, D2D),
        "past the end of the source": (a, 4 * KIB, b + 64, 4 * KIB, D2D),
        "a target never allocated": (a + (1 << 30), 64, b, 64, D2D),
        "more than the room": (a, 32, b, 64, D2D),
        "host as device source": (a, 64, h, 64, D2D),
        "device as host source": (a, 64, b, 64, H2D),
        "device as host target": (a, 64, b, 64, D2H),
        "host target, device-to-device": (h, 64, b, 64, D2D),
        "no bytes": (a, 64, b, 0, D2D),
        "an unknown kind": (a, 64, b, 64, 9),
        "null": (0, 64, b, 64, D2D),
    }
    before = cann.get(a, 4 * KIB)
    for what, (to, room, source, count, kind) in wrong.items():
        assert cann.copy(to, room, source, count, kind) != 0, what
        assert cann.message(), what
        assert cann.copy_async(to, room, source, count, kind, stream) != 0, what
    assert cann.wait(stream) == 0
    assert cann.get(a, 4 * KIB) == before


def test_a_buffer_out_of_bounds_or_on_the_wrong_side_is_refused(child):
    child(_refusals).result()


def _unaligned() -> None:
    cann = Cann()
    stream = cann.stream()
    a, b = cann.malloc(KIB), cann.malloc(KIB)
    assert cann.copy_async(a + 32, 64, b, 64, D2D, stream) == 107008
    assert cann.copy_async(a, 64, b + 8, 64, D2D, stream) == 107008
    assert cann.copy_async(a + 64, 64, b + 128, 64, D2D, stream) == 0
    assert cann.wait(stream) == 0


def test_an_asynchronous_device_copy_off_64_bytes_is_refused(child):
    child(_unaligned).result()


def _freed() -> None:
    cann = Cann()
    a, b = cann.malloc(KIB), cann.malloc(KIB)
    cann.ok("aclrtFree", ctypes.c_void_p(a))
    assert cann.call("aclrtFree", ctypes.c_void_p(a)) != 0
    assert cann.call("aclrtFree", ctypes.c_void_p(b + 64)) != 0
    assert cann.copy(a, KIB, b, KIB, D2D) != 0


def test_freed_memory_is_gone_and_freeing_twice_is_an_error(child):
    child(_freed).result()


def _freed_while_queued() -> None:
    cann = Cann()
    stream = cann.stream()
    a, b = cann.malloc(KIB), cann.malloc(KIB)
    cann.faults("stream_op:1:delay=0.3")
    assert cann.copy_async(a, KIB, b, KIB, D2D, stream) == 0
    cann.ok("aclrtFree", ctypes.c_void_p(b))
    assert cann.wait(stream) == 507053
    assert "freed" in cann.message()
    assert cann.wait(stream) == 0  # told once


def test_memory_freed_under_a_queued_copy_fails_the_stream(child):
    child(_freed_while_queued).result()


def _dereference(write: bool) -> None:
    address = Cann().malloc(4 * KIB)
    if write:
        ctypes.memset(address, 1, 1)
    else:
        ctypes.string_at(address, 1)


@pytest.mark.parametrize("write", [False, True])
def test_host_code_that_dereferences_a_device_pointer_dies(child, write):
    with pytest.raises(ChildDied) as died:
        child(_dereference, write).result()
    assert died.value.exitcode == -signal.SIGSEGV


def _limit() -> None:
    cann = Cann()
    cann.malloc(48 << 20)
    with pytest.raises(CannError) as full:
        cann.malloc(32 << 20)
    assert full.value.code == 207001
    kept = cann.malloc(16 << 20)
    cann.ok("aclrtFree", ctypes.c_void_p(kept))
    cann.malloc(16 << 20)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    cann.ok("aclrtGetMemInfo", 1, ctypes.byref(free), ctypes.byref(total))
    assert (free.value, total.value) == (0, 64 << 20)


def test_memory_past_the_device_is_refused_and_freed_memory_counts_again(child):
    child(_limit, KVFABRIC_EMULATED_HBM=str(64 << 20)).result()


def _pages() -> None:
    cann = Cann()
    assert cann.malloc(3 << 20, HUGE_FIRST) % HUGE_PAGE == 0
    assert cann.malloc(4 * KIB, HUGE_ONLY) % HUGE_PAGE == 0
    assert cann.malloc(4 * KIB, NORMAL_ONLY) % 4096 == 0
    assert cann.call("aclrtMalloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(0), HUGE_FIRST) != 0


def test_huge_policies_give_huge_pages(child):
    child(_pages).result()


def _no_device() -> None:
    cann = Cann(device=None)
    assert cann.call("aclrtMalloc", ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(64), 0) == 107002
    assert cann.call("aclrtCreateStream", ctypes.byref(ctypes.c_void_p())) == 107002


def test_a_thread_without_a_device_can_do_nothing(child):
    child(_no_device).result()


def _default_kind() -> None:
    cann = Cann()
    a = cann.malloc(KIB)
    host = ctypes.create_string_buffer(b"x" * KIB, KIB)
    assert cann.copy(a, KIB, ctypes.addressof(host), KIB, BY_ADDRESS) == 0
    assert cann.get(a, KIB) == b"x" * KIB


def test_the_direction_can_be_left_to_the_addresses(child):
    child(_default_kind).result()


def _other_device() -> None:
    cann = Cann(1)
    far = cann.malloc(KIB)
    cann.put(far, b"f" * KIB)
    cann.ok("aclrtSetDevice", 0)
    stream = cann.stream()
    near = cann.malloc(KIB)
    assert cann.copy_async(near, KIB, far, KIB, D2D, stream) == 207006
    cann.ok("aclrtDeviceEnablePeerAccess", 1, 0)
    assert cann.copy_async(near, KIB, far, KIB, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.get(near, KIB) == b"f" * KIB


def test_a_copy_between_devices_without_peer_access_is_refused(child):
    child(_other_device).result()
