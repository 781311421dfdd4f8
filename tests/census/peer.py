"""Peer: the driver's end of an Actor, whose process it can stop and kill."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time
from typing import Any

from tests.census.actor import PATIENCE_S, Outcome, serve

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "ray_kvfabric", "ray_kvfabric.testing.faults", "tests.census.actor"])


class Peer:
    """An Actor in a process forked from one that has everything imported already."""

    def __init__(self) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.incarnation = 0
        self.cluster_id = 0
        self.is_stopped = False

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def open(self, cluster_id: int) -> None:
        self.ask("open", cluster_id)
        announced = self.ask("announced")
        self.cluster_id, self.incarnation = cluster_id, announced[0].incarnation

    def ask(self, verb: str, *arguments: Any, **wishes: Any) -> Any:
        """What the Actor's method returns; raises what it raises."""
        self._pipe.send((verb, arguments, wishes))
        if not self._pipe.poll(PATIENCE_S + 5):
            raise TimeoutError(f"endpoint {self.cluster_id} (pid {self.pid}) does not answer {verb}{arguments}")
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def outcome(self, name: str) -> Outcome:
        """Of what was begun; PENDING when it takes too long."""
        outcome: Outcome = self.ask("outcome", name, PATIENCE_S / 2)
        return outcome

    def try_(self, verb: str, *arguments: Any) -> Outcome:
        outcome: Outcome = self.ask("try_", verb, *arguments)
        return outcome

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.is_stopped = True

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.is_stopped = False

    def kill(self) -> float:
        """SIGKILL. When (time.monotonic()) it was dead: to give back its memory takes a moment."""
        pidfd = os.pidfd_open(self.pid)
        try:
            self._process.kill()
            select.select([pidfd], [], [], PATIENCE_S)
        finally:
            os.close(pidfd)
        died_at = time.monotonic()
        self._process.join(PATIENCE_S)
        return died_at

    def end(self) -> None:
        if self.is_alive:
            self.kill()
        self._process.close()
        self._pipe.close()
