"""Staging: two buffers of the endpoint's device pool, by which host memory meets a peer's device.

    host -> device     window 0: host to buffer 0, buffer 0 to its targets
                       window 1: host to buffer 1, ...        while buffer 0 is on its way
    device -> host     the same, the other way round
The buffers are made at first need and kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ParamInvalid, StillMoving, TransferTimeout
from ray_kvfabric.memory.device import Pieces
from ray_kvfabric.memory.device_pool import ALIGNMENT, DeviceMemory, DevicePool

SOURCE, TARGET, NBYTES = range(3)  # columns of Pieces


class Buffers(NamedTuple):
    """Two, of `nbytes` each."""

    addresses: tuple[int, int]
    nbytes: int


class Staging:
    """One transfer uses the buffers at a time; the others wait their turn."""

    def __init__(self, pool: object, nbytes: int) -> None:
        """`pool` may be none of a device's, or not configured: then there are no buffers."""
        self._pool = pool if isinstance(pool, DevicePool) and pool.budget is not None else None
        self.buffer_nbytes = 0 if self._pool is None else nbytes // 2 // ALIGNMENT * ALIGNMENT
        self._turn = threading.Lock()
        self._memory: DeviceMemory | None = None
        self._addresses: list[int] = []

    @contextmanager
    def lease(self, deadline_ns: int) -> Iterator[Buffers]:
        """Raises TransferTimeout, OutOfMemory, and ParamInvalid without a device pool."""
        if not self._turn.acquire(timeout=max((deadline_ns - time.monotonic_ns()) / 1e9, 0)):
            raise TransferTimeout("the staging buffers stayed in use by other transfers of this endpoint")
        try:
            if self._memory is None:
                self._allocate()
            yield Buffers((self._addresses[0], self._addresses[1]), self.buffer_nbytes)
        except StillMoving:
            self._memory = None  # the device may still use them: they stay with the pool, and with nobody else
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """Gives the buffers back to the pool; waits for nobody."""
        if self._pool is not None and self._memory is not None:
            self._pool.free(self._memory)
            self._memory = None

    def _allocate(self) -> None:
        if self._pool is None:
            raise ParamInvalid("host and device memory meet in a staging buffer, and device_pool is not configured")
        self._memory, self._addresses = self._pool.allocate("the staging buffer", 2, self.buffer_nbytes)


def windows(pieces: Pieces, limit: int) -> Iterator[Pieces]:
    """The pieces in order, cut into windows of at most `limit` bytes; a longer piece is cut."""
    signed = pieces.view(np.int64)
    ends = np.cumsum(signed[:, NBYTES])
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, limit):
        stop = min(begin + limit, total)
        first, last = np.searchsorted(ends, (begin, stop - 1), side="right")
        window = signed[first : last + 1].copy()
        skipped = begin - int(ends[first] - signed[first, NBYTES])
        window[0, :NBYTES] += skipped
        window[0, NBYTES] -= skipped
        window[-1, NBYTES] -= int(ends[last]) - stop
        yield window.view(np.uint64)


def packed(window: Pieces, base: int) -> Pieces:
    """One address a piece, side by side from `base` on: column SOURCE to go out from there, TARGET to come in."""
    signed = window.view(np.int64)
    places: NDArray[np.int64] = signed.copy()
    places[:, SOURCE] = base + np.cumsum(signed[:, NBYTES]) - signed[:, NBYTES]
    places[:, TARGET] = places[:, SOURCE]
    return places.view(np.uint64)


def joined(source: Pieces, target: Pieces) -> Pieces:
    """From the sources of the one to the targets of the other; their sizes are equal."""
    both: Pieces = source.copy()
    both[:, TARGET] = target[:, TARGET]
    return both
