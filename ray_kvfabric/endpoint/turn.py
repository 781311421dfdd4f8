"""Turn: one transfer's right to move, given and taken by the `gate`."""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import TYPE_CHECKING

from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.lane import PIECE_NBYTES, Stage, Ticket
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.memory.copy import StopWord, WayWord

if TYPE_CHECKING:
    from ray_kvfabric.endpoint.gate import Gate


class Turn(Ticket):
    """`with` waits for it and ends it; each push pays for this, so the usual case makes no further call.

    `give_way` is the word that its copy watches; None for one of at most 4 MiB, which ends as soon.
    """

    __slots__ = ("_gate", "_is_raised", "deadline", "give_way", "stop")

    def __init__(
        self,
        gate: Gate,
        target: int,
        link: Hashable,
        nbytes: int,
        priority: Priority,
        deadline: Deadline,
        stop: StopWord | None,
    ) -> None:
        self.target = target  # these six are what Ticket's own does
        self.link = link
        self.nbytes = nbytes
        self.priority = priority
        self.stage = Stage.NEW
        self.is_piece = self.is_told = False
        self._gate = gate
        self.deadline = deadline
        self.stop = stop
        self.give_way: WayWord | None = None
        if nbytes > PIECE_NBYTES:
            self.give_way, self._is_raised = gate.make_word(), False

    @property
    def only_piece(self) -> bool:
        """`give_way` stays raised: the copy gives way again after at most 4 MiB, unless it has ended then."""
        return self.is_piece

    def __enter__(self) -> Turn:
        """Raises QueueFull, TransferTimeout, TransferCancelled."""
        if not self._gate.start_alone(self):
            self._gate.admit(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._gate.end_alone(self):
            self._gate.end(self)

    def leave(self) -> None:
        """For a turn that was queued; a second time it does nothing."""
        self.__exit__(None, None, None)

    def pause(self, deadline: Deadline, stop: StopWord | None) -> None:
        """Its copy gave way: holds nothing until it may move again. Raises TransferTimeout, TransferCancelled."""
        self.deadline, self.stop = deadline, stop
        self._gate.pause(self)

    def show_way(self) -> None:
        """For the gate, which holds its lock."""
        is_raised = self.is_piece or self.is_told
        if self.give_way is None or self._is_raised == is_raised:
            return
        self._is_raised = is_raised
        if is_raised:
            self.give_way.raise_()
        else:
            self.give_way.lower()
