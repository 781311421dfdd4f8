"""The calls of CANN's runtime that the fabric makes itself, through ctypes on libascendcl.so.

torch_npu has loaded the library and initialised ACL by then; what torch does well is left to torch.
"""

from __future__ import annotations

import ctypes
from functools import cache

from ray_kvfabric.errors import LLMException, LLMStatusCode

STREAM_SYNC_TIMEOUT = 507046
FAST_LAUNCH, FAST_SYNC = 1, 2  # of a stream
_MEMORY_ERRORS = {507053, 507054, 507056}  # uncorrectable memory errors

_SIGNATURES = {
    "aclrtCreateStreamWithConfig": (ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint32, ctypes.c_uint32),
    "aclrtDestroyStreamForce": (ctypes.c_void_p,),
    "aclrtSynchronizeStreamWithTimeout": (ctypes.c_void_p, ctypes.c_int32),
    "aclrtMemset": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32, ctypes.c_size_t),
}


class Acl:
    """Each call takes the calling thread's current device."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self.memcpy_async = ctypes.cast(library.aclrtMemcpyAsync, ctypes.c_void_p).value or 0

    def create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self.check(self._library.aclrtCreateStreamWithConfig(stream, 0, FAST_LAUNCH | FAST_SYNC), "a private stream")
        return stream.value or 0

    def destroy_stream(self, stream: int) -> int:
        """With what is still on it given up. The code is for the log."""
        return int(self._library.aclrtDestroyStreamForce(stream))

    def synchronize(self, stream: int, timeout_ms: int) -> bool:
        """False when the time is over first."""
        code = self._library.aclrtSynchronizeStreamWithTimeout(stream, max(timeout_ms, 1))
        if code == STREAM_SYNC_TIMEOUT:
            return False
        self.check(code, "what was enqueued on a private stream")
        return True

    def fill(self, address: int, nbytes: int, value: int) -> None:
        self.check(self._library.aclrtMemset(address, nbytes, value, nbytes), f"setting {nbytes} bytes")

    def check(self, code: int, what: str) -> None:
        """Raises LLMException with the driver's own words for a code that is not 0."""
        if code:
            raise self.error(code, what)

    def error(self, code: int, what: str) -> LLMException:
        status = LLMStatusCode.LLM_DEVICE_MEM_ERROR if code in _MEMORY_ERRORS else LLMStatusCode.LLM_FAILED
        told = self._library.aclGetRecentErrMsg()
        words = told.decode(errors="replace").strip() if told else "no message"
        return LLMException(f"{what} failed on the NPU with code {code}: {words}", status_code=status)


@cache
def load_acl() -> Acl:
    """Raises OSError where CANN is not installed."""
    return Acl(ctypes.CDLL("libascendcl.so"))
