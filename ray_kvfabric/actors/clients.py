"""The ports of an endpoint over Ray, and the client of a fabric's scheduler below them.

SchedulerClient   finds the scheduler by name, again after it restarted, until the deadline
RayDirectory      ports.Directory: remembers what was announced and published, so that it can be told again
RayPeers          ports.PeerCalls: a question goes through the scheduler to the peer
"""

from __future__ import annotations

import itertools
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from ray_kvfabric.actors.edge import LOST, RETRY_S, fetch, once, peer_errors, repeated, require_ray
from ray_kvfabric.actors.names import scheduler_name
from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.config import NAMESPACE
from ray_kvfabric.control.directory import enter
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import NotLinked, PeerLost, StaleIncarnation, TransferTimeout, TransferUnknown
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route
from ray_kvfabric.transport.questions import LONG


class ErrandLost(Exception):
    """The scheduler that had the errand is gone, and the errand with it: to be sent again."""


class SchedulerClient:
    """Calls of one fabric's scheduler. All its methods are idempotent, so a lost call is made again."""

    def __init__(self, fabric: str) -> None:
        self.fabric = fabric

    def submit(self, method: str, *arguments: object, retried_by_ray: bool = False) -> Any:
        """The call's ObjectRef, without waiting. Raises NotLinked when no scheduler has the name.

        By default a lost call is the caller's to make again: Ray's retries outlive a scheduler that was ended, and
        each prints a line into the caller's terminal.
        """
        require_ray()
        try:
            handle = ray.get_actor(scheduler_name(self.fabric), NAMESPACE)
        except ValueError:
            raise NotLinked(f"no fabric {self.fabric!r} runs in this Ray cluster") from None
        bound = getattr(handle, method)
        return (bound if retried_by_ray else once(bound)).remote(*arguments)

    def call(self, method: str, *arguments: object, deadline: Deadline) -> Any:
        """Raises what the scheduler raised, TransferTimeout, or NotLinked when there is none by then."""
        what = f"{method} of the scheduler of fabric {self.fabric!r}"
        lost = (RayActorError, ObjectLostError)  # a scheduler that died comes back
        return repeated(lambda: self.submit(method, *arguments), deadline, what, lost)

    def errand(
        self,
        cluster_id: int,
        method: str,
        deadline: Deadline,
        incarnation: int | None = None,
        **arguments: object,
    ) -> Any:
        """One method of one endpoint, wherever it lives; the errand's id makes a repetition harmless.

        Raises PeerLost when another incarnation has replaced the one that is meant.
        """
        errand = Errand(uuid.uuid4().hex, method, arguments)
        while True:
            told = self._ask(cluster_id, errand, incarnation, deadline)
            try:
                return fetch(told[0], deadline, method) if isinstance(told, list) else _read(told, errand)
            except LOST:  # the answer of the endpoint's actor
                if deadline.remaining_s <= RETRY_S:
                    raise TransferTimeout(f"{method} of endpoint {cluster_id}: no answer in time") from None
            time.sleep(RETRY_S)

    def _ask(
        self, cluster_id: int, errand: Errand, incarnation: int | None, deadline: Deadline
    ) -> list[Any] | Outcome | None:
        """The reference of an actor's call, or what an endpoint that polls has told."""
        try:
            told: list[Any] | Outcome | None = self.call(
                "ask", cluster_id, errand, incarnation, deadline.remaining_s, deadline=deadline
            )
        except StaleIncarnation as error:
            raise PeerLost(str(error)) from None
        return told

    def outcome(self, errand: Errand, deadline: Deadline) -> Any:
        """What an endpoint without an actor told of an errand. Raises its error, ErrandLost, TransferTimeout."""
        try:
            told = self.call("outcome", errand.errand_id, deadline.remaining_s, deadline=deadline)
        except TransferUnknown:
            raise ErrandLost from None
        return _read(told, errand)


def _read(told: Outcome | None, errand: Errand) -> Any:
    if told is None:
        raise TransferTimeout(f"{errand.method} {errand.errand_id} did not end in time")
    if told.error is not None:
        raise told.error
    return told.value


class RayDirectory:
    """`actor` is the handle of the CacheWorker that the endpoint lives in, if it lives in one."""

    def __init__(self, client: SchedulerClient, actor: ActorHandle[Any] | None = None) -> None:
        self.client = client
        self.on_leave: Callable[[], None] | None = None
        self._actor = actor
        self._actor_id = ray.get_runtime_context().get_actor_id() if actor is not None else None
        self._endpoint: EndpointInfo | None = None  # as it was announced last
        self._published: dict[int, CacheInfo] = {}  # in the order of publishing
        self._serials = itertools.count(1)  # of what the scheduler is told: older than what it knows, it is ignored
        self._lock = threading.Lock()  # one change at a time: what the scheduler is told is never older
        self._has_left = False
        self.is_in_doubt = False

    def announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        with self._lock:
            self._announce(endpoint, deadline)
            self._endpoint = endpoint

    def announce_again(self, deadline: Deadline) -> None:
        """For a scheduler that does not know this endpoint, or no longer, or not for certain (`is_in_doubt`)."""
        with self._lock:
            if self._endpoint is not None:
                self._announce(self._endpoint, deadline)

    def publish(self, endpoint: EndpointInfo, cache: CacheInfo, deadline: Deadline) -> None:
        with self._lock:
            try:
                self._tell("publish", endpoint, cache, deadline=deadline)
            except NotLinked:
                self._announce(self._endpoint or endpoint, deadline)
                self._tell("publish", endpoint, cache, deadline=deadline)
            enter(self._published, cache)

    def withdraw(self, endpoint: EndpointInfo, cache_id: int, deadline: Deadline) -> None:
        with self._lock:
            self._published.pop(cache_id, None)
            self._tell("withdraw", endpoint, cache_id, deadline=deadline)

    def resolve(self, cluster_id: int, name: CacheName, deadline: Deadline) -> Route:
        route: Route = self.client.call("resolve", cluster_id, name, deadline=deadline)
        return route

    def endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        found: EndpointInfo = self.client.call("endpoint", cluster_id, deadline=deadline)
        return found

    def endpoint_at(self, alias: str, deadline: Deadline) -> EndpointInfo:
        found: EndpointInfo = self.client.call("endpoint_at", alias, deadline=deadline)
        return found

    def leave(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        """Never raises for a fabric, or a Ray, that is gone already. What was not announced yet never will be."""
        self._has_left = True
        if self.on_leave is not None:
            self.on_leave()
        is_ours = self._lock.acquire(timeout=deadline.remaining_s)  # an announcement that is under way comes first
        try:
            self.client.call("leave", endpoint, deadline=deadline)
        except (NotLinked, TransferTimeout):
            return
        finally:
            if is_ours:
                self._lock.release()

    def _announce(self, endpoint: EndpointInfo, deadline: Deadline) -> None:
        if self._has_left:
            raise NotLinked(f"{endpoint} has left the fabric")
        caches = tuple(self._published.values())
        self._tell("announce", endpoint, self._actor, self._actor_id, caches, deadline=deadline)
        self.is_in_doubt = False

    def _tell(self, method: str, *arguments: object, deadline: Deadline) -> None:
        """One change under one serial, however often the call is made."""
        try:
            self.client.call(method, *arguments, next(self._serials), deadline=deadline)
        except TransferTimeout:  # it may have been made: what is announced next settles it
            self.is_in_doubt = True
            raise


class RayPeers:
    """Control messages between endpoints, through the scheduler."""

    def __init__(self, client: SchedulerClient) -> None:
        self._client = client

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """The peer's answer. It is asked once, however often Ray or this client repeats the call.

        Raises PeerLost for a peer that died, or was replaced by another incarnation.
        """
        packed = pickle.dumps(arguments)  # Ray's pickler looks at each object in Python, in every process on the way
        asked = {"question_id": uuid.uuid4().hex, "question": question, "packed": packed}
        method = "take_part" if question in LONG else "answer"
        with peer_errors(str(peer)):
            return self._client.errand(peer.cluster_id, method, deadline, peer.incarnation, **asked)
