"""Two ranks, each a process with a device of its own, that talk through a pipe beside the communicator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.emulator.rules.cann import Cann
from tests.emulator.rules.processes import Child, pipe


class Rank:
    """What a rank's function gets: its libraries, its communicator, a stream, and a line to the other rank."""

    def __init__(self, rank: int, line: Any) -> None:
        self.rank, self.peer, self.line = rank, 1 - rank, line
        self.cann = Cann(rank)
        root = self.cann.root() if rank == 0 else line.recv()
        if rank == 0:
            line.send(root)
        self.comm = self.cann.join(root, 2, rank)
        self.stream = self.cann.stream()

    def buffer(self, data: bytes) -> int:
        address = self.cann.malloc(len(data))
        self.cann.put(address, data)
        return address

    def send(self, address: int, count: int, kind: int = 7, stream: int | None = None) -> int:
        return self.cann.move("HcclSend", address, count, kind, self.peer, self.comm, stream or self.stream)

    def receive(self, address: int, count: int, kind: int = 7, stream: int | None = None) -> int:
        return self.cann.move("HcclRecv", address, count, kind, self.peer, self.comm, stream or self.stream)

    def wait(self, milliseconds: int = 20000) -> int:
        return self.cann.wait(self.stream, milliseconds)

    def destroy(self) -> list[int]:
        """The codes of destroying until it succeeds."""
        codes = []
        while not codes or (codes[-1] == 20 and len(codes) < 2000):
            codes.append(self.cann.destroy(self.comm))
            time.sleep(0.005)
        return codes


def _as_rank(function: Callable[[Rank], Any], rank: int, line: Any) -> Any:
    return function(Rank(rank, line))


def pair(
    child: Callable[..., Child], first: Callable[[Rank], Any], second: Callable[[Rank], Any], **environment: str
) -> list[Child]:
    mine, theirs = pipe()
    return [child(_as_rank, first, 0, mine, **environment), child(_as_rank, second, 1, theirs, **environment)]
