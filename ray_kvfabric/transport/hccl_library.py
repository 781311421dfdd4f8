"""The calls of libhccl.so that the fabric makes, through ctypes. Nothing is linked, and torch.distributed is not used.

Structures and values are those of CANN's public HCCL interface; `tests/emulator` checks them against its headers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.memory.device import Pieces
from ray_kvfabric.memory.staging import NBYTES

ROOT_INFO_NBYTES = 4108
AGAIN = 20  # HCCL_E_AGAIN
SEND, RECEIVE = 0, 1
_UINT8 = 7
_NO_UINT32 = 0xFFFFFFFF

ITEM = np.dtype(  # HcclSendRecvItem
    {
        "names": ["type", "buffer", "count", "data_type", "rank"],
        "formats": ["<i4", "<u8", "<u8", "<i4", "<u4"],
        "offsets": [0, 8, 16, 24, 28],
        "itemsize": 32,
    }
)


class CommConfig(ctypes.Structure):
    """HcclCommConfig, version 10; a library of another version reads as much of it as it knows by `size`."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("reserved", ctypes.c_uint64),
        ("buffer_mib", ctypes.c_uint32),
        ("deterministic", ctypes.c_uint32),
        ("name", ctypes.c_char * 128),
        ("udi", ctypes.c_char * 128),
        ("op_expansion_mode", ctypes.c_uint32),
        ("traffic_class", ctypes.c_uint32),
        ("service_level", ctypes.c_uint32),
        ("world_rank", ctypes.c_uint32),
        ("job_id", ctypes.c_uint64),
        ("graph_zero_copy", ctypes.c_uint8),
        ("exec_timeout", ctypes.c_int32),
        ("algorithm", ctypes.c_char * 1600),
        ("retry_enable", ctypes.c_char * 50),
        ("retry_params", ctypes.c_char * 128),
        ("buffer_name", ctypes.c_char * 128),
        ("qos", ctypes.c_uint32),
        ("symmetric_window", ctypes.c_uint64),
    )


def comm_config(buffer_mib: int) -> CommConfig:
    """What HcclCommConfigInit would fill in, and the size of the communicator's buffer."""
    return CommConfig(
        size=ctypes.sizeof(CommConfig),
        magic=0xF0F0F0F0,
        version=10,
        buffer_mib=buffer_mib,
        deterministic=_NO_UINT32,
        traffic_class=_NO_UINT32,
        service_level=_NO_UINT32,
        exec_timeout=-1,
        qos=_NO_UINT32,
        symmetric_window=16,
    )


def items_of(pieces: Pieces, column: int, kind: int, rank: int) -> np.ndarray[Any, Any]:
    """One item a piece: its bytes at the address in `column`, sent to or received from `rank`."""
    items = np.zeros(len(pieces), ITEM)
    items["type"], items["data_type"], items["rank"] = kind, _UINT8, rank
    items["buffer"], items["count"] = pieces[:, column], pieces[:, NBYTES]
    return items


class Hccl:
    """Each call takes the calling thread's current device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.HcclGetErrorString.restype = ctypes.c_char_p
        library.HcclGetErrorString.argtypes = (ctypes.c_int,)
        pointer, u32 = ctypes.c_void_p, ctypes.c_uint32
        library.HcclGetRootInfo.argtypes = (pointer,)
        library.HcclCommInitRootInfoConfig.argtypes = (u32, pointer, u32, pointer, ctypes.POINTER(pointer))
        library.HcclBatchSendRecv.argtypes = (pointer, u32, pointer, pointer)
        library.HcclGetCommAsyncError.argtypes = (pointer, ctypes.POINTER(ctypes.c_int))
        library.HcclCommDestroy.argtypes = (pointer,)

    def root_info(self) -> bytes:
        """By which two ranks find each other; the current process is where they meet."""
        info = ctypes.create_string_buffer(ROOT_INFO_NBYTES)
        self.check(self._library.HcclGetRootInfo(info), "HcclGetRootInfo")
        return info.raw

    def join(self, root_info: bytes, rank: int, buffer_mib: int) -> int:
        """A communicator of two ranks. Blocks until both have come, at most HCCL_CONNECT_TIMEOUT seconds."""
        comm = ctypes.c_void_p()
        info = ctypes.create_string_buffer(root_info, ROOT_INFO_NBYTES)
        config = comm_config(buffer_mib)
        code = self._library.HcclCommInitRootInfoConfig(2, info, rank, ctypes.byref(config), comm)
        self.check(code, "HcclCommInitRootInfoConfig")
        return comm.value or 0

    def batch(self, items: np.ndarray[Any, Any], comm: int, stream: int) -> None:
        """Enqueues all items as one operation."""
        code = self._library.HcclBatchSendRecv(items.ctypes.data, len(items), comm, stream)
        self.check(code, f"HcclBatchSendRecv of {len(items)} items")

    def async_error(self, comm: int) -> int:
        found = ctypes.c_int()
        code = self._library.HcclGetCommAsyncError(comm, found)
        return int(code or found.value)

    def destroy(self, comm: int) -> bool:
        """Ends what is under way on it; False when that has not come to rest yet (HCCL_E_AGAIN as a rule)."""
        return bool(self._library.HcclCommDestroy(comm) == 0)

    def check(self, code: int, what: str) -> None:
        if code:
            raise LLMException(f"{what} failed: {self.words(code)}", status_code=LLMStatusCode.LLM_FAILED)

    def words(self, code: int) -> str:
        told = self._library.HcclGetErrorString(code)
        return f"HCCL code {code} ({told.decode(errors='replace') if told else 'unknown'})"


@cache
def load_hccl() -> Hccl:
    """Raises OSError where CANN is not installed."""
    return Hccl(ctypes.CDLL("libhccl.so"))
