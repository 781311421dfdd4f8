"""Doctor's look at the host: limits and permissions of this process, kernel, memory."""

from __future__ import annotations

import mmap
import os
import platform
import re
import resource
import shutil
from pathlib import Path

from ray_kvfabric.cli.findings import Finding
from ray_kvfabric.memory.huge_pages import can_advise, shared_memory_policy
from ray_kvfabric.memory.memfd import MADV_POPULATE_WRITE, available_nbytes
from ray_kvfabric.route import HostId

_PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_PTRACE_MEANING = {
    0: "processes of one user may trace each other",
    1: "a process names who may trace it; the fabric does",
    2: "administrators only",
    3: "nobody",
}


def check_host() -> list[Finding]:
    return [
        _kernel(),
        _pidfd(),
        _populate(),
        _proc(),
        _ptrace(),
        _memlock(),
        _shm(),
        _memory(),
        _huge_pages(),
        Finding("host", "boot id", "ok", HostId.here().boot_id),
    ]


def _kernel() -> Finding:
    release = platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= (5, 14):
        return Finding("host", "Linux", "ok", f"{release} on {platform.machine()}")
    return Finding("host", "Linux", "note", f"{release} on {platform.machine()}", "5.14 or later touches pages faster")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        remedy = "Linux 5.3, and a seccomp profile that allows it"
        return Finding("host", "pidfd_open", "missing", f"fails: {error}", remedy)
    return Finding("host", "pidfd_open", "ok", "a peer's death is noticed at once")


def _populate() -> Finding:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(MADV_POPULATE_WRITE)
        except OSError:
            return Finding("host", "MADV_POPULATE_WRITE", "note", "absent: pages are touched one by one")
    return Finding("host", "MADV_POPULATE_WRITE", "ok", "pages are touched in one call")


def _proc() -> Finding:
    memory = os.memfd_create("kvfabric-doctor", os.MFD_CLOEXEC)
    try:
        os.close(os.open(f"/proc/{os.getpid()}/fd/{memory}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        text = f"/proc/PID/fd cannot be opened: {error.strerror}"
        return Finding("host", "/proc", "missing", text, "mount /proc without hidepid for this user")
    finally:
        os.close(memory)
    return Finding("host", "/proc", "ok", "descriptors of own processes can be opened")


def _ptrace() -> Finding:
    try:
        scope = int(_PTRACE_SCOPE.read_text())
    except (OSError, ValueError):
        return Finding("host", "ptrace_scope", "ok", "Yama is absent: nothing is asked")
    text = f"{scope}: {_PTRACE_MEANING.get(scope, 'unknown')}"
    if scope <= 1:
        return Finding("host", "ptrace_scope", "ok", text)
    return Finding("host", "ptrace_scope", "note", text, f"process_vm needs 0 or 1 in {_PTRACE_SCOPE}")


def _memlock() -> Finding:
    soft, hard = (_limit(value) for value in resource.getrlimit(resource.RLIMIT_MEMLOCK))
    return Finding("host", "memlock", "ok", f"{soft} (at most {hard}); host transports lock nothing")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value / 2**20:g} MiB"


def _shm() -> Finding:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("host", "/dev/shm", "note", "absent: Ray's object store wants it; the fabric puts nothing there")
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free; for Ray's object store only"
    return Finding("host", "/dev/shm", "ok", text)


def _memory() -> Finding:
    return Finding("host", "memory", "ok", f"{available_nbytes() / 2**30:.1f} GiB available for caches")


def _huge_pages() -> Finding:
    policy = shared_memory_policy()
    use = "caches ask for them" if can_advise(policy) else "caches get 4 KiB pages"
    return Finding("host", "huge pages", "ok", f"shared memory: {policy}; {use}")
