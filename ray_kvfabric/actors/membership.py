"""Agent: the thread that keeps an endpoint in the fabric.

    poll the scheduler -> run the errands it brings -> tell the manager of peers that ended
    -> announce again when it does not know us -> poll ...
It sleeps on futures, never inside Ray, so that a Ray that shuts down under it leaves nothing to crash.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import ray
from ray.exceptions import RayError

from ray_kvfabric.actors.clients import RayDirectory
from ray_kvfabric.actors.desk import Desk
from ray_kvfabric.actors.endings import Endings
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.control.events import Orders
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import AliasTaken, ClusterIdTaken, FabricError

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # a poll that has no answer for so long is made again
PAUSE_S = 0.5  # between attempts to reach a scheduler that is not there
CALL_S = 20.0


class Agent:
    """Started for one endpoint, stopped when it leaves. Its work ends by itself when Ray is gone."""

    def __init__(self, directory: RayDirectory, desk: Desk) -> None:
        self._directory = directory
        self._desk = desk
        self._endings = Endings(desk.manager)
        self._job = ray.get_runtime_context().get_job_id()
        self._stopped: Future[None] = Future()
        self._tidier = threading.Thread()
        self._thread = threading.Thread(target=self._run, name="kvfabric-agent", daemon=True)
        directory.on_leave = self.stop
        self._thread.start()

    def stop(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _run(self) -> None:
        acknowledged: tuple[str, ...] = ()
        while not self._stopped.done() and self._ray_is_ours():
            acknowledged = self._turn(acknowledged)

    def _turn(self, acknowledged: tuple[str, ...]) -> tuple[str, ...]:
        """One poll and what it brought; returns what the next one acknowledges."""
        try:
            return self._follow(self._poll(acknowledged))
        except (ClusterIdTaken, AliasTaken) as error:
            logger.error("this endpoint left the fabric: %s", error)
            self.stop()
        except (FabricError, RayError, FutureTimeout) as error:
            logger.debug("no answer from the scheduler: %s", error)
            wait([self._stopped], timeout=PAUSE_S)
        except Exception:
            if self._ray_is_ours() and not self._stopped.done():
                raise
        return acknowledged

    def _ray_is_ours(self) -> bool:
        return ray.is_initialized() and ray.get_runtime_context().get_job_id() == self._job

    def _poll(self, acknowledged: tuple[str, ...]) -> Orders:
        endpoint, watching = self._desk.manager.endpoint, self._endings.watching()
        reply: Future[Orders] = self._directory.client.submit("poll", endpoint, acknowledged, watching).future()
        ends: list[Future[Any]] = [reply, self._stopped]
        wait(ends, timeout=PATIENCE_S, return_when=FIRST_COMPLETED)
        return Orders() if self._stopped.done() else reply.result(timeout=0)

    def _follow(self, orders: Orders) -> tuple[str, ...]:
        self._endings.tell(orders.ended)
        if (orders.announce_again or self._directory.is_in_doubt) and not self._stopped.done():
            self._directory.announce_again(Deadline.after(CALL_S))
        for errand in orders.errands:
            threading.Thread(target=self._serve, args=(errand,), name="kvfabric-errand", daemon=True).start()
        self._tidy()
        return tuple(errand.errand_id for errand in orders.errands)

    def _tidy(self) -> None:
        """Aside: it may ask peers, who may be asking this endpoint by the next poll."""
        if not self._tidier.is_alive():
            self._tidier = threading.Thread(target=self._drop_dead_links, name="kvfabric-tidier", daemon=True)
            self._tidier.start()

    def _drop_dead_links(self) -> None:
        try:
            self._desk.manager.drop_dead_links()
        except Exception:
            if self._ray_is_ours() and not self._stopped.done():
                raise

    def _serve(self, errand: Errand) -> None:
        outcome = self._desk.run(errand)
        try:
            self._directory.client.call("report", errand.errand_id, outcome, deadline=Deadline.after(CALL_S))
        except (FabricError, RayError) as error:
            logger.debug("the outcome of %s could not be told: %s", errand.errand_id, error)
