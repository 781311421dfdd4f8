"""Transfer: the handle of a started push or pull. TransferTable: those that can still be asked for.

planned -> moving -> landed | failed | cancelled        each reached at most once
A planned one waits in the gate's queue and holds no thread; a moving one that gave way holds its own.
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
from contextlib import suppress
from dataclasses import dataclass, field

from ray_kvfabric.cache.html_table import html_table
from ray_kvfabric.endpoint.gate import Caller, Gate
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import LLMException, QueueFull, TransferCancelled, TransferTimeout, TransferUnknown
from ray_kvfabric.memory.copy import StopWord
from ray_kvfabric.route import Receipt

logger = logging.getLogger(__name__)

Run = Callable[[StopWord, Turn], Receipt]
GiveUp = Callable[[LLMException], None]

_AS_MANY_AS_ADMITTED = 2**31  # threads: the gate lets so few transfers begin that none waits for one


class Transfer:
    """One push or pull on its way. It can be waited for, awaited, asked and cancelled from any thread."""

    def __init__(self, transfer_id: str, future: Future[Receipt], stop: StopWord, gate: Gate) -> None:
        self.transfer_id = transfer_id
        self._future = future
        self._stop = stop
        self._gate = gate

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
        """Stops it within 4 MiB, at once while it waits; False when it had ended. What was written stays written."""
        if self._future.done():
            return False
        self._stop.set()
        self._future.cancel()
        self._gate.cancelled(self._stop)
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

    def _repr_html_(self) -> str:
        state = self.state
        if state == "landed":
            return self._future.result()._repr_html_()
        error = self._future.exception() if state == "failed" else None
        why = f"{type(error).__name__}: {error}" if error else None
        return html_table(f"transfer {self.transfer_id}", ("state", "why"), [(state, why)])


class TransferTable:
    """Runs started transfers when the gate lets them, on kept threads, and keeps their outcomes for `ttl_s`."""

    def __init__(self, gate: Gate, ttl_s: float) -> None:
        self._gate = gate
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(_AS_MANY_AS_ADMITTED, thread_name_prefix="kvfabric-transfer")
        self._kept: OrderedDict[str, Transfer] = OrderedDict()
        self._ended: OrderedDict[str, float] = OrderedDict()

    def start(self, transfer_id: str, run: Run, stop: StopWord, turn: Turn, give_up: GiveUp | None = None) -> Transfer:
        """Never blocks. A known id gives the transfer that it already names: a call retried moves nothing twice.

        `turn` is one of the gate, made with `stop`, and waits there. `run` is given it when it may move, and has to
        `pause` it when its copy gave way. `give_up` is told of a TransferTimeout or TransferCancelled, whichever thread
        it ends in. Raises QueueFull; the id is then as unknown as before.
        """
        work = _Work(transfer_id, run, stop, self._executor)
        with self._lock:
            known = self._kept.get(transfer_id)
            if known is not None:
                return known
            self._forget_old()
            transfer = self._kept[transfer_id] = Transfer(transfer_id, work.future, stop, self._gate)
        work.future.add_done_callback(lambda _: self._note_end(transfer))
        work.future.add_done_callback(lambda future: turn.leave() if future.cancelled() else None)
        if give_up is not None:
            work.future.add_done_callback(lambda future: self._tell_if_cut_short(transfer_id, future, give_up))
        try:
            self._gate.queue(turn, Caller(work.begin, work.fail))
        except QueueFull as refusal:
            self._forget(transfer_id)
            work.fail(refusal)  # for whoever was given it meanwhile
            raise
        return transfer

    def _tell_if_cut_short(self, transfer_id: str, future: Future[Receipt], give_up: GiveUp) -> None:
        """In a thread of its own: it may take a while, and who ended the transfer may be the gate's alarm."""
        error: LLMException = TransferCancelled(f"transfer {transfer_id} was cancelled before it moved")
        if not future.cancelled():
            ended_by = future.exception()
            if not isinstance(ended_by, TransferTimeout | TransferCancelled):
                return
            error = ended_by
        with suppress(RuntimeError):  # the table was closed: its endpoint is about to leave, which says it too
            self._executor.submit(give_up, error)

    def find(self, transfer_id: str) -> Transfer:
        """Raises TransferUnknown for an id never seen, or forgotten since."""
        transfer = self._kept.get(transfer_id)
        if transfer is None:
            raise TransferUnknown(f"transfer {transfer_id} is not known here (outcomes are kept {self._ttl_s:g} s)")
        return transfer

    def _note_end(self, transfer: Transfer) -> None:
        with self._lock:
            if self._kept.get(transfer.transfer_id) is transfer:
                self._ended[transfer.transfer_id] = time.monotonic()

    def _forget(self, transfer_id: str) -> None:
        with self._lock:
            self._kept.pop(transfer_id, None)

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
        self._executor.shutdown(wait=True)


@dataclass(slots=True)
class _Work:
    """What a planned transfer has to do: begun or failed, once, unless its future is cancelled before."""

    transfer_id: str
    run: Run
    stop: StopWord
    executor: ThreadPoolExecutor
    future: Future[Receipt] = field(default_factory=Future)

    def begin(self, turn: Turn) -> None:
        try:
            self.executor.submit(self._do, turn)
        except RuntimeError:  # it was shut down
            turn.leave()
            self.fail(TransferCancelled(f"transfer {self.transfer_id} did not begin before the endpoint was closed"))

    def fail(self, error: LLMException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _do(self, turn: Turn) -> None:
        """The outcome is told once others may move. It is kept for long, so its error must not hold frames, and with
        them a dead peer's memory.
        """
        if not self.future.set_running_or_notify_cancel():
            turn.leave()
            return
        try:
            receipt = self.run(self.stop, turn)
        except BaseException as error:
            logger.debug("transfer %s failed", self.transfer_id, exc_info=True)
            error.__traceback__ = error.__context__ = None
            turn.leave()
            self.future.set_exception(error)
        else:
            turn.leave()
            self.future.set_result(receipt)
