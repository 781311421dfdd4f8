"""Agent: the thread that keeps an endpoint in the fabric.

    poll the scheduler -> run the errands it brings -> tell the manager of peers that ended
    -> announce again when it does not know us -> poll, and tell what has become of the errands ...
It sleeps on futures, never inside Ray, so that a Ray that shuts down under it leaves nothing to crash.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from ray_kvfabric.actors.clients import RayDirectory
from ray_kvfabric.actors.desk import Desk
from ray_kvfabric.actors.endings import Endings
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.control.events import Orders
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import AliasTaken, ClusterIdTaken, FabricError

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # a poll that has no answer for so long is made again
TOGETHER_S = 2e-3  # an errand that takes no longer is told by the next poll: one call of the scheduler less
TIDY_S = 1.0  # between two looks for dead links: a poll may return many times a second
PAUSE_S = 0.5  # between attempts to reach a scheduler that is not there
CALL_S = 20.0


class Reply(NamedTuple):
    """What a poll says to the one before it."""

    acknowledged: tuple[str, ...] = ()
    told: tuple[tuple[str, Outcome], ...] = ()


class Batch:
    """The outcomes of one poll's errands that are there in time for the next poll."""

    def __init__(self, num_errands: int) -> None:
        self._num_errands = num_errands
        self._told: list[tuple[str, Outcome]] = []
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, errand_id: str, outcome: Outcome) -> bool:
        """False when it is too late for the poll."""
        with self._changed:
            if not self._is_closed:
                self._told.append((errand_id, outcome))
                self._changed.notify()
            return not self._is_closed

    def close(self, patience_s: float) -> tuple[tuple[str, Outcome], ...]:
        """Waits until all are there, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._told) == self._num_errands, patience_s)
            self._is_closed = True
            return tuple(self._told)


class Agent:
    """Started for one endpoint, stopped when it leaves. Its work ends by itself when Ray is gone."""

    def __init__(self, directory: RayDirectory, desk: Desk) -> None:
        self._directory = directory
        self._desk = desk
        self._endings = Endings(desk.manager)
        self._job = ray.get_runtime_context().get_job_id()
        self._stopped: Future[None] = Future()
        self._tidier = threading.Thread()
        self._tidied_s = 0.0
        self._thread = threading.Thread(target=self._run, name="kvfabric-agent", daemon=True)
        directory.on_leave = self.stop
        self._thread.start()

    def stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _run(self) -> None:
        reply = Reply()
        while not self._stopped.done() and self._ray_is_ours():
            reply = self._turn(reply)
        if self._ray_is_ours():
            for errand_id, outcome in reply.told:
                self._report(errand_id, outcome)

    def _turn(self, reply: Reply) -> Reply:
        """One poll and what it brought; returns what the next one says to it."""
        try:
            return self._follow(self._poll(reply))
        except (ClusterIdTaken, AliasTaken) as error:
            logger.error("this endpoint left the fabric: %s", error)
            self.stop()
        except (FabricError, RayError, FutureTimeout) as error:
            logger.debug("no answer from the scheduler: %s", error)
            wait([self._stopped], timeout=PAUSE_S)
        except Exception:
            if not reply.told and self._ray_is_ours() and not self._stopped.done():
                raise
        return self._told_apart(reply)

    def _told_apart(self, reply: Reply) -> Reply:
        """One outcome that does not travel must not fail every poll: after a failure each has a call of its own."""
        for told in reply.told:
            threading.Thread(target=self._report, args=told, name="kvfabric-errand", daemon=True).start()
        return Reply(reply.acknowledged)

    def _ray_is_ours(self) -> bool:
        return ray.is_initialized() and ray.get_runtime_context().get_job_id() == self._job

    def _poll(self, reply: Reply) -> Orders:
        endpoint, watching = self._desk.manager.endpoint, self._endings.watching()
        orders: Future[Orders] = self._directory.client.submit("poll", endpoint, *reply, watching).future()
        ends: list[Future[Any]] = [orders, self._stopped]
        wait(ends, timeout=PATIENCE_S, return_when=FIRST_COMPLETED)
        return Orders() if self._stopped.done() else orders.result(timeout=0)

    def _follow(self, orders: Orders) -> Reply:
        self._endings.tell(orders.ended)
        if (orders.announce_again or self._directory.is_in_doubt) and not self._stopped.done():
            self._directory.announce_again(Deadline.after(CALL_S))
        batch = Batch(len(orders.errands))
        for errand in orders.errands:
            threading.Thread(target=self._serve, args=(errand, batch), name="kvfabric-errand", daemon=True).start()
        self._tidy()
        return Reply(tuple(errand.errand_id for errand in orders.errands), batch.close(TOGETHER_S))

    def _tidy(self) -> None:
        """Aside: it may ask peers, who may be asking this endpoint by the next poll."""
        now_s = time.monotonic()
        if now_s - self._tidied_s > TIDY_S and not self._tidier.is_alive():
            self._tidied_s = now_s
            self._tidier = threading.Thread(target=self._drop_dead_links, name="kvfabric-tidier", daemon=True)
            self._tidier.start()

    def _drop_dead_links(self) -> None:
        try:
            self._desk.manager.drop_dead_links()
        except Exception:
            if self._ray_is_ours() and not self._stopped.done():
                raise

    def _serve(self, errand: Errand, batch: Batch) -> None:
        outcome = self._desk.run(errand)
        if not batch.put(errand.errand_id, outcome):
            self._report(errand.errand_id, outcome)

    def _report(self, errand_id: str, outcome: Outcome) -> None:
        try:
            self._directory.client.call("report", errand_id, outcome, deadline=Deadline.after(CALL_S))
        except (FabricError, RayError) as error:
            logger.debug("the outcome of %s could not be told: %s", errand_id, error)
