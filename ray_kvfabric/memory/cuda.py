"""A CUDA GPU: torch for memory and events, the driver itself for private streams, one kernel for all pieces."""

from __future__ import annotations

import ctypes
import time
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import LLMException
from ray_kvfabric.memory.cuda_driver import NOT_READY, SUCCESS, CudaDriver, open_driver
from ray_kvfabric.memory.cuda_kernel import THREADS, WORDS_A_PIECE, independent, moving, write_table
from ray_kvfabric.memory.device import Direction, Pieces, Queue
from ray_kvfabric.memory.torch_device import TorchDevice

# From so many bytes a piece on, plain copies go instead of the kernel; None: never. tests/gpu/measure.py compares them.
PLAIN_COPY_FROM_NBYTES: int | None = None

SPIN_NS = 200_000  # asked without a nap at first: the shortest nap takes the host's timer slack of 50 us besides
_FIRST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3
_NAP_PART = 8  # a nap is so much of the time waited so far, so that an end is noticed 1/8 late at most
_FIRST_WORDS = 4096 * WORDS_A_PIECE
_NON_BLOCKING = 1  # of a stream: it waits for no work of the legacy default stream
_NO_TIMING = 2  # of an event
_IN_STREAM_ORDER = 1  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM, first word of CUmemcpyAttributes


class _Table:
    """The kernel's table: a pinned buffer here, its twin on the device, and an event that says when it has arrived.

    Both grow. Memory of the device comes and goes in the stream's order, so that nothing waits for a kernel.
    """

    def __init__(self, driver: CudaDriver, stream: Any) -> None:
        self._driver, self._api, self._stream = driver, driver.api, stream
        self._arrived = driver.check(self._api.cuEventCreate(_NO_TIMING), "an event")
        self._pinned: Any = None
        self._words: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.on_device = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """uint64 [count] to be filled, once the former table has left it."""
        self._driver.check(self._api.cuEventSynchronize(self._arrived), "an earlier table of pieces")
        if count > len(self._words):
            self._free()
            self._allocate(max(_FIRST_WORDS, 1 << (count - 1).bit_length()))
        return self._words[:count]

    def _allocate(self, count: int) -> None:
        nbytes = count * ctypes.sizeof(ctypes.c_uint64)
        self._pinned = self._driver.check(self._api.cuMemHostAlloc(nbytes, 0), "pinned memory for a table of pieces")
        self._words = np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(int(self._pinned)))
        self.on_device = int(self._driver.check(self._api.cuMemAllocAsync(nbytes, self._stream), "a table of pieces"))

    def send(self, words: NDArray[np.uint64]) -> None:
        """Enqueues its way to the device."""
        copy = self._api.cuMemcpyAsync(self.on_device, int(self._pinned), words.nbytes, self._stream)
        self._driver.check(copy, "sending a table of pieces")
        self._driver.check(self._api.cuEventRecord(self._arrived, self._stream), "an event")

    def _free(self) -> None:
        self._words = np.empty(0, np.uint64)
        if self.on_device:
            self._api.cuMemFreeAsync(self.on_device, self._stream)
            self._api.cuMemFreeHost(self._pinned)
        self.on_device = 0

    def close(self) -> None:
        """Where a table is still on its way, the device is late for good: its pinned buffer is left to it."""
        if int(self._api.cuEventQuery(self._arrived)[0]) != NOT_READY:
            self._free()
        self._api.cuEventDestroy(self._arrived)


class CudaQueue(Queue):
    """A stream that torch does not know, so that giving it up takes nothing else with it."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver, self._api = driver, driver.api
        with driver.current():
            self._stream = driver.check(self._api.cuStreamCreate(_NON_BLOCKING), "a private stream")
            self._table = _Table(driver, self._stream)
        self._is_open = True
        self.num_launches = 0

    @property
    def handle(self) -> int:
        return int(self._stream)

    def copy(self, pieces: Pieces, direction: Direction) -> None:
        """One launch for pieces inside, one call for others; pieces that depend on each other go one by one."""
        pieces = moving(pieces)
        if len(pieces) == 0:
            return
        with self._driver.current():
            if not independent(pieces):
                self._copy_in_order(pieces, direction)
            elif direction is Direction.INSIDE and not _are_large(pieces):
                self._launch(pieces)
            elif len(pieces) > 1 and (batch := self._driver.batch) is not None:
                self._copy_batch(batch, pieces, direction)
            else:
                self._copy_in_order(pieces, direction)

    def _launch(self, pieces: Pieces) -> None:
        kernel, count = self._driver.kernel, len(pieces)
        words = self._table.words(WORDS_A_PIECE * count)
        num_tiles = write_table(pieces, words)
        self._table.send(words)
        arguments = (self._table.on_device, count), (ctypes.c_uint64, ctypes.c_uint32)
        launch = self._api.cuLaunchKernel(kernel, num_tiles, 1, 1, THREADS, 1, 1, 0, self._stream, arguments, 0)
        self._driver.check(launch, "launching the copy kernel")
        self.num_launches += 1

    def _copy_batch(self, batch: Any, pieces: Pieces, direction: Direction) -> None:
        """The driver takes a batch in any order: `pieces` are independent."""
        source, target, nbytes = np.ascontiguousarray(pieces.T)
        attributes, first = np.array([_IN_STREAM_ORDER, 0, 0, 0, 0, 0], np.uint32), np.zeros(1, np.uint64)
        failed = np.zeros(1, np.uint64)
        what = target.ctypes.data, source.ctypes.data, nbytes.ctypes.data, len(pieces)
        code = batch(*what, attributes.ctypes.data, first.ctypes.data, 1, failed.ctypes.data, self.handle)
        if code != SUCCESS:
            raise self._driver.error(code, _named(pieces[min(int(failed[0]), len(pieces) - 1)], direction))

    def _copy_in_order(self, pieces: Pieces, direction: Direction) -> None:
        """One call a piece, and the stream's order between them."""
        copy, stream = self._api.cuMemcpyAsync, self._stream
        for index, (source, target, nbytes) in enumerate(pieces.tolist()):
            if abs(source - target) < nbytes:
                self._move_over_itself(source, target, nbytes)
                continue
            [code] = copy(target, source, nbytes, stream)
            if int(code):
                raise self._driver.error(int(code), _named(pieces[index], direction))

    def _move_over_itself(self, source: int, target: int, nbytes: int) -> None:
        """As memmove would, by way of memory that lives in the stream."""
        what = f"moving {nbytes} bytes from {source:#x} to {target:#x}"
        between = self._driver.check(self._api.cuMemAllocAsync(nbytes, self._stream), what)
        self._driver.check(self._api.cuMemcpyAsync(between, source, nbytes, self._stream), what)
        self._driver.check(self._api.cuMemcpyAsync(target, between, nbytes, self._stream), what)
        self._driver.check(self._api.cuMemFreeAsync(between, self._stream), what)

    def finish(self, deadline_ns: int) -> bool:
        """By questions, as the driver has no wait with a limit: at once, then at growing distances."""
        start = time.monotonic_ns()
        with self._driver.current():
            while not self._is_idle():
                now = time.monotonic_ns()
                if now >= deadline_ns:
                    return False
                if now - start > SPIN_NS:
                    nap_s = min(max((now - start) / _NAP_PART / 1e9, _FIRST_NAP_S), _LONGEST_NAP_S)
                    time.sleep(min(nap_s, (deadline_ns - now) / 1e9))
        return True

    def _is_idle(self) -> bool:
        code = int(self._api.cuStreamQuery(self._stream)[0])
        if code not in (SUCCESS, NOT_READY):
            raise self._driver.error(code, "what was enqueued on a private stream")
        return code == SUCCESS

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(LLMException), self._driver.current():  # what broke the device was said where it broke
                self._table.close()
                self._api.cuStreamDestroy(self._stream)


def _are_large(pieces: Pieces) -> bool:
    return PLAIN_COPY_FROM_NBYTES is not None and int(pieces[:, 2].min()) >= PLAIN_COPY_FROM_NBYTES


def _named(piece: NDArray[np.uint64], direction: Direction) -> str:
    source, target, nbytes = piece.tolist()
    return f"copying {nbytes} bytes from {source:#x} to {target:#x} ({direction.name})"


class CudaDevice(TorchDevice):
    """`import torch` has happened, and it finds the GPU."""

    kind = "cuda"
    granule = 1  # the kernel chooses its loads and stores by each piece's alignment
    share_names = ("_share_cuda_", "_new_shared_cuda", "_release_ipc_counter_cuda")

    def open_queue(self) -> Queue:
        with self.current():
            return CudaQueue(open_driver(self.index))
