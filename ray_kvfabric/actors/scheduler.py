"""SchedulerActor: the thin actor around SchedulerState. It hands events in and performs the commands.

It launches calls on the actors of endpoints and hands their references back; it waits for none of them, and
no byte of a cache passes through it. Killed at any moment, its next life learns all again from the endpoints.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import warnings
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError

from ray_kvfabric.actors.liveness import PAUSE_S, Verdict, judge
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName
from ray_kvfabric.config import SchedulerSettings
from ray_kvfabric.control.directory import Mark, Member, mark
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.control.events import (
    Announce,
    Answer,
    Asked,
    Await,
    Call,
    Command,
    Died,
    End,
    Event,
    Forget,
    GaveUp,
    Leave,
    Lives,
    LookUp,
    LookUpAlias,
    Orders,
    Poll,
    Probe,
    Publish,
    Refuse,
    Report,
    Resolve,
    Retire,
    Send,
    Tick,
    Watch,
    Withdraw,
)
from ray_kvfabric.control.state import SchedulerState
from ray_kvfabric.route import CacheInfo, EndpointInfo, Route

PROBE_S = 5.0  # an endpoint of which nothing is known after it counts as alive: a name is not taken from the slow
HOLD_S = 3600.0
FAREWELL_S = 1.0  # from the answer to `retire` to the end, if the caller does not end this actor before


class SchedulerActor:
    """`founder` is the mark of the process that asked for this scheduler; `introduce` shows it to others."""

    def __init__(self, settings: SchedulerSettings, lifetime: str, founder: str) -> None:
        with warnings.catch_warnings():  # Ray's own use of what it deprecates, shown in every driver
            warnings.simplefilter("ignore")
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._loop = asyncio.get_event_loop()
        self._confirm_s = settings.confirm_s
        self._state = SchedulerState(settings, self._loop.time() + settings.rebuild_s if restarted else 0.0)
        self._introduction = {
            "founder": founder,
            "lifetime": lifetime,
            "restarted": bool(restarted),
            "is_ending": False,
        }
        self._requests = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._handles: dict[Mark, ActorHandle[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None

    async def introduce(self) -> dict[str, object]:
        return self._introduction

    async def announce(
        self,
        endpoint: EndpointInfo,
        actor: ActorHandle[Any] | None,
        actor_id: str | None,
        caches: tuple[CacheInfo, ...],
        serial: int,
    ) -> None:
        is_new = mark(endpoint) not in self._handles
        if actor is not None:
            self._handles[mark(endpoint)] = actor
        try:
            await self._ask(Announce, endpoint, actor_id, caches, serial)
        except BaseException:
            if is_new:
                self._handles.pop(mark(endpoint), None)
            raise

    async def publish(self, endpoint: EndpointInfo, cache: CacheInfo, serial: int) -> None:
        await self._ask(Publish, endpoint, cache, serial)

    async def withdraw(self, endpoint: EndpointInfo, cache_id: int, serial: int) -> None:
        await self._ask(Withdraw, endpoint, cache_id, serial)

    async def leave(self, endpoint: EndpointInfo) -> None:
        await self._ask(Leave, endpoint)

    async def resolve(self, cluster_id: int, name: CacheName) -> Route:
        route: Route = await self._ask(Resolve, cluster_id, name)
        return route

    async def endpoint(self, cluster_id: int) -> EndpointInfo:
        found: EndpointInfo = await self._ask(LookUp, cluster_id)
        return found

    async def endpoint_at(self, alias: str) -> EndpointInfo:
        found: EndpointInfo = await self._ask(LookUpAlias, alias)
        return found

    async def retire(self) -> bool:
        """Whether no endpoint is left; then nobody is let in any more, and this actor is ended."""
        is_ending: bool = await self._ask(Retire)
        return is_ending

    async def poll(
        self,
        endpoint: EndpointInfo,
        acknowledged: tuple[str, ...],
        told: tuple[tuple[str, Outcome], ...],
        watching: tuple[Mark, ...],
    ) -> Orders:
        """An endpoint's long poll: it renews the lease, and brings errands and the deaths of peers home.

        `told` are outcomes of errands, by errand_id, as `report` takes them.
        """
        for errand_id, outcome in told:
            await self._ask(Report, errand_id, outcome)
        orders: Orders = await self._ask(Poll, endpoint, acknowledged, watching)
        return orders

    async def report(self, errand_id: str, outcome: Outcome) -> None:
        await self._ask(Report, errand_id, outcome)

    async def send(
        self,
        cluster_id: int,
        errand: Errand,
        incarnation: int | None = None,
        key: BlocksCacheKey | None = None,
    ) -> list[Any] | None:
        """Starts an errand. One ObjectRef, of the call of the endpoint's actor; None: ask for its `outcome`.

        With `key`, only after that cache was found. In a list, because Ray would wait for a bare reference.
        """
        reference: list[Any] | None = await self._ask(Send, cluster_id, errand, incarnation, key)
        return reference

    async def ask(
        self, cluster_id: int, errand: Errand, incarnation: int | None, timeout_s: float
    ) -> list[Any] | Outcome | None:
        """`send`, and where that has no reference to hand out, `outcome`: one call where there were two."""
        reference = await self.send(cluster_id, errand, incarnation)
        return await self.outcome(errand.errand_id, timeout_s) if reference is None else reference

    async def outcome(self, errand_id: str, timeout_s: float) -> Outcome | None:
        """How an errand of a polling endpoint ended; None when it did not in time."""
        outcome: Outcome | None = await self._ask(Await, errand_id, self._loop.time() + timeout_s)
        return outcome

    async def members(self) -> list[Member]:
        return self._state.members()

    async def status(self) -> dict[str, object]:
        return {**self._introduction, "pid": os.getpid(), **self._state.describe()}

    # -- the machine

    async def _ask(self, kind: type[Asked], *fields: Any) -> Any:
        request = next(self._requests)
        future = self._waiting[request] = self._loop.create_future()
        try:
            self._tell(kind(self._loop.time(), request, *fields))
            return await future
        finally:
            del self._waiting[request]
            if future.cancelled():
                self._tell(GaveUp(self._loop.time(), request))

    def _tell(self, event: Event) -> None:
        for command in self._state.handle(event):
            self._perform(command)
        if self._alarm is not None:
            self._alarm.cancel()
        wake_at = self._state.wake_at()
        self._alarm = None if wake_at is None else self._loop.call_at(wake_at, self._ring)

    def _ring(self) -> None:
        self._tell(Tick(self._loop.time()))

    def _perform(self, command: Command) -> None:
        match command:
            case Answer(request, value):
                self._settle(request).set_result(value)
            case Refuse(request, error):
                self._settle(request).set_exception(error)
            case Call(request, endpoint, errand):
                method = getattr(self._handles[mark(endpoint)], errand.method)
                self._settle(request).set_result([method.remote(**errand.arguments)])
            case Probe(endpoint, _):
                self._begin(self._probe(endpoint))
            case Watch(endpoint):
                self._begin(self._watch(endpoint))
            case Forget(endpoint):
                self._handles.pop(mark(endpoint), None)
            case End():
                self._introduction["is_ending"] = True
                # Killed, not left: Ray would start an actor again that leaves while calls to it may be repeated.
                self._loop.call_later(FAREWELL_S, ray.kill, ray.get_runtime_context().current_actor)

    def _settle(self, request: int) -> asyncio.Future[Any]:
        """The caller's future; one that nobody reads for a caller that is gone."""
        future = self._waiting.get(request)
        return future if future is not None and not future.done() else self._loop.create_future()

    def _begin(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, endpoint: EndpointInfo) -> None:
        verdict = await judge(self._handles.get(mark(endpoint)), endpoint, PROBE_S)
        now = self._loop.time()
        self._tell(Died(now, endpoint, "died") if verdict is Verdict.DIED else Lives(now, endpoint))

    async def _watch(self, endpoint: EndpointInfo) -> None:
        """The endpoint's actor does not answer this call while it lives: its failure tells of its death."""
        while (actor := self._handles.get(mark(endpoint))) is not None:
            if await self._held(actor, endpoint) is Verdict.DIED:
                self._tell(Died(self._loop.time(), endpoint, "died"))
            await asyncio.sleep(PAUSE_S)

    async def _held(self, actor: ActorHandle[Any], endpoint: EndpointInfo) -> Verdict:
        """UNKNOWN for an actor that is neither reached nor known to be dead: then its lease decides."""
        try:
            await actor.hold.remote(HOLD_S)
        except ActorDiedError:
            return Verdict.DIED
        except RayActorError:  # a lost connection; it may be back in a moment, as this incarnation or as another
            return await judge(actor, endpoint, self._confirm_s)
        return Verdict.LIVES
