"""What a producer pushes, and which push is next. Pure.

    Piece     layers of some blocks that were computed          Push      a piece and the grant that it goes into
A request's pushes run in the order in which they were made, one at a time; those of different requests beside each
other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.grant import Grant


class LaneGrant(NamedTuple):
    """The grant of one lane's cache: granted position i is the request's block `first + i`."""

    first: int
    grant: Grant


@dataclass(frozen=True, slots=True)
class Offer:
    """A consumer's grants for one transfer, by lane."""

    transfer_id: str
    num_tokens: int
    grants: Mapping[int, LaneGrant]


class Piece(NamedTuple):
    """Layers [first_layer, stop_layer) of a lane, for blocks at positions from `first` on. `mark`: see CacheManager."""

    lane: int
    first_layer: int
    stop_layer: int
    first: int
    blocks: tuple[int, ...]
    seals: bool
    mark: object
    made_ns: int


class Push(NamedTuple):
    req_id: str
    piece: Piece
    grant: Grant
    at: int
    nbytes: int


class Failure(NamedTuple):
    """A grant whose receiver has to be told that the rest will not come."""

    grant: Grant
    reason: str


class PushQueue:
    """Pushes that wait, and those that run."""

    def __init__(self) -> None:
        self._waiting: deque[Push] = deque()
        self._counts: dict[str, int] = {}  # of `_waiting`, by req_id
        self._running: dict[str, Push] = {}  # by req_id

    def add(self, push: Push) -> None:
        self._waiting.append(push)
        self._counts[push.req_id] = self._counts.get(push.req_id, 0) + 1

    def next(self, most_nbytes: int | None = None) -> Push | None:
        """The next to run, with those behind it that bring the next layers of the same blocks; `ended` has to follow.

        At most `most_nbytes`. None while the first of every request that waits has more, or another of it runs.
        """
        index = self._first(most_nbytes)
        if index is None:
            return None
        push = self._take(index)
        while index < len(self._waiting) and _continues(push, later := self._waiting[index]):
            nbytes = push.nbytes + later.nbytes
            if most_nbytes is not None and nbytes > most_nbytes:
                break
            self._take(index)
            last = later.piece
            piece = push.piece._replace(stop_layer=last.stop_layer, seals=last.seals, mark=last.mark)
            push = push._replace(piece=piece, nbytes=nbytes)
        self._running[push.req_id] = push
        return push

    def _take(self, index: int) -> Push:
        push = self._waiting[index]
        del self._waiting[index]
        self._counts[push.req_id] -= 1
        if not self._counts[push.req_id]:
            del self._counts[push.req_id]
        return push

    def _first(self, most_nbytes: int | None) -> int | None:
        blocked: set[str] = set()
        for index, push in enumerate(self._waiting):
            if push.req_id in self._running or push.req_id in blocked:
                continue
            if most_nbytes is None or push.nbytes <= most_nbytes:
                return index
            blocked.add(push.req_id)
        return None

    @property
    def has_next(self) -> bool:
        """Whether one waits for nothing but to be taken."""
        return bool(self._counts) and any(req_id not in self._running for req_id in self._counts)

    def ended(self, push: Push) -> None:
        del self._running[push.req_id]

    def forget(self, req_id: str) -> None:
        """Those that wait."""
        if self._counts.pop(req_id, None):
            self._waiting = deque(push for push in self._waiting if push.req_id != req_id)

    def waiting(self, req_id: str) -> list[Push]:
        return [push for push in self._waiting if push.req_id == req_id]

    def running(self, req_id: str) -> Push | None:
        return self._running.get(req_id)

    def has(self, req_id: str) -> bool:
        """Whether one waits or runs."""
        return req_id in self._counts or req_id in self._running

    @property
    def is_running(self) -> bool:
        """Whether any runs."""
        return bool(self._running)


def _continues(push: Push, later: Push) -> bool:
    mine, other = push.piece, later.piece
    return (
        push.req_id == later.req_id
        and mine.lane == other.lane
        and mine.stop_layer == other.first_layer
        and mine.first == other.first
        and mine.blocks == other.blocks
    )
