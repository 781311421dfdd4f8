"""Memory shared between processes: keys, alignment, who may import, closing order, what a copy may do with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

import pytest

from tests.emulator.rules.cann import (
    BY_ADDRESS,
    D2D,
    D2H,
    H2D,
    HUGE_ONLY,
    HUGE_PAGE,
    KEY_BYTES,
    NORMAL_ONLY,
    Cann,
    CannError,
)
from tests.emulator.rules.processes import pipe

SIZE = HUGE_PAGE


def _export_refusals() -> None:
    cann = Cann()
    big, small = cann.malloc(2 * HUGE_PAGE, HUGE_ONLY), cann.malloc(3 * 4096, NORMAL_ONLY)
    key = ctypes.create_string_buffer(KEY_BYTES + 1)

    def export(address: int, size: int, length: int = KEY_BYTES, flags: int = 1) -> int:
        arguments = (
            ctypes.c_void_p(address),
            ctypes.c_size_t(size),
            key,
            ctypes.c_size_t(length),
            ctypes.c_uint64(flags),
        )
        return cann.call("aclrtIpcMemGetExportKey", *arguments)

    assert export(big, HUGE_PAGE, length=64) == 107000
    assert export(big, HUGE_PAGE, length=66) == 107000
    assert export(big, 4096) == 107008, "huge pages are shared whole"
    assert export(big + 4096, HUGE_PAGE) == 107008
    assert export(small, 100) == 107008
    assert export(small + 64, 4096) == 107008
    assert export(small, 4 * 4096) == 107000, "more than was allocated"
    assert export(big, HUGE_PAGE, flags=4) == 107000
    assert export(ctypes.addressof(key), 4096) == 107000
    assert export(small, 4096) == 0
    assert export(big + HUGE_PAGE, HUGE_PAGE) == 0


def test_a_key_of_another_length_or_memory_off_its_pages_is_not_exported(child):
    child(_export_refusals).result()


def _exporter(line, flags: int, device: int, allow: str) -> None:
    cann = Cann(device)
    address = cann.malloc(SIZE, HUGE_ONLY)
    cann.put(address, b"e" * SIZE)
    key = cann.export(address, SIZE, flags)
    if allow == "importer":
        pid = ctypes.c_int32(line.recv())
        cann.ok("aclrtIpcMemSetImportPid", key, ctypes.byref(pid), ctypes.c_size_t(1))
    elif allow == "somebody else":
        line.recv()
        cann.ok("aclrtIpcMemSetImportPid", key, ctypes.byref(ctypes.c_int32(1)), ctypes.c_size_t(1))
    line.send(key)
    while True:
        order = line.recv()
        if order == "close":
            line.send(cann.close(key))
        elif order == "free":
            line.send(cann.call("aclrtFree", ctypes.c_void_p(address)))
        elif order == "read":
            line.send(cann.get(address, 4096))
        else:
            return


def _ask(line, order: str):
    line.send(order)
    return line.recv()


@contextlib.contextmanager
def _exported(child, importer, *args, flags: int = 1, device: int = 0, allow: str = ""):
    mine, theirs = pipe()
    exporter = child(_exporter, theirs, flags, device, allow)
    yield child(importer, mine, *args), exporter


def _reads_and_writes(line) -> None:
    cann = Cann(1)
    key = line.recv()
    address = cann.bring_in(key)
    own = cann.malloc(4096)
    stream = cann.stream()
    assert cann.copy_async(own, 4096, address, 4096, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.get(own, 4096) == b"e" * 4096
    cann.put(own, b"i" * 4096)
    assert cann.copy_async(address, SIZE, own, 4096, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert _ask(line, "read") == b"i" * 4096
    assert cann.copy_async(address + SIZE - 64, 128, own, 128, D2D, stream) != 0, "past the end of the import"
    assert cann.close(key) == 0
    assert cann.copy_async(own, 4096, address, 4096, D2D, stream) != 0, "after the close"
    assert cann.close(key) != 0
    assert _ask(line, "close") == 0
    line.send("end")


def test_an_importer_reads_and_writes_the_exporters_memory_until_it_closes(child):
    with _exported(child, _reads_and_writes) as (importer, exporter):
        importer.result()
        exporter.result()


def _breaks_copy_rules(line) -> None:
    cann = Cann(1)
    address = cann.bring_in(line.recv())
    host = ctypes.create_string_buffer(b"h" * 4096, 4096)
    own = cann.malloc(4096)
    stream = cann.stream()
    here = ctypes.addressof(host)
    assert cann.copy(address, SIZE, here, 4096, H2D) != 0
    assert cann.copy(here, 4096, address, 4096, D2H) != 0
    assert cann.copy_async(here, 4096, address, 4096, D2H, stream) != 0
    assert cann.copy_async(address, SIZE, own, 4096, BY_ADDRESS, stream) != 0, "the direction must be said"
    assert cann.copy(address, SIZE, address + 8192, 4096, D2D) != 0, "blocking, inside the other device"
    assert cann.copy_async(address, SIZE, address + 8192, 4096, D2D, stream) == 0
    assert _ask(line, "read") == b"e" * 4096
    line.send("end")


def test_host_copies_of_memory_imported_from_another_device_are_refused(child):
    with _exported(child, _breaks_copy_rules) as (importer, _):
        importer.result()


def _without_peer_access(line) -> None:
    cann = Cann(1)
    address = cann.bring_in(line.recv(), flags=0)
    own = cann.malloc(4096)
    assert cann.copy_async(own, 4096, address, 4096, D2D, cann.stream()) == 207006
    line.send("end")


def test_an_import_without_the_peer_access_flag_cannot_be_copied(child):
    with _exported(child, _without_peer_access) as (importer, _):
        importer.result()


def _closes_too_early(line) -> None:
    cann = Cann(1)
    key = line.recv()
    cann.bring_in(key)
    assert _ask(line, "close") != 0
    assert _ask(line, "free") != 0
    assert cann.close(key) == 0
    cann.bring_in(key)  # the close that was refused changed nothing
    assert cann.close(key) == 0
    assert _ask(line, "free") == 0
    with pytest.raises(CannError):
        cann.bring_in(key)
    line.send("end")


def test_an_exporter_that_closes_or_frees_before_its_importers_gets_an_error(child):
    with _exported(child, _closes_too_early) as (importer, _):
        importer.result()


def _imports_and_dies(key: bytes) -> None:
    Cann(1).bring_in(key)
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_importer_that_died_does_not_keep_the_exporter_from_closing(child):
    mine, theirs = pipe()
    child(_exporter, theirs, 1, 0, "")
    dead = child(_imports_and_dies, mine.recv())
    assert dead.exitcode() == -signal.SIGKILL
    assert _ask(mine, "close") == 0
    mine.send("end")


def _import_code(line, flags: int = 1) -> int:
    cann = Cann(1)
    line.send(os.getpid())
    key = line.recv()
    try:
        cann.bring_in(key, flags)
    except CannError as error:
        return error.code
    finally:
        line.send("end")
    return 0


@pytest.mark.parametrize(("allow", "code"), [("importer", 0), ("somebody else", 207006)])
def test_a_process_that_is_not_on_the_list_cannot_import(child, allow, code):
    with _exported(child, _import_code, flags=0, allow=allow) as (importer, _):
        assert importer.result() == code


def _imports_its_own() -> int:
    cann = Cann()
    key = cann.export(cann.malloc(SIZE, HUGE_ONLY), SIZE)
    with pytest.raises(CannError) as refused:
        cann.bring_in(key)
    return refused.value.code


def test_a_process_cannot_import_its_own_key(child):
    assert child(_imports_its_own).result() == 107000


def _outlives(line) -> None:
    cann = Cann(1)
    key = line.recv()
    address = cann.bring_in(key)
    line.send("end")
    pid = int(key.split()[1])
    while os.path.exists(f"/proc/{pid}/fd/0"):
        pass
    own = cann.malloc(4096)
    stream = cann.stream()
    assert cann.copy_async(own, 4096, address, 4096, D2D, stream) == 0
    assert cann.wait(stream) == 0
    assert cann.get(own, 1) == b"e"
    assert cann.close(key) == 0
    with pytest.raises(CannError):
        cann.bring_in(key)


def test_a_mapping_outlives_its_exporter_but_a_new_import_fails(child):
    with _exported(child, _outlives) as (importer, _):
        importer.result()


def _forged() -> None:
    cann = Cann()
    for key in (b"\0" * 65, b"x" * 65, b"kvf 1 2 3 4".ljust(65, b"\0")):
        with pytest.raises(CannError):
            cann.bring_in(key)


def test_bytes_that_are_no_key_are_refused(child):
    child(_forged).result()
