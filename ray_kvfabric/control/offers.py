"""Offers: the free blocks of one cache that its owner grants on request, and the requests that wait for some.

offer -> free -> granted -> give_back: free again | keep: the owner's own, until it offers them anew
A request waits, is granted once, and has ended when its blocks are given back or kept, or when it was cancelled,
late, or its asker died. What becomes of a grant meanwhile is known elsewhere: `control/grants.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.control.ageing_queue import AgeingQueue, Priority, Waiting
from ray_kvfabric.control.directory import Mark
from ray_kvfabric.errors import CreditExhausted, GrantReplayed, ParamInvalid


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """`asker` (cluster_id, incarnation) wants to write `num_blocks` blocks, and asks no longer after `until`."""

    request_id: str
    asker: Mark
    num_blocks: int
    priority: Priority
    until: float


class Granted(NamedTuple):
    """The asker may write these."""

    request: BlockRequest
    blocks: tuple[int, ...]


class Late(NamedTuple):
    """It waited until its time was over."""

    request: BlockRequest


class Refused(NamedTuple):
    """It does not wait."""

    request: BlockRequest
    error: CreditExhausted | GrantReplayed


Command = Granted | Late | Refused
Commands = list[Command]


class Offers:
    """At most `limit` requests wait. One that waited `ageing_s` is not overtaken any more. `now` never goes back."""

    def __init__(self, limit: int, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        # A block that is offered is free, or granted to one request; one that is neither is the owner's own.
        self._free: set[int] = set()
        self._granted: dict[str, Granted] = {}
        self._leaving: set[int] = set()  # granted blocks that are withdrawn: given back, they are the owner's own
        # A request waits, is granted, or has ended; an ended one is known until its time is over.
        self._queue: AgeingQueue[BlockRequest] = AgeingQueue(ageing_s, limit)
        self._waiting: dict[str, BlockRequest] = {}
        self._ended: dict[str, float] = {}

    # ---- the owner ----

    def offer(self, blocks: Iterable[int], now: float) -> Commands:
        """Raises ParamInvalid for a granted block: it has to be given back, or kept."""
        offered = set(blocks)
        for grant in self._granted.values():
            for block in offered.intersection(grant.blocks):
                raise ParamInvalid(f"block {block} is offered, and granted to request {grant.request.request_id}")
        self._free |= offered
        return self._serve(now)

    def withdraw(self, blocks: Iterable[int]) -> set[int]:
        """Those that are the owner's own now; of the others, the granted ones will be once they are given back."""
        withdrawn = set(blocks)
        granted = {block for grant in self._granted.values() for block in grant.blocks}
        self._leaving |= withdrawn & granted
        own = withdrawn & self._free
        self._free -= own
        return own

    def give_back(self, request_id: str, now: float) -> Commands:
        """Nobody writes its blocks any more: they are free for the next. Not granted: nothing happens."""
        grant = self._granted.pop(request_id, None)
        if grant is None:
            return []
        self._end(grant.request)
        self._free |= set(grant.blocks) - self._leaving
        self._leaving -= set(grant.blocks)
        return self._serve(now)

    def keep(self, request_id: str) -> tuple[int, ...]:
        """They were written: its blocks are the owner's own now. Not granted: none."""
        grant = self._granted.pop(request_id, None)
        if grant is None:
            return ()
        self._end(grant.request)
        self._leaving -= set(grant.blocks)
        return grant.blocks

    # ---- askers ----

    def request(self, request: BlockRequest, now: float) -> Commands:
        """A Granted, Late or Refused of it, now or of a later event; the same request_id twice is the same request."""
        commands = self.tick(now)
        known = self._granted.get(request.request_id)
        if known is not None:
            return [*commands, known]
        if request.request_id in self._ended:
            text = f"request {request.request_id} for {request.num_blocks} blocks has ended already"
            return [*commands, Refused(request, GrantReplayed(text))]
        if request.request_id in self._waiting:
            return commands
        if request.until <= now:
            return [*commands, Late(request)]
        return [*commands, *self._enter(request, now)]

    def cancel(self, request_id: str, now: float) -> Commands:
        """Of one that waits; one that was granted has to be given back. Others may be served by that."""
        request = self._waiting.get(request_id)
        if request is None:
            return []
        self._leave(request)
        return self._serve(now)

    def drop(self, asker: Mark, now: float) -> Commands:
        """It is dead: its requests wait no longer. What it was granted is to be given back once it cannot write."""
        for request in [each for each in self._waiting.values() if each.asker == asker]:
            self._leave(request)
        return self._serve(now)

    def granted_to(self, asker: Mark) -> list[str]:
        """Its granted requests."""
        return [request_id for request_id, grant in self._granted.items() if grant.request.asker == asker]

    # ---- time ----

    def tick(self, now: float) -> Commands:
        """At `wake_at`."""
        self._ended = {request_id: until for request_id, until in self._ended.items() if until > now}
        late = [each for each in self._waiting.values() if each.until <= now]
        for request in late:
            self._leave(request)
        return [*map(Late, late), *self._serve(now)]

    @property
    def wake_at(self) -> float | None:
        return min((each.until for each in self._waiting.values()), default=None)

    # ---- facts ----

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def granted(self) -> int:
        return sum(len(grant.blocks) for grant in self._granted.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def check_integrity(self) -> None:
        self._queue.check_integrity()
        granted = [block for grant in self._granted.values() for block in grant.blocks]
        assert len(set(granted)) == len(granted)
        assert self._free.isdisjoint(granted)
        assert self._leaving <= set(granted)
        assert set(self._queue) == set(self._waiting.values())
        known = [*self._waiting, *self._granted, *self._ended]
        assert len(set(known)) == len(known)

    # ---- deciding ----

    def _enter(self, request: BlockRequest, now: float) -> Commands:
        is_held_up = any(self._holds_up(each, now) for each in self._queue.in_order(now))
        if self._fits(request) and not is_held_up:
            return [self._grant(request)]
        if self._queue.is_full:
            text = (
                f"request {request.request_id} for {request.num_blocks} blocks finds {self.free} free and "
                f"{self.granted} granted, and {self.waiting} requests wait already, as many as may"
            )
            return [Refused(request, CreditExhausted(text))]
        self._queue.put(request, request.priority, now)
        self._waiting[request.request_id] = request
        return []

    def _serve(self, now: float) -> Commands:
        commands: Commands = []
        while (request := self._next(now)) is not None:
            self._queue.remove(request)
            del self._waiting[request.request_id]
            commands.append(self._grant(request))
        return commands

    def _next(self, now: float) -> BlockRequest | None:
        """The aged first, oldest first; then by effective priority whoever finds enough blocks."""
        waiting = self._queue.in_order(now)
        aged = sorted((each for each in waiting if self._is_aged(each, now)), key=lambda each: each.since)
        for each in (*aged, *waiting):
            if self._fits(each.item):
                return each.item
            if self._holds_up(each, now):
                return None
        return None

    def _holds_up(self, waiting: Waiting[BlockRequest], now: float) -> bool:
        """Nobody overtakes it, unless all the blocks there are would not be enough for it."""
        is_servable = waiting.item.num_blocks <= self.free + self.granted - len(self._leaving)
        return is_servable and self._is_aged(waiting, now)

    def _is_aged(self, waiting: Waiting[BlockRequest], now: float) -> bool:
        return waiting.since + self._ageing_s <= now

    def _fits(self, request: BlockRequest) -> bool:
        return request.num_blocks <= len(self._free)

    def _grant(self, request: BlockRequest) -> Granted:
        """Ascending blocks, so that neighbours are moved as one run where they can be."""
        blocks = tuple(heapq.nsmallest(request.num_blocks, self._free))
        self._free.difference_update(blocks)
        granted = self._granted[request.request_id] = Granted(request, blocks)
        return granted

    def _leave(self, request: BlockRequest) -> None:
        self._queue.remove(request)
        del self._waiting[request.request_id]
        self._end(request)

    def _end(self, request: BlockRequest) -> None:
        self._ended[request.request_id] = request.until
