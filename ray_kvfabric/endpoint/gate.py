"""Gate: lets the transfers of one endpoint move when `control/admission.py` says so. Called by jobs and `transfers`.

    with gate.turn(...) as turn:                who moves in its own thread sleeps until it may
    gate.queue(gate.turn(...), caller)          who has no thread yet is called when it may
    copy gave way -> turn.pause(...)            sleeps until it may move again: to its end, or one piece

Nobody polls: a sleeper is woken by whoever leaves, by `cancelled`, or by its deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple, cast

from ray_kvfabric.config import AdmissionSettings
from ray_kvfabric.control.admission import Admission, Command, Commands, GiveWay, GoOn, Refuse, Start
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.lane import Stage, Ticket
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.alarm import Alarm
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import TransferCancelled, TransferTimeout
from ray_kvfabric.memory.copy import StopWord, WayWord

Log = Callable[[str, Turn, float], None]  # what happened, to whom, when (seconds of time.monotonic())


class Caller(NamedTuple):
    """Whom to call for a turn that no thread sleeps for: one of the two, once, with no lock held."""

    begin: Callable[[Turn], None]
    give_up: Callable[[TransferTimeout], None]


class Gate:
    """Threads share it. `make_word` makes the word of a turn that can give way; `log` is told what happens.

    logged: asked, refused, started, told to give way, may go on, gave way, went on, ended; "... for a piece"
    """

    def __init__(self, settings: AdmissionSettings, make_word: Callable[[], WayWord], log: Log | None = None) -> None:
        self.lock = threading.Lock()
        self.make_word = make_word
        self._admission = Admission(settings)
        self._log = log
        # A turn that waits is in one of these, or about to be.
        self._sleeping: dict[Turn, threading.Event] = {}
        self._threadless: dict[Turn, Caller] = {}
        self._alarm = Alarm(self._ring)
        self.start_alone: Callable[[Ticket], bool] = self._admission.start_alone if log is None else _never
        self.end_alone = self._admission.end_alone

    # ---- whose transfer moves ----

    def turn(
        self,
        target: int,
        link: Hashable,
        nbytes: int,
        priority: Priority,
        deadline: Deadline,
        stop: StopWord | None,
    ) -> Turn:
        """To be entered by `with`, which waits. `target` is the other endpoint's cluster_id, `link` a way to it."""
        return Turn(self, target, link, nbytes, priority, deadline, stop)

    def queue(self, turn: Turn, caller: Caller) -> None:
        """Has `caller` called once it may move, maybe at once from here, or when its deadline passes before.

        Raises QueueFull, and calls nobody. `turn.leave()` ends it, also while it waits: then nobody is called.
        """
        with self.lock:
            self._threadless[turn] = caller
        self._begin(turn)
        self._alarm.set(_seconds(turn.deadline))

    def cancelled(self, stop: StopWord) -> None:
        """To be called once `stop` is set: who sleeps with it wakes and raises TransferCancelled."""
        with self.lock:
            for turn, wake in self._sleeping.items():
                if turn.stop is stop:
                    wake.set()

    def describe(self) -> dict[int, dict[str, int]]:
        """By target: how many transfers are moving, queued and paused, and the bytes of the moving ones."""
        with self.lock:
            return {target: counts._asdict() for target, counts in self._admission.all_counts().items()}

    # ---- for turns ----

    def admit(self, turn: Turn) -> None:
        self._begin(turn)
        if not turn.is_moving:
            self._sleep(turn)

    def pause(self, turn: Turn) -> None:
        self._carry_out("gave way", turn, self._admission.gave_way)
        self._sleep(turn)

    def end(self, turn: Turn) -> None:
        self._carry_out("ended", turn, self._end)

    def _begin(self, turn: Turn) -> None:
        for command in self._carry_out("asked", turn, self._admission.begin):
            if isinstance(command, Refuse):
                raise command.error

    def _sleep(self, turn: Turn) -> None:
        """Until it moves; what ends the wait before that ends the turn."""
        try:
            while (wake := self._until_it_moves(turn)) is not None:
                self._check_may_wait(turn)
                wake.wait(turn.deadline.remaining_s)
        except BaseException:
            self.end(turn)
            raise

    def _until_it_moves(self, turn: Turn) -> threading.Event | None:
        """What wakes its thread; it is laid out before stop word and deadline are looked at, so no waking is lost."""
        with self.lock:
            if turn.is_moving:
                return None
            wake = self._sleeping[turn] = threading.Event()
            return wake

    def _check_may_wait(self, turn: Turn) -> None:
        if turn.stop is not None and turn.stop.is_set:
            raise TransferCancelled(
                f"the transfer was cancelled while it waited for its turn to endpoint {turn.target}"
            )
        if turn.deadline.passed:
            raise TransferTimeout(self._why_late(turn))

    def _why_late(self, turn: Turn) -> str:
        with self.lock:
            here = self._admission.counts(turn.target)
        others = here.moving + here.queued + here.paused - 1
        return (
            f"the time limit passed while the transfer waited for {others} others to or from endpoint {turn.target}: "
            f"there {here.moving} move, {here.queued} are queued and {here.paused} paused, itself among them"
        )

    # ---- acting ----

    def _carry_out(self, what: str, turn: Turn, decide: Callable[[Turn, float], Commands]) -> Commands:
        with self.lock:
            now = time.monotonic()
            own = [] if turn.stage is Stage.ENDED else [(what, turn)]  # one that ends twice ended once
            commands = decide(turn, now)
            callers = self._act(commands)
            entries = [*own, *map(_entry, commands)] if self._log else []
        self._call(callers, entries, now)
        return commands

    def _ring(self) -> float | None:
        """Somebody has aged, or the deadline of one that no thread sleeps for has passed."""
        with self.lock:
            now = time.monotonic()
            commands = self._admission.tick(now)
            callers = self._act(commands)
            entries = list(map(_entry, commands)) if self._log else []
            late = {turn: caller for turn, caller in self._threadless.items() if _seconds(turn.deadline) <= now}
            deadlines = [_seconds(turn.deadline) for turn in self._threadless.keys() - late.keys()]
        self._call(callers, entries, now)
        for turn, caller in late.items():
            self._give_up(turn, caller)
        return min(deadlines, default=None)

    def _give_up(self, turn: Turn, caller: Caller) -> None:
        """Unless it began, or was ended, since it was found late."""
        error = TransferTimeout(self._why_late(turn))
        with self.lock:
            is_ours = self._threadless.pop(turn, None) is not None
        if is_ours:
            self.end(turn)
            caller.give_up(error)

    def _act(self, commands: Commands) -> list[tuple[Caller, Turn]]:
        """Under the lock: words and sleepers. Returns whom to call."""
        callers: list[tuple[Caller, Turn]] = []
        for command in commands:
            turn = cast(Turn, command.ticket)
            turn.show_way()
            if isinstance(command, Refuse):
                self._threadless.pop(turn, None)
            elif isinstance(command, Start):
                if turn in self._sleeping:
                    self._sleeping.pop(turn).set()
                if turn in self._threadless:
                    callers.append((self._threadless.pop(turn), turn))
        self._alarm.set(self._admission.wake_at)
        return callers

    def _call(self, callers: list[tuple[Caller, Turn]], entries: list[tuple[str, Turn]], now: float) -> None:
        for what, turn in entries:
            cast(Log, self._log)(what, turn, now)
        for caller, turn in callers:
            caller.begin(turn)

    def _end(self, turn: Turn, now: float) -> Commands:
        self._sleeping.pop(turn, None)
        self._threadless.pop(turn, None)
        return self._admission.end(turn, now)


def _entry(command: Command) -> tuple[str, Turn]:
    turn = cast(Turn, command.ticket)
    match command:
        case Start(_, is_again):
            return ("went on" if is_again else "started") + (" for a piece" if turn.is_piece else ""), turn
        case GiveWay():
            return "told to give way", turn
        case GoOn():
            return "may go on", turn
        case Refuse():
            return "refused", turn


def _seconds(deadline: Deadline) -> float:
    return deadline.at_ns / 1e9


def _never(ticket: Ticket) -> bool:
    return False
