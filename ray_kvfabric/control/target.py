"""Target: the lanes to one endpoint, and what of its room they have taken. Called by `admission` alone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from ray_kvfabric.config import AdmissionSettings
from ray_kvfabric.control.ageing_queue import Priority, Waiting
from ray_kvfabric.control.lane import PIECE_NBYTES, Lane, Ticket


class Counts(NamedTuple):
    """Transfers of one target, and the bytes of those that move."""

    moving: int
    queued: int
    paused: int
    moving_nbytes: int


class Choice(NamedTuple):
    """Who starts next; `is_piece`: more urgent ones are there, so one piece only."""

    waiting: Waiting[Ticket]
    is_piece: bool

    @property
    def ticket(self) -> Ticket:
        return self.waiting.item

    @property
    def charge(self) -> int:
        return min(self.ticket.nbytes, PIECE_NBYTES) if self.is_piece else self.ticket.nbytes


class Target:
    """Its lanes are not empty, and of each moving ticket it counts the place and the bytes."""

    __slots__ = ("_blocked", "_moving", "_nbytes", "_settings", "_told", "_waiting", "lanes")

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self.lanes: dict[Hashable, Lane] = {}
        self._waiting = 0  # queued or paused
        self._moving = 0
        self._nbytes = 0
        self._told = 0  # of the moving ones, those that were told to give way
        self._blocked: Priority | None = None  # of whoever is first, and finds too little room at the target

    @property
    def is_quiet(self) -> bool:
        """Nobody waits here, nor gives way: who leaves changes nothing for the others."""
        return not self._told and not self._waiting

    def fits_quietly(self, ticket: Ticket) -> bool:
        """It can start, and nobody else is concerned."""
        lane = self.lanes.get(ticket.link)
        fits = lane is None or (not lane.is_full and lane.is_alike(ticket.priority))
        return fits and self.is_quiet and self._has_room(ticket.nbytes)

    def enter_moving(self, ticket: Ticket) -> None:
        self._lane(ticket).enter_moving(ticket)
        self._count(ticket, 1)

    def enter(self, ticket: Ticket, now: float) -> None:
        self._waiting += 1
        self._lane(ticket).enter(ticket, now)

    def pause(self, ticket: Ticket, now: float) -> None:
        self._count(ticket, -1)
        self._waiting += 1
        self.lanes[ticket.link].pause(ticket, now)

    def leave(self, ticket: Ticket) -> None:
        lane = self.lanes[ticket.link]
        if ticket.is_moving:
            self._count(ticket, -1)
        else:
            self._waiting -= 1
        lane.leave(ticket)
        if lane.is_empty:
            del self.lanes[ticket.link]

    def start(self, choice: Choice, now: float) -> None:
        self._waiting -= 1
        lane = self.lanes[choice.ticket.link]
        if choice.is_piece:
            lane.start_piece(choice.ticket, now)
        else:
            lane.start(choice.ticket)
        self._count(choice.ticket, 1)

    def choose(self, now: float) -> Choice | None:
        """The first that its lane has a place for, if the target has room for it too: it is not overtaken."""
        self._blocked = None
        for choice in self._in_order(now):
            if self.lanes[choice.ticket.link].is_full:
                continue
            if self._has_room(choice.charge):
                return choice
            self._blocked = choice.ticket.priority
            return None
        return None

    def retell(self, now: float) -> list[Ticket]:
        """To be called when nobody can start: those for whom it changed whether they have to give way."""
        changed: list[Ticket] = []
        for lane in self.lanes.values():
            lane.choose_victim(now)
            changed += [each for each in lane.moving if each.is_told != self._must_give_way(lane, each)]
        for ticket in changed:
            ticket.is_told = not ticket.is_told
            self._told += 1 if ticket.is_told else -1
        return changed

    def wake_at(self, now: float) -> float | None:
        times = [at for lane in self.lanes.values() if (at := lane.wake_at(now)) is not None]
        return min(times, default=None)

    def counts(self) -> Counts:
        queued = sum(len(lane.queued) for lane in self.lanes.values())
        paused = sum(len(lane.paused) for lane in self.lanes.values())
        return Counts(self._moving, queued, paused, self._nbytes)

    def _in_order(self, now: float) -> list[Choice]:
        """Pieces first, which are small, oldest first; then by effective priority."""
        lanes = self.lanes.values()
        pieces = [each for lane in lanes if (each := lane.next_piece(now)) is not None]
        wholes = [each for lane in lanes if (each := lane.next_whole()) is not None]
        pieces.sort(key=lambda each: each.since)
        wholes.sort(key=lambda each: each.rank(now, self._settings.ageing_s), reverse=True)
        return [Choice(each, True) for each in pieces] + [Choice(each, False) for each in wholes]

    def _has_room(self, nbytes: int) -> bool:
        """One that is larger than the limit moves alone."""
        if self._moving >= self._settings.moving_per_target:
            return False
        return not self._moving or self._nbytes + nbytes <= self._settings.moving_bytes_per_target

    def _must_give_way(self, lane: Lane, ticket: Ticket) -> bool:
        """One that moves a piece stops by itself."""
        if ticket.is_piece:
            return False
        is_blocking = self._blocked is not None and ticket.priority < self._blocked
        return is_blocking or ticket is lane.victim or lane.is_outranked(ticket.priority)

    def _count(self, ticket: Ticket, sign: int) -> None:
        """Of one that starts, or stops: who stops is told nothing any more."""
        self._moving += sign
        self._nbytes += sign * ticket.charge
        self._told -= ticket.is_told

    def _lane(self, ticket: Ticket) -> Lane:
        lane = self.lanes.get(ticket.link)
        if lane is None:
            lane = self.lanes[ticket.link] = Lane(self._settings.moving_per_link, self._settings.ageing_s)
        return lane

    def check_integrity(self) -> None:
        moving = [ticket for lane in self.lanes.values() for ticket in lane.moving]
        assert self._moving == len(moving) <= self._settings.moving_per_target
        assert self._nbytes == sum(ticket.charge for ticket in moving)
        assert self._nbytes <= self._settings.moving_bytes_per_target or len(moving) == 1
        assert self._waiting == self.counts().queued + self.counts().paused
        assert self._told == sum(ticket.is_told for ticket in moving)
        for lane in self.lanes.values():
            lane.check_integrity()
            assert not lane.is_empty
