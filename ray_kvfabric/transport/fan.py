"""One source to many targets of this host: each byte is read from memory once and written to every target.

    enter all -> one piece of at most 4 MiB after another, while anybody's fence stands -> land each
A target that died, was revoked or does not let anybody in costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException
from ray_kvfabric.memory.copy import COPY_DONE, Copier, RegionTable, Target
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


class Fan:
    """`passages` are those of the branches that are still in the running.

    The targets are of different processes, none this one's, and list no block twice.
    """

    def __init__(self, copier: Copier, source: RegionTable, branches: list[Branch]) -> None:
        self._copier = copier
        self._source = source
        self._branches = branches
        self._passages = {
            index: each.link.passage(each.remote, each.plan, each.order) for index, each in enumerate(branches)
        }
        self._outcomes: dict[int, Outcome] = {}
        self._moved = 0

    def run(self) -> list[Outcome]:
        """The receipt or the error of each branch."""
        self._enter_all()
        try:
            self._copy_all()
        except BaseException as error:
            for index in list(self._passages):
                self._drop(index, error)
            if not isinstance(error, LLMException):
                raise
        for index, passage in self._passages.items():
            self._outcomes[index] = _landed(passage, self._moved)
        return [self._outcomes[index] for index in range(len(self._branches))]

    def _enter_all(self) -> None:
        for index in list(self._passages):
            self._enter(index)

    def _enter(self, index: int) -> None:
        try:
            self._passages[index].enter()
        except LLMException as error:
            self._outcomes[index] = error
            del self._passages[index]

    def _copy_all(self) -> None:
        for first, count, start, stop in _pieces(self._source, self._branches[0].plan):
            if self._passages:
                self._copy(first, count, start, stop)
                self._make_way()

    def _make_way(self) -> None:
        """Who is more urgent on one of the links goes first; nothing of any peer is held meanwhile."""
        for index in list(self._passages):
            turn, order = self._branches[index].order.turn, self._branches[index].order
            if turn is None or turn.give_way is None or not turn.give_way.is_raised:
                continue
            for passage in self._passages.values():
                passage.leave()
            try:
                turn.pause(Deadline(order.deadline_ns), order.stop)
            finally:
                self._enter_all()

    def _copy(self, first: int, count: int, start: int, stop: int) -> None:
        """Regions [first, first + count) of the plan, pairs [start, stop)."""
        plan, order = self._branches[0].plan, self._branches[0].order
        running = list(self._passages)
        digests = self._digests(count * (stop - start))
        _, nbytes, statuses = self._copier.copy_blocks_to(
            self._source,
            plan.span.source_first + first,
            count,
            self._copier.BlockList(list(plan.source_blocks)[start:stop], "src_blocks"),
            [self._target(index, first, start, stop) for index in running],
            deadline_ns=order.deadline_ns,
            stop=order.stop,
            digests=digests,
        )
        self._moved += nbytes
        for index, each in zip(running, statuses, strict=True):
            if each != COPY_DONE:
                self._drop(index, self._passages[index].copy_error(each, self._moved))
            elif digests is not None:
                self._passages[index].note_digests(digests, slice(first, first + count), slice(start, stop))

    def _digests(self, entries: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]] | None:
        wanted = any(passage.wants_digests for passage in self._passages.values())
        return np.zeros(entries, np.uint32) if wanted else None

    def _target(self, index: int, first: int, start: int, stop: int) -> Target:
        _, remote, plan, _ = self._branches[index]
        blocks = self._copier.BlockList(list(plan.target_blocks)[start:stop], "dst_blocks")
        return remote.table, plan.span.target_first + first, blocks, self._passages[index].step.fence

    def _drop(self, index: int, error: BaseException) -> None:
        self._passages.pop(index).abandon(error)
        if isinstance(error, LLMException):
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
    regions = len(sizes) if step > 1 or sum(sizes) <= PIECE_NBYTES else max(PIECE_NBYTES // max(sizes), 1)
    for start in range(0, pairs, step):
        for first in range(0, len(sizes), regions):
            yield first, min(regions, len(sizes) - first), start, min(start + step, pairs)
