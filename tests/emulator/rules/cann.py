"""The emulated libraries through ctypes, as a process that was started with them would call them."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path

H2D, D2H, D2D, BY_ADDRESS = 1, 2, 3, 4
HUGE_FIRST, HUGE_ONLY, NORMAL_ONLY = 0, 1, 2
SEND, RECV = 0, 1
INT8, INT32, UINT8 = 0, 2, 7
KEY_BYTES = 65
HUGE_PAGE = 2 << 20

REPOSITORY = Path(__file__).resolve().parents[3]


def folder() -> Path:
    return Path(os.environ.get("KVFABRIC_CANN", REPOSITORY / "build" / "cann"))


class RootInfo(ctypes.Structure):
    _fields_ = [("opaque", c_char * 4108)]


class Item(ctypes.Structure):
    _fields_ = [
        ("direction", c_int),
        ("buffer", c_void_p),
        ("count", c_uint64),
        ("type", c_int),
        ("peer", c_uint32),
    ]


class Config(ctypes.Structure):
    """The head and the buffer size of HcclCommConfig; the rest is bytes."""

    _fields_ = [
        ("size", c_size_t),
        ("magic", c_uint32),
        ("version", c_uint32),
        ("reserved", c_uint64),
        ("buffer_megabytes", c_uint32),
        ("deterministic", c_uint32),
        ("name", c_char * 128),
        ("middle", c_char * 156),
        ("exec_timeout", c_int32),
        ("rest", c_char * 1920),
    ]

    @classmethod
    def initialised(cls, buffer_megabytes: int = 0xFFFFFFFF) -> Config:
        return cls(2240, 0xF0F0F0F0, 10, 0, buffer_megabytes, 0xFFFFFFFF, exec_timeout=-1)


class CannError(Exception):
    def __init__(self, call: str, code: int, message: str) -> None:
        super().__init__(call, code, message)
        self.code = code


class Cann:
    """One process's libraries. Calls by name give the raw code; the methods below raise."""

    def __init__(self, device: int | None = 0) -> None:
        self.acl = ctypes.CDLL(str(folder() / "libascendcl.so"), mode=ctypes.RTLD_GLOBAL)
        self.hccl = ctypes.CDLL(str(folder() / "libhccl.so"), mode=ctypes.RTLD_GLOBAL)
        self.acl.aclGetRecentErrMsg.restype = c_char_p
        if device is not None:
            self.ok("aclrtSetDevice", device)

    def call(self, name: str, *args: object) -> int:
        library = self.hccl if name.startswith("Hccl") else self.acl
        return getattr(library, name)(*args)

    def message(self) -> str:
        return self.acl.aclGetRecentErrMsg().decode()

    def ok(self, name: str, *args: object) -> None:
        code = self.call(name, *args)
        if code:
            raise CannError(name, code, self.message())

    # memory

    def malloc(self, size: int, policy: int = HUGE_FIRST) -> int:
        address = c_void_p()
        self.ok("aclrtMalloc", ctypes.byref(address), c_size_t(size), policy)
        assert address.value is not None
        return address.value

    def copy(self, to: int, room: int, source: int, count: int, kind: int) -> int:
        return self.call("aclrtMemcpy", c_void_p(to), c_size_t(room), c_void_p(source), c_size_t(count), kind)

    def copy_async(self, to: int, room: int, source: int, count: int, kind: int, stream: int) -> int:
        sizes = c_size_t(room), c_size_t(count)
        return self.call("aclrtMemcpyAsync", c_void_p(to), sizes[0], c_void_p(source), sizes[1], kind, c_void_p(stream))

    def put(self, address: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        assert self.copy(address, len(data), ctypes.addressof(buffer), len(data), H2D) == 0, self.message()

    def get(self, address: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        assert self.copy(ctypes.addressof(buffer), size, address, size, D2H) == 0, self.message()
        return buffer.raw

    # streams

    def stream(self) -> int:
        handle = c_void_p()
        self.ok("aclrtCreateStreamWithConfig", ctypes.byref(handle), 0, 0)
        assert handle.value is not None
        return handle.value

    def event(self, flags: int = 8) -> int:
        handle = c_void_p()
        self.ok("aclrtCreateEventExWithFlag", ctypes.byref(handle), flags)
        assert handle.value is not None
        return handle.value

    def wait(self, stream: int, milliseconds: int = 20000) -> int:
        return self.call("aclrtSynchronizeStreamWithTimeout", c_void_p(stream), milliseconds)

    # IPC

    def export(self, address: int, size: int, flags: int = 1) -> bytes:
        key = ctypes.create_string_buffer(KEY_BYTES)
        self.ok("aclrtIpcMemGetExportKey", c_void_p(address), c_size_t(size), key, c_size_t(KEY_BYTES), c_uint64(flags))
        return key.raw

    def bring_in(self, key: bytes, flags: int = 1) -> int:
        address = c_void_p()
        self.ok("aclrtIpcMemImportByKey", ctypes.byref(address), key, c_uint64(flags))
        assert address.value is not None
        return address.value

    def close(self, key: bytes) -> int:
        return self.call("aclrtIpcMemClose", key)

    # HCCL

    def root(self) -> bytes:
        root = RootInfo()
        self.ok("HcclGetRootInfo", ctypes.byref(root))
        return bytes(root)

    def try_join(self, root: bytes, ranks: int, rank: int, config: Config | None = None) -> tuple[int, int]:
        comm = c_void_p()
        info = RootInfo.from_buffer_copy(root)
        if config is None:
            code = self.call("HcclCommInitRootInfo", ranks, ctypes.byref(info), rank, ctypes.byref(comm))
        else:
            arguments = ranks, ctypes.byref(info), rank, ctypes.byref(config), ctypes.byref(comm)
            code = self.call("HcclCommInitRootInfoConfig", *arguments)
        return code, comm.value or 0

    def join(self, root: bytes, ranks: int, rank: int, config: Config | None = None) -> int:
        code, comm = self.try_join(root, ranks, rank, config)
        if code:
            raise CannError("HcclCommInitRootInfo", code, self.message())
        return comm

    def move(self, name: str, buffer: int, count: int, kind: int, peer: int, comm: int, stream: int) -> int:
        return self.call(name, c_void_p(buffer), c_uint64(count), kind, peer, c_void_p(comm), c_void_p(stream))

    def batch(self, items: list[tuple[int, int, int, int, int]], comm: int, stream: int) -> int:
        array = (Item * len(items))(*items)
        return self.call("HcclBatchSendRecv", array, len(items), c_void_p(comm), c_void_p(stream))

    def async_error(self, comm: int) -> int:
        error = c_int(-1)
        self.ok("HcclGetCommAsyncError", c_void_p(comm), ctypes.byref(error))
        return error.value

    def destroy(self, comm: int) -> int:
        return self.call("HcclCommDestroy", c_void_p(comm))

    def faults(self, spec: str) -> None:
        assert self.acl.kvf_emulator_set_faults(spec.encode()) == 0, spec
