"""Events that the scheduler's state takes and commands that it gives back: pure data.

`request` names a caller that waits: each gets exactly one Answer, Refuse or Call for it. `now` is seconds of
one monotonic clock, read by whoever hands the event in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName
from ray_kvfabric.control.directory import Mark
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.route import CacheInfo, EndpointInfo


@dataclass(frozen=True, slots=True)
class Event:
    now: float


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """Time has passed; see `SchedulerState.wake_at`."""


@dataclass(frozen=True, slots=True)
class Died(Event):
    """This incarnation is dead: its actor died, or a probe found nothing."""

    endpoint: EndpointInfo
    reason: str


@dataclass(frozen=True, slots=True)
class Lives(Event):
    """A probe found this incarnation alive."""

    endpoint: EndpointInfo


@dataclass(frozen=True, slots=True)
class GaveUp(Event):
    """The caller no longer waits."""

    request: int


@dataclass(frozen=True, slots=True)
class Asked(Event):
    request: int


@dataclass(frozen=True, slots=True)
class Announce(Asked):
    """`caches` are all that the endpoint has; what was known of it before is replaced. Answered with None.

    `serial` counts what an incarnation tells of itself: a call that comes again, or late, changes nothing.
    """

    endpoint: EndpointInfo
    actor_id: str | None
    caches: tuple[CacheInfo, ...] = ()
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Publish(Asked):
    endpoint: EndpointInfo
    cache: CacheInfo
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Withdraw(Asked):
    endpoint: EndpointInfo
    cache_id: int
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Leave(Asked):
    """For good: this incarnation is not let in again."""

    endpoint: EndpointInfo


@dataclass(frozen=True, slots=True)
class Resolve(Asked):
    """Answered with a Route."""

    cluster_id: int
    name: CacheName


@dataclass(frozen=True, slots=True)
class LookUp(Asked):
    """Answered with the EndpointInfo of whoever carries `cluster_id`."""

    cluster_id: int


@dataclass(frozen=True, slots=True)
class LookUpAlias(Asked):
    """Answered with the EndpointInfo of whoever listens under `alias`."""

    alias: str


@dataclass(frozen=True, slots=True)
class Retire(Asked):
    """Answered with whether no endpoint was left; then an End follows, and nobody is let in any more."""


@dataclass(frozen=True, slots=True)
class Send(Asked):
    """An errand to whoever carries `cluster_id`, or only to `incarnation`; with `key`, only if that is known.

    Ends in a Call for an endpoint with an actor, in Answer(None) for one that polls.
    """

    cluster_id: int
    errand: Errand
    incarnation: int | None = None
    key: BlocksCacheKey | None = None


@dataclass(frozen=True, slots=True)
class Await(Asked):
    """The outcome of an errand of an endpoint that polls. Answered with an Outcome, at `until` with None."""

    errand_id: str
    until: float


@dataclass(frozen=True, slots=True)
class Poll(Asked):
    """An endpoint's long poll. Answered with an Orders.

    `watching` are the incarnations that it has links or grants with: of each that is not in the fabric it is told
    at once, so that no lost answer and no restart of the scheduler loses a death.
    """

    endpoint: EndpointInfo
    acknowledged: tuple[str, ...] = ()
    watching: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Report(Asked):
    """An endpoint tells how an errand ended."""

    errand_id: str
    outcome: Outcome


class Ended(NamedTuple):
    """An incarnation that is no longer in the fabric, and why."""

    mark: Mark
    reason: str


@dataclass(frozen=True, slots=True)
class Orders:
    """What a poll brings home."""

    announce_again: bool = False
    errands: tuple[Errand, ...] = ()
    ended: tuple[Ended, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    request: int
    value: object = None


@dataclass(frozen=True, slots=True)
class Refuse:
    request: int
    error: Exception


@dataclass(frozen=True, slots=True)
class Call:
    """Call `errand` at this endpoint's actor, and answer the request with that call's reference."""

    request: int
    endpoint: EndpointInfo
    errand: Errand


@dataclass(frozen=True, slots=True)
class Probe:
    """Find out whether this incarnation lives, then say Lives or Died."""

    endpoint: EndpointInfo
    actor_id: str | None


@dataclass(frozen=True, slots=True)
class Watch:
    """Say Died when this endpoint's actor dies."""

    endpoint: EndpointInfo


@dataclass(frozen=True, slots=True)
class Forget:
    """The endpoint is gone: let go of its handle."""

    endpoint: EndpointInfo


@dataclass(frozen=True, slots=True)
class End:
    """The scheduler ends, for good."""


Command = Answer | Refuse | Call | Probe | Watch | Forget | End
Commands = list[Command]
