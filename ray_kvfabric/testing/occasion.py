"""Occasion: one push or pull under a FaultPlan. Halt: a pause that a test ends."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import TransferTimeout
from ray_kvfabric.testing.fault_plan import AT_A_POINT, Event, EventLog, Fault, FaultKind, FaultPlan, Logged, Point
from ray_kvfabric.transport.base import Order

PauseHook = Callable[[Point, Order], None]  # called in the transfer's own thread; what it raises, the transfer raises
PATIENCE_S = 30.0


def go_on(point: Point, order: Order) -> None:
    """The PauseHook of who wants no pauses."""


class Halt:
    """A PauseHook that holds the transfer until `go_on`, and for `patience_s` at most. Used once."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, point: Point, order: Order) -> None:
        self._reached.set()
        if not self._released.wait(self._patience_s):
            raise TransferTimeout(f"nobody ended the pause at {point.value!r} within {self._patience_s} s")

    def await_reached(self) -> None:
        """Raises TimeoutError when no transfer comes there."""
        if not self._reached.wait(self._patience_s):
            raise TimeoutError(f"no transfer reached the pause within {self._patience_s} s")

    def go_on(self) -> None:
        self._released.set()


class Occasion:
    """What is to happen to one event, and how far it came."""

    def __init__(self, event: Event, order: Order, plan: FaultPlan, log: EventLog, pause: PauseHook) -> None:
        self.event = event
        self.order = order
        self.number = log.number(event)
        self._fault = plan.decide(event, self.number)
        self._is_taken = False
        self._max_delay_s = plan.max_delay_s
        self._log = log
        self._pause = pause

    @property
    def share(self) -> float:
        return 0.0 if self._fault is None else self._fault.share

    def takes(self, kind: FaultKind) -> bool:
        """Whether it is hit by this kind; asked by whoever then makes it so."""
        if self._fault is None or self._fault.kind is not kind:
            return False
        self._is_taken = True
        return True

    def awaits(self, point: Point) -> bool:
        return self._fault is not None and self._fault.kind in AT_A_POINT and self._fault.point is point

    def reach(self, point: Point) -> None:
        if self._fault is None or not self.awaits(point):
            return
        self._is_taken = True
        if self._fault.kind is FaultKind.DELAY:
            time.sleep(self._max_delay_s * self.share)
        elif self._fault.kind is FaultKind.PAUSE:
            self._pause(point, self.order)
        else:
            strike(self._fault)

    def end(self, outcome: str) -> None:
        self._log.note(Logged(self.event.value, self.number, "", self._named(), outcome))

    def _named(self) -> str:
        if self._fault is None:
            return ""
        return name_of(self._fault) if self._is_taken else f"{name_of(self._fault)} (not reached)"


def name_of(fault: Fault) -> str:
    return f"{fault.kind.value} at {fault.point.value}" if fault.kind in AT_A_POINT else fault.kind.value


def strike(fault: Fault) -> None:
    """SIGSTOP or SIGKILL; who is killed is dead when this returns."""
    pid = os.getpid() if fault.pid is None else fault.pid
    if fault.kind is FaultKind.FREEZE:
        os.kill(pid, signal.SIGSTOP)
        return
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], Deadline.after(PATIENCE_S).remaining_s)
    finally:
        os.close(pidfd)
