"""Transfer: the handle of a started push or pull. TransferTable: those that can still be asked for.

planned -> moving -> landed | failed | cancelled        each reached at most once
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from ray_kvfabric.errors import LLMException, TransferCancelled, TransferTimeout, TransferUnknown
from ray_kvfabric.memory.copy import StopWord
from ray_kvfabric.route import Receipt

logger = logging.getLogger(__name__)


class Transfer:
    """One push or pull on its way. It can be waited for, awaited, asked and cancelled from any thread."""

    def __init__(self, transfer_id: str, future: Future[Receipt], stop: StopWord) -> None:
        self.transfer_id = transfer_id
        self._future = future
        self._stop = stop

    def done(self) -> bool:
        return self._future.done()

    def wait(self, timeout_s: float | None = None) -> Receipt:
        """The receipt, or the transfer's own error.

        None waits as long as the transfer may take, which its own deadline bounds. Raises TransferTimeout when
        `timeout_s` passes first; the transfer then goes on.
        """
        try:
            return self._future.result(timeout_s)
        except CancelledError:
            raise TransferCancelled(f"transfer {self.transfer_id} was cancelled before it moved") from None
        except FutureTimeout as error:
            if isinstance(error, LLMException):
                raise
            raise TransferTimeout(f"transfer {self.transfer_id} is still moving after {timeout_s} s") from None

    def cancel(self) -> bool:
        """Stops it within 4 MiB; False when it had ended. What was written stays written."""
        if self._future.done():
            return False
        self._stop.set()
        self._future.cancel()
        return True

    @property
    def state(self) -> str:
        if not self._future.done():
            return "moving" if self._future.running() else "planned"
        if self._future.cancelled() or isinstance(self._future.exception(), TransferCancelled):
            return "cancelled"
        return "failed" if self._future.exception() else "landed"

    def __await__(self) -> Generator[object, None, Receipt]:
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        return f"<Transfer {self.transfer_id}: {self.state}>"


class TransferTable:
    """Runs started transfers on a few kept threads and keeps their outcomes for `ttl_s`."""

    def __init__(self, threads: int, ttl_s: float) -> None:
        self._threads = threads
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._kept: OrderedDict[str, Transfer] = OrderedDict()
        self._ended: OrderedDict[str, float] = OrderedDict()

    def start(self, transfer_id: str, run: Callable[[StopWord], Receipt], stop: StopWord) -> Transfer:
        """Never blocks. A known id gives the transfer that it already names: a call retried moves nothing twice."""
        with self._lock:
            known = self._kept.get(transfer_id)
            if known is not None:
                return known
            self._forget_old()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="kvfabric-transfer")
            future = self._executor.submit(_run, transfer_id, run, stop)
            transfer = self._kept[transfer_id] = Transfer(transfer_id, future, stop)
        future.add_done_callback(lambda _: self._note_end(transfer_id))
        return transfer

    def find(self, transfer_id: str) -> Transfer:
        """Raises TransferUnknown for an id never seen, or forgotten since."""
        transfer = self._kept.get(transfer_id)
        if transfer is None:
            raise TransferUnknown(f"transfer {transfer_id} is not known here (outcomes are kept {self._ttl_s:g} s)")
        return transfer

    def _note_end(self, transfer_id: str) -> None:
        with self._lock:
            self._ended[transfer_id] = time.monotonic()

    def _forget_old(self) -> None:
        horizon = time.monotonic() - self._ttl_s
        while self._ended and next(iter(self._ended.values())) < horizon:
            transfer_id, _ = self._ended.popitem(last=False)
            self._kept.pop(transfer_id, None)

    def all(self) -> list[Transfer]:
        with self._lock:
            return list(self._kept.values())

    def close(self) -> None:
        """Cancels what has not ended; waits for the threads, which the stop words end within 4 MiB."""
        for transfer in self.all():
            transfer.cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _run(transfer_id: str, run: Callable[[StopWord], Receipt], stop: StopWord) -> Receipt:
    """The outcome is kept for long, so its error must not hold frames, and with them a dead peer's memory."""
    try:
        return run(stop)
    except Exception as error:
        logger.debug("transfer %s failed", transfer_id, exc_info=True)
        failure = error
    failure.__traceback__ = failure.__context__ = None
    raise failure
