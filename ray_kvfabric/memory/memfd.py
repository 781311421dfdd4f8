"""HostMemory: one memfd mapped shared. No name in the file system, so nothing outlives its last user.

owner   create()     sized, sealed against shrinking (a peer's access cannot fault), every page touched
peer    open_peer()  opened through the owner's descriptor in /proc, proven by its inode
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

from ray_kvfabric.errors import LinkFailed, OutOfMemory, PeerLost

MADV_POPULATE_WRITE = 23  # Linux 5.14; absent from the mmap module


class HostMemory:
    """`nbytes` bytes at `address`, mapped while this object or a view of it lives."""

    __slots__ = ("_map", "address", "fd", "inode", "nbytes")

    def __init__(self, fd: int, mapping: mmap.mmap, *, keep_fd: bool) -> None:
        self._map = mapping
        self.nbytes = len(mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self.inode = os.fstat(fd).st_ino
        self.fd = fd if keep_fd else -1
        if not keep_fd:
            os.close(fd)

    @classmethod
    def create(cls, name: str, nbytes: int, *, huge_pages: bool = False, touch: bool = True) -> HostMemory:
        """New zeroed memory. Raises LLMException (LLM_OUT_OF_MEMORY) when the host has not that much."""
        if touch and nbytes > available_nbytes():
            raise OutOfMemory(f"{name} needs {nbytes} bytes, the host has {available_nbytes()} available")
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, nbytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(fd, nbytes)
            if huge_pages:
                mapping.madvise(mmap.MADV_HUGEPAGE)
            if touch:
                _touch(mapping)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, mapping, keep_fd=True)

    @classmethod
    def open_peer(cls, pid: int, fd: int, inode: int, *, touch: bool = True) -> HostMemory:
        """The memory behind descriptor `fd` of process `pid`. Raises PeerLost when process or memory is gone."""
        path = f"/proc/{pid}/fd/{fd}"
        try:
            own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise PeerLost(f"{path} is gone: the process ended or freed the memory") from None
        except PermissionError as error:
            raise LinkFailed(f"{path} cannot be opened: {error.strerror}") from None
        try:
            found = os.fstat(own)
            if found.st_ino != inode:
                raise PeerLost(f"{path} is inode {found.st_ino}, expected {inode}: the memory was replaced")
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if touch else 0)
            mapping = mmap.mmap(own, found.st_size, flags=flags)
        except BaseException:
            os.close(own)
            raise
        return cls(own, mapping, keep_fd=False)

    def view(self, address: int, nbytes: int) -> memoryview:
        """Writable bytes [address, address + nbytes); keeps the memory mapped."""
        start = address - self.address
        return memoryview(self._map)[start : start + nbytes]

    def holds(self, address: int, nbytes: int) -> bool:
        return self.address <= address and address + nbytes <= self.address + self.nbytes

    def close(self) -> None:
        """Closes the descriptor; the mapping goes with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def available_nbytes() -> int:
    """MemAvailable of the host."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _touch(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(MADV_POPULATE_WRITE)
    except OSError:  # an older kernel
        for offset in range(0, len(mapping), mmap.PAGESIZE):
            mapping[offset] = 0
