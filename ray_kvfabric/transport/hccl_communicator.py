"""One communicator of HCCL and its private stream: batches, the wait for them, an end that leaves nothing moving."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.memory.device import Device
from ray_kvfabric.transport.hccl_library import load_hccl

logger = logging.getLogger(__name__)

LOOK_NS = 20 * 10**6  # between looks at what may have gone wrong with an operation
DESTROY_S, DESTROY_NAP_S = 5.0, 0.005


class Communicator:
    """Two ranks and a private stream. `serial` is the same at both ends, and of no other communicator."""

    def __init__(self, device: Device, handle: int, serial: int) -> None:
        self.device = device
        self.serial = serial
        try:
            self.queue = device.open_queue()
        except BaseException:
            load_hccl().destroy(handle)
            raise
        self._handle = handle
        self._is_at_rest = True
        self._is_closing = False
        self._lock = threading.Lock()

    def batch(self, items: np.ndarray[Any, Any]) -> None:
        with self._open() as handle:
            load_hccl().batch(items, handle, self.queue.handle)

    def settle(self, check: Callable[[], None]) -> None:
        """Until everything enqueued is done. `check` raises when it is not worth waiting any longer."""
        while not self._is_settled():
            check()

    def _is_settled(self) -> bool:
        with self._open() as handle:
            if self.queue.finish(time.monotonic_ns() + LOOK_NS):
                return True
            code = load_hccl().async_error(handle)
        if code:
            raise LLMException(
                f"the communicator broke: {load_hccl().words(code)}", status_code=LLMStatusCode.LLM_FAILED
            )
        return False

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The handle, which nobody closes inside. Raises LLMException (LLM_FAILED) when somebody has."""
        with self._lock:
            if self._is_closing:
                raise LLMException("the communicator was closed meanwhile", status_code=LLMStatusCode.LLM_FAILED)
            yield self._handle

    def close(self) -> bool:
        """Ends what is under way on it; False when HCCL does not let go of it. Idempotent."""
        self._is_closing = True  # whoever waits inside looks up and makes room
        with self._lock:
            handle, self._handle = self._handle, 0
            if handle:
                self._is_at_rest = self._destroy(handle)
            return self._is_at_rest

    def _destroy(self, handle: int) -> bool:
        give_up = Deadline.after(DESTROY_S)
        with self.device.current():
            while not load_hccl().destroy(handle):
                if give_up.passed:
                    logger.warning("HCCL did not let go of a communicator within %g s", DESTROY_S)
                    return False
                time.sleep(DESTROY_NAP_S)
            self.queue.close()
        return True
