"""One source to many targets of this host: each byte is read from memory once and written to every target.

    for each piece of at most 4 MiB: a turn at every target, enter all -> copy, while anybody's fence stands -> leave
    the last piece: land each
Between pieces nothing is held, so more urgent transfers of any target go first, and two fans do not wait for each
other. A target that died, was revoked, is late or does not let anybody in costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException
from ray_kvfabric.memory.copy import COPY_DONE, COPY_STOPPED, COPY_TIMED_OUT, Copier, RegionTable, Target
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.base import Order, RemoteCache
from ray_kvfabric.transport.host_link import HostLink
from ray_kvfabric.transport.passage import Passage

PIECE_NBYTES = 4 << 20


class Branch(NamedTuple):
    """One target: the plan's source side is the same for all of a fan."""

    link: HostLink
    remote: RemoteCache
    plan: Plan
    order: Order


Outcome = Receipt | LLMException
TakeTurns = Callable[[ExitStack, list[int], int], dict[int, LLMException]]


class Fan:
    """The targets are of different endpoints, none this one, and list no block twice.

    `take_turns(turns, branches, nbytes)` waits until a piece of `nbytes` may move to all of those branches, and gives
    back in `turns` what it took; it names the branches that may not, with the reason.
    """

    def __init__(self, copier: Copier, source: RegionTable, branches: list[Branch], take_turns: TakeTurns) -> None:
        self._copier = copier
        self._source = source
        self._branches = branches
        self._take_turns = take_turns
        self._passages = {
            index: each.link.passage(each.remote, each.plan, each.order) for index, each in enumerate(branches)
        }
        self._outcomes: dict[int, Outcome] = {}
        self._moved = 0

    def run(self) -> list[Outcome]:
        """The receipt or the error of each branch."""
        pieces = list(_pieces(self._source, self._branches[0].plan))
        for number, piece in enumerate(pieces):
            with ExitStack() as turns:
                self._move(turns, piece, is_last=number == len(pieces) - 1)
        return [self._outcomes[index] for index in range(len(self._branches))]

    def _move(self, turns: ExitStack, piece: tuple[int, int, int, int], *, is_last: bool) -> None:
        refused = self._take_turns(turns, list(self._passages), self._nbytes_of(piece))
        for index, error in refused.items():
            self._end(index, error)
        inside = [index for index in list(self._passages) if self._enter(index)]
        try:
            self._copy(inside, *piece)
        except BaseException as error:
            for index in [each for each in inside if each in self._passages]:
                self._abandon(index, error)
            if not isinstance(error, LLMException):
                raise
        for index in list(self._passages):
            if is_last:
                self._outcomes[index] = _landed(self._passages.pop(index), self._moved)
            else:
                self._passages[index].leave()

    def _nbytes_of(self, piece: tuple[int, int, int, int]) -> int:
        first, count, start, stop = piece
        at = self._branches[0].plan.span.source_first + first
        return sum(self._source[at + index][2] for index in range(count)) * (stop - start)

    def _enter(self, index: int) -> bool:
        order = self._branches[index].order
        try:
            if order.stop is not None and order.stop.is_set:
                raise self._passages[index].copy_error(COPY_STOPPED, self._moved)
            if Deadline(order.deadline_ns).passed:
                raise self._passages[index].copy_error(COPY_TIMED_OUT, self._moved)
            self._passages[index].enter()
        except LLMException as error:
            self._end(index, error)
            return False
        return True

    def _copy(self, inside: list[int], first: int, count: int, start: int, stop: int) -> None:
        """Regions [first, first + count) of the plan, pairs [start, stop)."""
        if not inside:
            return
        plan = self._branches[0].plan
        digests = self._digests(inside, count * (stop - start))
        _, nbytes, statuses = self._copier.copy_blocks_to(
            self._source,
            plan.span.source_first + first,
            count,
            self._copier.BlockList(list(plan.source_blocks)[start:stop], "src_blocks"),
            [self._target(index, first, start, stop) for index in inside],
            deadline_ns=max(self._branches[index].order.deadline_ns for index in inside),
            digests=digests,
        )
        self._moved += nbytes
        for index, status in zip(inside, statuses, strict=True):
            if status != COPY_DONE:
                self._abandon(index, self._passages[index].copy_error(status, self._moved))
            elif digests is not None:
                self._passages[index].note_digests(digests, slice(first, first + count), slice(start, stop))

    def _digests(self, inside: list[int], entries: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]] | None:
        wanted = any(self._passages[index].wants_digests for index in inside)
        return np.zeros(entries, np.uint32) if wanted else None

    def _target(self, index: int, first: int, start: int, stop: int) -> Target:
        _, remote, plan, _ = self._branches[index]
        blocks = self._copier.BlockList(list(plan.target_blocks)[start:stop], "dst_blocks")
        return remote.table, plan.span.target_first + first, blocks, self._passages[index].step.fence

    def _abandon(self, index: int, error: BaseException) -> None:
        """It failed inside."""
        self._passages.pop(index).abandon(error)
        if isinstance(error, LLMException):
            self._outcomes[index] = error

    def _end(self, index: int, error: LLMException) -> None:
        """It failed outside."""
        del self._passages[index]
        self._outcomes[index] = error


def _landed(passage: Passage, nbytes: int) -> Outcome:
    try:
        return passage.land(nbytes)
    except LLMException as error:
        return error


def _pieces(source: RegionTable, plan: Plan) -> Iterator[tuple[int, int, int, int]]:
    """Regions and pairs of each piece: all regions of some pairs where a pair fits, else some regions of one pair."""
    sizes = [source[plan.span.source_first + index][2] for index in range(plan.span.num_regions)]
    pairs = len(plan.source_blocks)
    step = max(PIECE_NBYTES // sum(sizes), 1)
    regions = len(sizes) if sum(sizes) <= PIECE_NBYTES else max(PIECE_NBYTES // max(sizes), 1)
    for start in range(0, pairs, step):
        for first in range(0, len(sizes), regions):
            yield first, min(regions, len(sizes) - first), start, min(start + step, pairs)
