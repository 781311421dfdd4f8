"""Lane: the transfers on one link of one target, and who of them is next. Called by `admission` alone.

new -> queued -> moving <-> paused          any of them -> ended
More urgent ones outrank: while one of them moves or waits on the lane, a less urgent one moves a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from enum import Enum, auto

from ray_kvfabric.control.ageing_queue import PRIORITIES, AgeingQueue, Priority, Waiting

PIECE_NBYTES = 4 << 20  # what a copy that was told to give way may still move


class Stage(Enum):
    NEW = auto()
    QUEUED = auto()
    MOVING = auto()
    PAUSED = auto()
    ENDED = auto()


class Ticket:
    """One transfer that asks to move; `target` is the cluster_id of the other endpoint."""

    __slots__ = ("is_piece", "is_told", "link", "nbytes", "priority", "stage", "target")

    def __init__(self, target: int, link: Hashable, nbytes: int, priority: Priority) -> None:
        self.target = target
        self.link = link
        self.nbytes = nbytes
        self.priority = priority
        self.stage = Stage.NEW
        self.is_piece = False  # its present turn, or its last one, is of one piece
        self.is_told = False  # to give way

    @property
    def is_moving(self) -> bool:
        return self.stage is Stage.MOVING

    @property
    def charge(self) -> int:
        """Bytes that its present turn counts for."""
        return min(self.nbytes, PIECE_NBYTES) if self.is_piece else self.nbytes

    def __repr__(self) -> str:
        return f"<Ticket to {self.target}: {self.priority.name}, {self.nbytes} B, {self.stage.name.lower()}>"


class Lane:
    """Started ones of a priority, moving or paused, are at most `limit`: a paused one holds a thread."""

    __slots__ = ("_ageing_s", "_limit", "_piece_at", "live", "moving", "paused", "piece", "queued", "victim")

    def __init__(self, limit: int, ageing_s: float) -> None:
        self._limit = limit
        self._ageing_s = ageing_s
        self.live = [0] * len(PRIORITIES)  # tickets in any of the three below, by priority
        self.moving: dict[Ticket, None] = {}  # in the order in which they started
        self.queued: AgeingQueue[Ticket] = AgeingQueue(ageing_s)
        self.paused: AgeingQueue[Ticket] = AgeingQueue(ageing_s)
        self.piece: Ticket | None = None  # of the moving ones, the one that outranked ones wait for their turn with
        self.victim: Ticket | None = None  # of the moving ones, who gives way to a less urgent one's piece
        self._piece_at = -math.inf  # when the last piece was started

    @property
    def is_full(self) -> bool:
        return len(self.moving) >= self._limit

    @property
    def is_empty(self) -> bool:
        return not any(self.live)

    def is_outranked(self, priority: Priority) -> bool:
        return any(self.live[priority + 1 :])

    def is_alike(self, priority: Priority) -> bool:
        """Nobody here is more or less urgent."""
        return self.live[priority] == sum(self.live)

    def enter(self, ticket: Ticket, now: float) -> None:
        ticket.stage = Stage.QUEUED
        self.live[ticket.priority] += 1
        self.queued.put(ticket, ticket.priority, now)

    def start(self, ticket: Ticket) -> None:
        self._stop_waiting(ticket)
        self._move(ticket)

    def start_piece(self, ticket: Ticket, now: float) -> None:
        self.start(ticket)
        ticket.is_piece = True
        self.piece, self._piece_at = ticket, now

    def enter_moving(self, ticket: Ticket) -> None:
        """Where nobody waits."""
        self.live[ticket.priority] += 1
        self._move(ticket)

    def pause(self, ticket: Ticket, now: float) -> None:
        self._stop(ticket)
        ticket.stage = Stage.PAUSED
        self.paused.put(ticket, ticket.priority, now)

    def leave(self, ticket: Ticket) -> None:
        if ticket.is_moving:
            self._stop(ticket)
        else:
            self._stop_waiting(ticket)
        ticket.stage = Stage.ENDED
        self.live[ticket.priority] -= 1

    def _move(self, ticket: Ticket) -> None:
        ticket.stage, ticket.is_piece = Stage.MOVING, False
        self.moving[ticket] = None

    def _stop_waiting(self, ticket: Ticket) -> None:
        waiting = self.queued if ticket.stage is Stage.QUEUED else self.paused
        waiting.remove(ticket)

    def _stop(self, ticket: Ticket) -> None:
        del self.moving[ticket]
        ticket.is_told = False
        if self.piece is ticket:
            self.piece = None
        if self.victim is ticket:
            self.victim = None

    def next_whole(self) -> Waiting[Ticket] | None:
        """Who may move to its end: of those whom nobody outranks, first who was paused."""
        return next(iter(self._top()), None)

    def next_piece(self, now: float) -> Waiting[Ticket] | None:
        """Who waited long enough behind more urgent ones for one piece.

        One at a time, and who waits for it is let through before the next one.
        """
        if self.piece is not None or any(each.since <= self._piece_at for each in self._top()):
            return None
        aged = [each for each in self._outranked() if self._ages_at(each) <= now and self._may_hold_thread(each)]
        return min(aged, key=lambda each: each.since, default=None)

    def wake_at(self, now: float) -> float | None:
        """When time alone changes who is next."""
        return min((at for each in self._outranked() if (at := self._ages_at(each)) > now), default=None)

    def choose_victim(self, now: float) -> None:
        """To be called when nobody more can start: a piece that is due then waits for room."""
        due = self.next_piece(now)
        if due is None:
            self.victim = None
        elif self.victim is None and not any(ticket.is_told for ticket in self.moving):
            more_urgent = [ticket for ticket in reversed(self.moving) if ticket.priority > due.priority]
            self.victim = min(more_urgent, key=lambda ticket: ticket.priority, default=None)

    def _top(self) -> list[Waiting[Ticket]]:
        top = next((each for each in PRIORITIES if self.live[each]), None)
        heads = [] if top is None else [self.paused.head(top), self.queued.head(top)]
        return [each for each in heads if each is not None]

    def _outranked(self) -> list[Waiting[Ticket]]:
        heads = self.paused.heads() + self.queued.heads()
        return [each for each in heads if self.is_outranked(each.priority)]

    def _ages_at(self, waiting: Waiting[Ticket]) -> float:
        return waiting.since + self._ageing_s

    def _may_hold_thread(self, waiting: Waiting[Ticket]) -> bool:
        started = self.live[waiting.priority] - self.queued.count(waiting.priority)
        return waiting.item.stage is Stage.PAUSED or started < self._limit

    def check_integrity(self) -> None:
        self.queued.check_integrity()
        self.paused.check_integrity()
        stages = {Stage.QUEUED: list(self.queued), Stage.MOVING: list(self.moving), Stage.PAUSED: list(self.paused)}
        assert all(ticket.stage is stage for stage, tickets in stages.items() for ticket in tickets)
        entered = [ticket for tickets in stages.values() for ticket in tickets]
        assert self.live == [sum(ticket.priority == each for ticket in entered) for each in Priority]
        assert len(self.moving) <= self._limit
        for each in Priority:
            assert self.live[each] - self.queued.count(each) <= self._limit
        assert [ticket for ticket in self.moving if ticket.is_piece] == [self.piece] * (self.piece is not None)
        assert self.victim is None or self.victim in self.moving
