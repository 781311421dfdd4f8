"""Admission: which transfers of an endpoint move now. Events in, commands out; the caller carries them out.

    begin    -> Start | Refuse | nothing yet          end      of any ticket, any number of times
    gave_way -> it is paused, until its Start         tick     at `wake_at`: somebody's waiting has aged

On a link the more urgent ones go first: the others are told to give way, stop after at most 4 MiB and hold nothing
until nobody outranks them any more. Who waited `ageing_s` behind them moves one piece, and then waits anew.
To a target they go by effective priority over all its links: whoever is first is not overtaken there, so that
one that needs much room gets it. Targets do not wait for each other.
"""

from __future__ import annotations

from typing import NamedTuple

from ray_kvfabric.config import AdmissionSettings
from ray_kvfabric.control.lane import Stage, Ticket
from ray_kvfabric.control.target import Counts, Target
from ray_kvfabric.errors import QueueFull


class Start(NamedTuple):
    """It moves from now on; `is_again`: after a pause. If only a piece of at most 4 MiB, `ticket.is_piece`."""

    ticket: Ticket
    is_again: bool = False


class GiveWay(NamedTuple):
    """It moves, and has to stop after at most 4 MiB."""

    ticket: Ticket


class GoOn(NamedTuple):
    """It was told to give way, and need not any more."""

    ticket: Ticket


class Refuse(NamedTuple):
    """It does not wait: it has ended."""

    ticket: Ticket
    error: QueueFull


Command = Start | GiveWay | GoOn | Refuse
Commands = list[Command]


class Admission:
    """A ticket begins once. `now` is seconds of one monotonic clock. Threads take turns, but for the two `alone`."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        # idle: in neither | alone: one ticket that no lane knows | crowded: a Target, whose lanes know all tickets
        # start_alone puts its ticket first and looks for a Target then; begin puts the Target first and looks for a
        # ticket then. So of two that come at once, at least one sees the other.
        self._alone: dict[int, Ticket] = {}
        self._targets: dict[int, Target] = {}
        self._queued = 0
        self._wakes: dict[int, float] = {}  # by target, when time alone changes something there

    # ---- the usual case: nobody else is there; any thread, at any time ----

    def start_alone(self, ticket: Ticket) -> bool:
        """Starts it if nobody else moves or waits to its target; if not, it has to `begin`."""
        cluster_id = ticket.target
        return self._alone.setdefault(cluster_id, ticket) is ticket and cluster_id not in self._targets

    def end_alone(self, ticket: Ticket) -> bool:
        """Ends it if it is still alone; if not, it has to `end`.

        What else it could take away here is a ticket that finds a Target, and begins.
        """
        cluster_id = ticket.target
        return self._alone.get(cluster_id) is ticket and self._alone.pop(cluster_id, None) is ticket

    # ---- events ----

    def begin(self, ticket: Ticket, now: float) -> Commands:
        """A Start of it among the commands, now or of a later event; or a Refuse."""
        self.end_alone(ticket)
        target = self._targets.get(ticket.target) or self._crowd(ticket.target)
        if ticket.is_moving:  # it was alone when somebody came
            return []
        if target.fits_quietly(ticket):
            target.enter_moving(ticket)
            return [Start(ticket)]
        target.enter(ticket, now)
        self._queued += 1
        commands = self._settle(ticket.target, now)
        if ticket.stage is Stage.QUEUED and self._queued > self._settings.max_queued:
            commands += [*self.end(ticket, now), Refuse(ticket, QueueFull(self._why_refused(ticket.target)))]
        return commands

    def gave_way(self, ticket: Ticket, now: float) -> Commands:
        """It stopped before its end, and holds nothing until it starts again."""
        if self._alone.get(ticket.target) is ticket:
            self._crowd(ticket.target)
        if not ticket.is_moving:
            return []
        self._targets[ticket.target].pause(ticket, now)
        return self._settle(ticket.target, now)

    def end(self, ticket: Ticket, now: float) -> Commands:
        """It landed, failed or was cancelled, wherever it was; a second time nothing happens."""
        if self.end_alone(ticket) or ticket.stage in (Stage.NEW, Stage.ENDED):
            return []
        target = self._targets[ticket.target]
        self._queued -= ticket.stage is Stage.QUEUED
        was_quiet = target.is_quiet
        target.leave(ticket)
        if target.lanes:
            return [] if was_quiet else self._settle(ticket.target, now)
        del self._targets[ticket.target]
        return []

    def tick(self, now: float) -> Commands:
        due = [cluster_id for cluster_id, at in self._wakes.items() if at <= now]
        return [command for cluster_id in due for command in self._settle(cluster_id, now)]

    @property
    def wake_at(self) -> float | None:
        return min(self._wakes.values(), default=None)

    # ---- facts ----

    def counts(self, cluster_id: int) -> Counts:
        if cluster_id in self._targets:
            return self._targets[cluster_id].counts()
        alone = self._alone.get(cluster_id)
        return Counts(0, 0, 0, 0) if alone is None else Counts(1, 0, 0, alone.nbytes)

    def all_counts(self) -> dict[int, Counts]:
        """Of the targets that anything moves or waits to."""
        return {cluster_id: self.counts(cluster_id) for cluster_id in {*self._targets, *self._alone.copy()}}

    def check_integrity(self) -> None:
        """While nobody is in the middle of `start_alone`."""
        assert not self._alone.keys() & self._targets.keys()
        for target in self._targets.values():
            target.check_integrity()
        assert self._queued == sum(target.counts().queued for target in self._targets.values())
        assert self._queued <= self._settings.max_queued
        assert self._wakes.keys() <= self._targets.keys()

    # ---- deciding ----

    def _settle(self, cluster_id: int, now: float) -> Commands:
        """Starts who may move, then tells who has to give way to those that still wait."""
        target = self._targets[cluster_id]
        commands: Commands = []
        while (choice := target.choose(now)) is not None:
            is_again = choice.ticket.stage is Stage.PAUSED
            self._queued -= not is_again
            target.start(choice, now)
            commands.append(Start(choice.ticket, is_again))
        commands += [GiveWay(ticket) if ticket.is_told else GoOn(ticket) for ticket in target.retell(now)]
        self._note_wake(cluster_id, target.wake_at(now))
        return commands

    def _note_wake(self, cluster_id: int, at: float | None) -> None:
        self._wakes.pop(cluster_id, None)
        if at is not None:
            self._wakes[cluster_id] = at

    def _crowd(self, cluster_id: int) -> Target:
        """Somebody comes: the one that is alone gets its place in a lane."""
        target = self._targets[cluster_id] = Target(self._settings)
        alone = self._alone.pop(cluster_id, None)
        if alone is not None:
            target.enter_moving(alone)
        return target

    def _why_refused(self, cluster_id: int) -> str:
        here, limits = self.counts(cluster_id), self._settings
        return (
            f"{self._queued} transfers of this endpoint wait, and admission.max_queued is {limits.max_queued}; "
            f"to endpoint {cluster_id} {here.moving} move, {here.queued} wait and {here.paused} are paused"
        )
