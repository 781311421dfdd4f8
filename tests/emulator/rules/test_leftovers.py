"""Nothing is left of a process that was killed: no file, no shared memory, no memory held by the survivors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from tests.emulator.rules.cann import HUGE_ONLY, HUGE_PAGE, UINT8, Cann
from tests.emulator.rules.pairs import Rank, pair
from tests.emulator.rules.processes import pipe


def _memfds(pid: int | str) -> set[int]:
    """The inodes of our memfds that a process has open or mapped."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{name}"
            with contextlib.suppress(OSError):
                if "memfd:kvf-" in os.readlink(path):
                    found.add(os.stat(path).st_ino)
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "memfd:kvf-" in line:
                found.add(int(line.split()[4]))
    return found


def _memfds_of_all() -> set[int]:
    return set().union(*(_memfds(pid) for pid in os.listdir("/proc") if pid.isdigit()))


def _links() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return [link for link in links if "kvf" in link]


def _holds_everything(line) -> None:
    cann = Cann(0)
    memory = cann.malloc(64 << 20, HUGE_ONLY)
    cann.ok("aclrtMemset", ctypes.c_void_p(memory), ctypes.c_size_t(64 << 20), 1, ctypes.c_size_t(64 << 20))
    line.send(cann.export(memory, HUGE_PAGE))
    line.send(cann.root())
    comm = cann.join(cann.root(), 1, 0)
    stream = cann.stream()
    cann.batch([(1, memory, 64, UINT8, 0)], comm, stream)  # never served
    line.send("holds all")
    line.recv()


def test_a_killed_process_leaves_nothing_behind(child):
    mine, theirs = pipe()
    held = child(_holds_everything, theirs)
    for _ in range(3):
        mine.recv()
    held_files = _memfds(held.pid)
    assert len(held_files) >= 4  # memory, export, root, rings
    assert held_files <= _memfds_of_all()
    assert "/dev/shm" not in Path(f"/proc/{held.pid}/maps").read_text(), "files with names outlive a process"
    os.kill(held.pid, signal.SIGKILL)
    held.exitcode()
    assert not held_files & _memfds_of_all(), "somebody still holds its memory"


def _dies_with_an_import(key: bytes) -> None:
    Cann(1).bring_in(key)
    os.kill(os.getpid(), signal.SIGKILL)


def _exports(line) -> list[str]:
    cann = Cann(0)
    memory = cann.malloc(HUGE_PAGE, HUGE_ONLY)
    key = cann.export(memory, HUGE_PAGE)
    line.send(key)
    line.recv()
    assert cann.close(key) == 0
    cann.ok("aclrtFree", ctypes.c_void_p(memory))
    return _links()


def test_closed_exports_keep_no_file(child):
    mine, theirs = pipe()
    exporter = child(_exports, theirs)
    child(_dies_with_an_import, mine.recv()).exitcode()
    mine.send("go on")
    assert exporter.result() == []


def _joins_and_leaves(rank: Rank) -> list[str]:
    assert rank.destroy() == [0]
    return _links()


def test_a_communicator_keeps_no_file_open_once_its_ranks_have_met(child):
    for rank in pair(child, _joins_and_leaves, _joins_and_leaves):
        assert rank.result() == []
