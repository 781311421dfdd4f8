"""SchedulerState: the scheduler's decisions. Events in, commands out; the actor around it performs them.

All of it is soft: a new state learns everything again from the endpoints, whose polls it answers with
"announce again". Until `rebuild_until` a request that names an unknown cluster_id is parked, not refused.

    request -> answered at once | parked (unknown cluster) | contending (rival is probed) | polling | awaiting
    A request is in exactly one of the four rooms or answered; `check_integrity` proves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from ray_kvfabric.config import SchedulerSettings
from ray_kvfabric.control.directory import Member, MemberDirectory, taken
from ray_kvfabric.control.events import (
    Announce,
    Answer,
    Asked,
    Await,
    Call,
    Commands,
    Died,
    Event,
    Forget,
    GaveUp,
    Leave,
    Lives,
    Poll,
    Probe,
    Publish,
    Refuse,
    Report,
    Resolve,
    Send,
    Tick,
    Watch,
    Withdraw,
)
from ray_kvfabric.control.post import Post
from ray_kvfabric.errors import FabricError, NotLinked, PeerLost
from ray_kvfabric.route import EndpointInfo


class SchedulerState:
    """`rebuild_until` is the instant until which endpoints may come back: 0 for a fresh fabric."""

    def __init__(self, settings: SchedulerSettings, rebuild_until: float = 0.0) -> None:
        self._directory = MemberDirectory(settings.lease_s)
        self._post = Post(settings.result_ttl_s, min(settings.poll_s, settings.lease_s / 3))
        self._rebuild_until = rebuild_until
        self._parked: dict[int, Resolve | Send] = {}
        self._contending: dict[int, Announce] = {}
        self._handlers: dict[type[Event], Callable[..., Commands]] = {
            Announce: self._announce,
            Publish: self._publish,
            Withdraw: self._withdraw,
            Leave: self._leave,
            Resolve: self._resolve,
            Send: self._send,
            Await: self._post.wait,
            Poll: self._poll,
            Report: self._post.report,
            Died: self._died,
            Lives: self._lives,
            GaveUp: self._gave_up,
            Tick: self._tick,
        }

    def handle(self, event: Event) -> Commands:
        """What to do about `event`, in order. A refusal of an Asked event is a command, never raised."""
        try:
            return self._handlers[type(event)](event)
        except FabricError as error:
            return [Refuse(cast(Asked, event).request, error)]

    def wake_at(self) -> float | None:
        """When a Tick is due next."""
        parked = [self._rebuild_until] if self._parked else []
        return min([*parked, *self._directory.expiries(), *self._post.expiries()], default=None)

    # -- membership

    def _announce(self, event: Announce) -> Commands:
        rival = self._directory.rival(event.endpoint)
        if rival is None:
            return self._enter(event)
        if rival.actor_id is not None and rival.actor_id == event.actor_id:  # the actor was restarted
            return [*self._remove(rival.endpoint, "was restarted", event.now), *self._enter(event)]
        contended = {other.endpoint.cluster_id for other in self._contending.values()}
        self._contending[event.request] = event
        return [] if event.endpoint.cluster_id in contended else [Probe(rival.endpoint, rival.actor_id)]

    def _enter(self, event: Announce) -> Commands:
        watched = self._directory.renew(event.endpoint, event.now)
        self._directory.announce(event.endpoint, event.actor_id, event.caches, event.now)
        watch = [Watch(event.endpoint)] if event.actor_id is not None and not watched else []
        return [Answer(event.request), *watch, *self._retry_parked(event.now)]

    def _publish(self, event: Publish) -> Commands:
        self._directory.publish(event.endpoint, event.cache)
        return [Answer(event.request), *self._retry_parked(event.now)]

    def _withdraw(self, event: Withdraw) -> Commands:
        self._directory.withdraw(event.endpoint, event.cache_id)
        return [Answer(event.request)]

    def _leave(self, event: Leave) -> Commands:
        return [Answer(event.request), *self._remove(event.endpoint, "left the fabric", event.now)]

    def _died(self, event: Died) -> Commands:
        return self._remove(event.endpoint, event.reason, event.now)

    def _remove(self, endpoint: EndpointInfo, reason: str, now: float) -> Commands:
        if not self._directory.remove(endpoint):
            return []
        commands: Commands = [Forget(endpoint), *self._post.lost(endpoint, f"{endpoint} {reason}", now)]
        for contender in self._take_contenders(endpoint.cluster_id):
            commands += self.handle(replace(contender, now=now))
        return commands

    def _lives(self, event: Lives) -> Commands:
        if not self._directory.holds(event.endpoint):
            return []
        contenders = self._take_contenders(event.endpoint.cluster_id)
        return [Refuse(other.request, taken(event.endpoint, other.endpoint)) for other in contenders]

    def _take_contenders(self, cluster_id: int) -> list[Announce]:
        contenders = [event for event in self._contending.values() if event.endpoint.cluster_id == cluster_id]
        for event in contenders:
            del self._contending[event.request]
        return contenders

    # -- requests that name another endpoint

    def _resolve(self, event: Resolve) -> Commands:
        try:
            return [Answer(event.request, self._directory.route(event.cluster_id, event.model_id))]
        except NotLinked as error:
            return self._park(event, error)

    def _send(self, event: Send) -> Commands:
        try:
            member = self._directory.at(event.cluster_id)
            if event.key is not None:
                self._directory.route(event.key.cluster_id, event.key.model_id)
        except NotLinked as error:
            return self._park(event, error)
        if event.incarnation not in (None, member.endpoint.incarnation):
            raise PeerLost(f"incarnation {event.incarnation:016x} was replaced by {member.endpoint}")
        if member.actor_id is not None:
            return [Call(event.request, member.endpoint, event.errand)]
        return self._post.hand_in(event)

    def _park(self, event: Resolve | Send, error: NotLinked) -> Commands:
        """Waits for endpoints that may yet return; raises `error` once that time is over."""
        if event.now >= self._rebuild_until:
            raise error
        self._parked[event.request] = event
        return []

    def _retry_parked(self, now: float) -> Commands:
        parked, self._parked = self._parked, {}
        return [command for event in parked.values() for command in self.handle(replace(event, now=now))]

    def _poll(self, event: Poll) -> Commands:
        return self._post.poll(event, known=self._directory.renew(event.endpoint, event.now))

    # -- time

    def _tick(self, event: Tick) -> Commands:
        commands = self._post.tick(event.now)
        for endpoint in self._directory.expired(event.now):
            commands += self._remove(endpoint, "was silent for its whole lease", event.now)
        return commands + (self._retry_parked(event.now) if event.now >= self._rebuild_until else [])

    def _gave_up(self, event: GaveUp) -> Commands:
        self._parked.pop(event.request, None)
        self._contending.pop(event.request, None)
        self._post.gave_up(event.request)
        return []

    # -- looking in

    def members(self) -> list[Member]:
        return self._directory.members()

    def member(self, cluster_id: int) -> Member:
        """Raises NotLinked."""
        return self._directory.at(cluster_id)

    def describe(self) -> dict[str, int]:
        return {
            "endpoints": len(self._directory.members()),
            "caches": sum(len(member.caches) for member in self._directory.members()),
            "errands_pending": self._post.pending,
            "requests_parked": len(self._parked),
        }

    def check_integrity(self) -> None:
        """For tests: a request waits in one room only, and who polls is a member."""
        waiting = [*self._parked, *self._contending, *self._post.waiting()]
        assert len(waiting) == len(set(waiting))
        assert all(self._directory.holds(endpoint) for endpoint in self._post.pollers())
        for contender in self._contending.values():
            assert self._directory.rival(contender.endpoint) is not None
        for member in self.members():
            keys = [cache.model_id for cache in member.caches.values() if cache.model_id is not None]
            assert len(keys) == len(set(keys))
