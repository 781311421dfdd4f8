"""A double of cuda.bindings.driver over memory of this process. What is enqueued is done when asked for, no sooner.

So a table that is rewritten too early, or a buffer that is freed under a copy, shows in the bytes.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from types import SimpleNamespace
from typing import Any

from tests.gpu.host_kernel import HostKernel

NOT_READY, INVALID_VALUE, CONTEXT, STREAM, EVENT, KERNEL = 600, 1, 11, 22, 33, 44

Word = ctypes.c_uint64
Batch = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 3, ctypes.c_size_t, *[ctypes.c_void_p] * 5)


class HostDriver:
    """Calls answer as the bindings do: a tuple that begins with the code. One stream at a time."""

    class CUresult(IntEnum):
        CUDA_ERROR_INVALID_VALUE = 1
        CUDA_ERROR_ILLEGAL_ADDRESS = 700

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )

    def __init__(self, kernel: HostKernel, *, has_batch: bool = True) -> None:
        self._kernel = kernel
        self._batch = Batch(self._enqueue_batch)
        self._has_batch = has_batch
        self._waiting: list[Callable[[], object]] = []
        self._events = SimpleNamespace(recorded=0, reached=0)
        self._memory: dict[int, Any] = {}
        self.calls: Counter[str] = Counter()
        self.contexts: list[int] = []
        self.is_stuck = False  # nothing enqueued gets done
        self.broken = 0  # the code of every question from now on

    def __getattr__(self, name: str) -> Any:
        """Calls that the queue makes and that need no doing here."""
        if name in ("cuInit", "cuEventDestroy", "cuStreamDestroy"):
            return lambda *arguments: (0,)
        found = {
            "cuDeviceGet": 0,
            "cuDevicePrimaryCtxRetain": CONTEXT,
            "cuStreamCreate": STREAM,
            "cuEventCreate": EVENT,
            "cuModuleLoadData": 55,
            "cuModuleGetFunction": KERNEL,
        }
        return lambda *arguments: (0, found[name])

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, attribute

    def cuCtxPushCurrent(self, context: int) -> tuple[int]:
        self.contexts.append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, int]:
        return 0, self.contexts.pop()

    def cuGetProcAddress(self, symbol: bytes, version: int, flags: int) -> tuple[int, int, int]:
        return 0, (ctypes.cast(self._batch, ctypes.c_void_p).value or 0) if self._has_batch else 0, 0

    def cuGetErrorName(self, code: IntEnum) -> tuple[int, bytes]:
        return 0, code.name.encode()

    def cuGetErrorString(self, code: IntEnum) -> tuple[int, bytes]:
        return 0, b"words of the driver"

    # ---- memory ----------------------------------------------------------------------------------

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> tuple[int, int]:
        buffer = ctypes.create_string_buffer(nbytes)
        self._memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cuMemFreeHost(self, address: int) -> tuple[int]:
        self._scribble(address)
        return (0,)

    def cuMemAllocAsync(self, nbytes: int, stream: int) -> tuple[int, int]:
        return self.cuMemHostAlloc(nbytes, 0)

    def cuMemFreeAsync(self, address: int, stream: int) -> tuple[int]:
        self._waiting.append(lambda: self._scribble(address))
        return (0,)

    def _scribble(self, address: int) -> None:
        """Over memory that was given back: whoever still reads it reads zeros."""
        ctypes.memset(address, 0, len(self._memory[address]))

    # ---- work ------------------------------------------------------------------------------------

    def cuMemcpyAsync(self, target: int, source: int, nbytes: int, stream: int) -> tuple[int]:
        assert self.contexts == [CONTEXT]
        assert abs(target - source) >= nbytes, "the driver copies nothing over itself"
        self.calls["copy"] += 1
        if target == 0:
            return (INVALID_VALUE,)
        self._waiting.append(lambda: ctypes.memmove(target, source, nbytes))
        return (0,)

    def _enqueue_batch(self, *given: Any) -> int:
        """Backwards, as any order is allowed."""
        targets, sources, sizes, count, _, _, _, failed, _ = given
        self.calls["batch"] += 1
        pieces = [[column[index] for column in map(_words, (targets, sources, sizes))] for index in range(count)]
        for index, (target, _, _) in enumerate(pieces):
            if target == 0:
                _words(failed)[0] = index
                return INVALID_VALUE
        self._waiting += [partial(ctypes.memmove, *piece) for piece in reversed(pieces)]
        return 0

    def cuLaunchKernel(self, kernel: int, *given: Any) -> tuple[int]:
        assert (kernel, self.contexts) == (KERNEL, [CONTEXT])
        self.calls["launch"] += 1
        num_blocks, ((table, count), _) = given[0], given[8]
        self._waiting.append(lambda: self._kernel.launch(table, count, num_blocks))
        return (0,)

    def cuStreamQuery(self, stream: int) -> tuple[int]:
        if self.broken:
            return (self.broken,)
        if self._waiting and not self.is_stuck:
            self._waiting.pop(0)()
            return (NOT_READY,)
        return (NOT_READY if self._waiting else 0,)

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        self._events.recorded = recorded = self._events.recorded + 1
        self._waiting.append(lambda: setattr(self._events, "reached", recorded))
        return (0,)

    def cuEventQuery(self, event: int) -> tuple[int]:
        return (0 if self._events.reached == self._events.recorded else NOT_READY,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        """Does what is before the event, and no more."""
        while self._events.reached != self._events.recorded:
            self._waiting.pop(0)()
        return (0,)


def _words(address: int) -> Any:
    return ctypes.cast(address, ctypes.POINTER(Word))
