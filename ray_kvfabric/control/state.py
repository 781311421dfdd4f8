"""SchedulerState: the scheduler's decisions. Events in, commands out; the actor around it performs them.

All of it is soft: a new state learns everything again from the endpoints, whose polls it answers with
"announce again". Until `rebuild_until` a request that names somebody unknown is parked, not refused, and nobody
is told of a peer that is not back yet.

    request -> answered at once | parked (somebody unknown) | contending (rivals are probed) | polling | awaiting
    A request is in exactly one of the four rooms or answered; `check_integrity` proves it.

A fabric that was told to retire lets nobody in: whoever comes then finds no fabric, and starts another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

from ray_kvfabric.config import SchedulerSettings
from ray_kvfabric.control.contest import Contest
from ray_kvfabric.control.directory import Member, MemberDirectory
from ray_kvfabric.control.events import (
    Announce,
    Answer,
    Asked,
    Await,
    Call,
    Commands,
    Died,
    End,
    Ended,
    Event,
    Forget,
    GaveUp,
    Leave,
    Lives,
    LookUp,
    LookUpAlias,
    Poll,
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
from ray_kvfabric.control.post import Post
from ray_kvfabric.errors import EndpointDraining, FabricError, NotLinked
from ray_kvfabric.route import EndpointInfo

NAMING_OTHERS = (Resolve, LookUp, LookUpAlias, Send)


class SchedulerState:
    """`rebuild_until` is the instant until which endpoints may come back: 0 for a fresh fabric."""

    def __init__(self, settings: SchedulerSettings, rebuild_until: float = 0.0) -> None:
        self._directory = MemberDirectory(settings.lease_s)
        self._post = Post(settings.result_ttl_s, min(settings.poll_s, settings.lease_s / 3))
        self._rebuild_until = rebuild_until
        self._is_rebuilding = rebuild_until > 0.0
        self._contest = Contest()
        self._parked: dict[int, Asked] = {}
        self._is_retired = False
        self._handlers: dict[type[Event], Callable[..., Commands]] = {
            Announce: self._announce,
            Publish: self._publish,
            Withdraw: self._withdraw,
            Leave: self._leave,
            Resolve: self._resolve,
            LookUp: self._look_up,
            LookUpAlias: self._look_up_alias,
            Retire: self._retire,
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
            asked = cast(Asked, event)
            if not self._may_yet_come(asked, error):
                return [Refuse(asked.request, error)]
            self._parked[asked.request] = asked
            return []

    def _may_yet_come(self, event: Asked, error: FabricError) -> bool:
        """Whether what the event names may only not have returned yet."""
        is_unknown = isinstance(error, NotLinked) and not isinstance(error, EndpointDraining)
        return is_unknown and isinstance(event, NAMING_OTHERS) and self._is_rebuilding

    def wake_at(self) -> float | None:
        """When a Tick is due next."""
        rebuilt = [self._rebuild_until] if self._is_rebuilding else []
        return min([*rebuilt, *self._directory.expiries(), *self._post.expiries()], default=None)

    # -- membership

    def _announce(self, event: Announce) -> Commands:
        if self._is_retired:
            raise NotLinked("this fabric has just ended with its last endpoint")
        self._directory.refuse_left(event.endpoint)
        if self._directory.is_told(event.endpoint, event.serial):
            return [Answer(event.request)]
        dropped = self._drop_former_lives(event)
        rivals = self._directory.rivals(event.endpoint)
        if not rivals:
            return dropped + self._enter(event)
        contending = self._contest.enter(event, rivals)
        return dropped + contending + (self._retry_contenders(event.now) if dropped else [])

    def _drop_former_lives(self, event: Announce) -> Commands:
        """An actor that was restarted is its own rival, and need not be probed."""
        rivals = self._directory.rivals(event.endpoint)
        former = [rival.endpoint for rival in rivals if event.actor_id is not None and rival.actor_id == event.actor_id]
        return [command for endpoint in former for command in self._drop(endpoint, "was restarted", event.now)]

    def _enter(self, event: Announce) -> Commands:
        watched = self._directory.renew(event.endpoint, event.now)
        self._directory.announce(event.endpoint, event.actor_id, event.caches, event.serial, event.now)
        watch = [Watch(event.endpoint)] if event.actor_id is not None and not watched else []
        return [
            Answer(event.request),
            *watch,
            *self._retry_contenders(event.now),  # its former alias is free
            *self._retry_parked(event.now),
        ]

    def _publish(self, event: Publish) -> Commands:
        self._directory.publish(event.endpoint, event.cache, event.serial)
        return [Answer(event.request), *self._retry_parked(event.now)]

    def _withdraw(self, event: Withdraw) -> Commands:
        self._directory.withdraw(event.endpoint, event.cache_id, event.serial)
        return [Answer(event.request)]

    def _leave(self, event: Leave) -> Commands:
        self._directory.leave(event.endpoint)
        return [Answer(event.request), *self._remove(event.endpoint, "left the fabric", event.now)]

    def _died(self, event: Died) -> Commands:
        self._contest.probed(event.endpoint)
        return self._remove(event.endpoint, event.reason, event.now)

    def _remove(self, endpoint: EndpointInfo, reason: str, now: float) -> Commands:
        return [*self._drop(endpoint, reason, now), *self._retry_contenders(now)]

    def _drop(self, endpoint: EndpointInfo, reason: str, now: float) -> Commands:
        if not self._directory.remove(endpoint):
            return []
        return [Forget(endpoint), *self._post.lost(endpoint, f"{endpoint} {reason}", now)]

    def _lives(self, event: Lives) -> Commands:
        self._contest.probed(event.endpoint)
        if not self._directory.holds(event.endpoint):
            return []
        return self._contest.refuse(self._directory.at(event.endpoint.cluster_id).endpoint)

    def _retry_contenders(self, now: float) -> Commands:
        contenders = self._contest.take()
        return [command for event in contenders for command in self.handle(replace(event, now=now))]

    def _retire(self, event: Retire) -> Commands:
        if self._directory.members():
            return [Answer(event.request, False)]
        if self._is_rebuilding:  # some may yet return
            self._parked[event.request] = event
            return []
        self._is_retired = True
        return [Answer(event.request, True), End()]

    # -- requests that name another endpoint

    def _resolve(self, event: Resolve) -> Commands:
        return [Answer(event.request, self._directory.at(event.cluster_id).route(event.name))]

    def _look_up(self, event: LookUp) -> Commands:
        return [Answer(event.request, self._directory.at(event.cluster_id).endpoint)]

    def _look_up_alias(self, event: LookUpAlias) -> Commands:
        return [Answer(event.request, self._directory.listening(event.alias).endpoint)]

    def _send(self, event: Send) -> Commands:
        member = self._directory.addressed(event.cluster_id, event.incarnation)
        if event.key is not None:
            target_id, name = event.key.way
            self._directory.at(target_id).route(name)
        if member.actor_id is not None:
            return [Call(event.request, member.endpoint, event.errand)]
        return self._post.hand_in(event)

    def _retry_parked(self, now: float) -> Commands:
        parked, self._parked = self._parked, {}
        return [command for event in parked.values() for command in self.handle(replace(event, now=now))]

    def _poll(self, event: Poll) -> Commands:
        known = self._directory.renew(event.endpoint, event.now)
        return self._post.poll(event, known, self._gone(event))

    def _gone(self, event: Poll) -> tuple[Ended, ...]:
        """Whom the poll watches in vain."""
        if self._is_rebuilding:
            return ()
        gone = [each for each in event.watching if not self._directory.has(each)]
        return tuple(Ended(each, "is not in the fabric") for each in gone)

    # -- time

    def _tick(self, event: Tick) -> Commands:
        commands = self._post.tick(event.now)
        for endpoint in self._directory.expired(event.now):
            commands += self._remove(endpoint, "was silent for its whole lease", event.now)
        if self._is_rebuilding and event.now >= self._rebuild_until:
            commands += self._end_rebuilding(event.now)
        return commands

    def _end_rebuilding(self, now: float) -> Commands:
        """Who has not come back is unknown from now on."""
        self._is_rebuilding = False
        told = [self._post.tell_ended(poll, gone) for poll in self._post.polls() if (gone := self._gone(poll))]
        return told + self._retry_parked(now)

    def _gave_up(self, event: GaveUp) -> Commands:
        self._parked.pop(event.request, None)
        self._contest.gave_up(event.request)
        self._post.gave_up(event.request)
        return []

    # -- looking in

    def members(self) -> list[Member]:
        return self._directory.members()

    def describe(self) -> dict[str, int]:
        return {
            "endpoints": len(self._directory.members()),
            "caches": sum(len(member.caches) for member in self._directory.members()),
            "errands_pending": self._post.pending,
            "requests_parked": len(self._parked),
            "endpoints_draining": sum(member.endpoint.is_draining for member in self._directory.members()),
        }

    def check_integrity(self) -> None:
        """For tests: a request waits in one room only; who polls is a member, and whom it watches is another."""
        contenders = self._contest.contenders()
        waiting = [*self._parked, *(event.request for event in contenders), *self._post.waiting()]
        assert len(waiting) == len(set(waiting))
        assert all(self._directory.holds(poll.endpoint) for poll in self._post.polls())
        assert not any(map(self._gone, self._post.polls()))
        assert not self._parked or self._is_rebuilding
        for contender in contenders:
            rivals = self._directory.rivals(contender.endpoint)
            assert rivals
            assert all(self._contest.is_probed(rival.endpoint) for rival in rivals)
        for member in self.members():
            assert not self._directory.rivals(member.endpoint)
            keys = [cache.model_id for cache in member.caches.values() if cache.model_id is not None]
            assert len(keys) == len(set(keys))
