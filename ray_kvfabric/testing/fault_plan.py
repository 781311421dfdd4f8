"""FaultPlan: what goes wrong, decided from (seed, event, its running number) alone. EventLog: what went wrong.

    event       can be hit by
    PUSH        DELAY PAUSE FREEZE DIE DROP TRUNCATE FLIP DUPLICATE
    PULL        the same but DUPLICATE: read twice, nothing would be late
    ASK, CALL   DELAY LOSE_REQUEST LOSE_REPLY

The named points of a push, as both sides see it; of a pull likewise:
    before -> [ entered -> halfway -> copied ] -> landed      [ ] inside: the receiver's fence waits for it
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ray_kvfabric.errors import ConfigError


class Event(Enum):
    PUSH = "push"
    PULL = "pull"
    ASK = "ask"  # a question to a peer
    CALL = "call"  # of the directory


class Point(Enum):
    BEFORE = "before"  # nothing was entered
    ENTERED = "entered"  # inside the cell, no byte moved
    HALFWAY = "halfway"  # half of the bytes moved
    COPIED = "copied"  # all bytes moved, no record left
    LANDED = "landed"  # acknowledged, the caller has not heard it


class FaultKind(Enum):
    DELAY = "delay"  # sleeps at a point
    PAUSE = "pause"  # calls the hook of whoever made the wrapper, at a point
    FREEZE = "freeze"  # SIGSTOP at a point
    DIE = "die"  # SIGKILL at a point
    DROP = "drop"  # reports success, and nothing was even begun
    TRUNCATE = "truncate"  # writes a prefix and claims all of it
    FLIP = "flip"  # one bit of what was written differs before the receiver can know that it is there
    DUPLICATE = "duplicate"  # is made once more after it was acknowledged
    LOSE_REQUEST = "lose request"  # never arrives
    LOSE_REPLY = "lose reply"  # took effect, and nobody hears of it


AT_A_POINT = (FaultKind.DELAY, FaultKind.PAUSE, FaultKind.FREEZE, FaultKind.DIE)
_OF_BYTES = (FaultKind.DROP, FaultKind.TRUNCATE, FaultKind.FLIP)
_OF_WORDS = (FaultKind.DELAY, FaultKind.LOSE_REQUEST, FaultKind.LOSE_REPLY)
FITTING: Mapping[Event, tuple[FaultKind, ...]] = {
    Event.PUSH: (*AT_A_POINT, *_OF_BYTES, FaultKind.DUPLICATE),
    Event.PULL: (*AT_A_POINT, *_OF_BYTES),
    Event.ASK: _OF_WORDS,
    Event.CALL: _OF_WORDS,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`share` in [0, 1): of the longest delay, of the bytes that a truncation keeps, of the bits where one flips.

    `pid` is whom FREEZE and DIE hit; None is the own process. A message has no point but BEFORE.
    """

    kind: FaultKind
    point: Point = Point.BEFORE
    share: float = 0.0
    pid: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"share must be in [0, 1), got {self.share}")


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Picklable. `steps` names faults of single events and goes before `rates`, shares of the events of a kind."""

    seed: int = 0
    rates: Mapping[FaultKind, float] = field(default_factory=dict)
    steps: Mapping[tuple[Event, int], Fault] = field(default_factory=dict)
    points: tuple[Point, ...] = tuple(Point)  # where what `rates` bring may happen
    victim: int | None = None  # the pid of what `rates` bring
    max_delay_s: float = 0.01

    def __post_init__(self) -> None:
        for kind, rate in self.rates.items():
            if not 0 <= rate <= 1:
                raise ConfigError(f"the rate of {kind.value!r} must be in [0, 1], got {rate}")
        for event, kinds in FITTING.items():
            total = sum(self.rates.get(kind, 0.0) for kind in kinds)
            if total > 1 + 1e-9:
                raise ConfigError(f"the rates of what can happen to a {event.value} sum up to {total:g}, above 1")
        for (event, number), fault in self.steps.items():
            if fault.kind not in FITTING[event]:
                raise ConfigError(f"steps: {event.value} {number} cannot be hit by {fault.kind.value!r}")

    def decide(self, event: Event, number: int) -> Fault | None:
        """What happens to event `number`, counted from 0 for each kind of event."""
        step = self.steps.get((event, number))
        if step is not None or not self.rates:
            return step
        draw = random.Random(f"{self.seed}/{event.value}/{number}")  # a text: seeded the same in every process
        left = draw.random()
        for kind in FITTING[event]:
            left -= self.rates.get(kind, 0.0)
            if left < 0:
                point = self.points[int(draw.random() * len(self.points))]
                return Fault(kind, point, draw.random(), self.victim)
        return None


class Logged(NamedTuple):
    """One event that ended. No times, ids or addresses, so that equal runs leave equal logs.

    what      the question or the directory's call; "late" for a duplicate, whose number is the first one's
    fault     what hit it: "flip", "pause at halfway"; "" if nothing; "... (not reached)" if it ended before that
    outcome   "landed", "answered", or the class of the error that its caller got
    """

    event: str
    number: int
    what: str
    fault: str
    outcome: str


class EventLog:
    """Running numbers and what became of each event, of one endpoint. Wrappers share it.

    Events of several threads are numbered as they come and logged as they end: only one thread's log is the same
    each time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = dict.fromkeys(Event, 0)
        self._ended: list[Logged] = []

    def number(self, event: Event) -> int:
        with self._lock:
            self._next[event] += 1
            return self._next[event] - 1

    def note(self, entry: Logged) -> None:
        with self._lock:
            self._ended.append(entry)

    @property
    def entries(self) -> list[Logged]:
        with self._lock:
            return list(self._ended)

    def take(self) -> list[Logged]:
        """The entries so far, which it then forgets: for long runs."""
        with self._lock:
            taken, self._ended = self._ended, []
        return taken


def ray_rpc_failure(
    methods: Iterable[str], *, requests: int = 0, replies: int = 0, in_flight: int = 0, num_failures: int = -1
) -> dict[str, str]:
    """Environment that makes Ray lose its own calls; it has to be there before Ray is started.

    `methods` as "CoreWorkerService.grpc_client.PushTask", or "*". In percent: `requests` that never arrive, `replies`
    that are lost, calls that fail while they are `in_flight` and are carried out. `num_failures` of each; -1: no limit.
    """
    percent = {"req_failure_prob": requests, "resp_failure_prob": replies, "in_flight_failure_prob": in_flight}
    if min(percent.values()) < 0 or sum(percent.values()) > 100:
        raise ConfigError(f"requests, replies and in_flight are percent of the same calls, got {percent}")
    lost = {"num_failures": num_failures, **percent}
    return {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(methods, lost))}
