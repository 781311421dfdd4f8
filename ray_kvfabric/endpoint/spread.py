"""Spread: the jobs of one `push_blocks_to`, and what became of each.

small     one by one: sharing a reading would cost more than it gains
apart     targets that this process cannot write, or that need care of their own: by threads, at the same time
together  the rest: one reading of the source (`transport/fan.py`)
Whatever ends one of them is its outcome alone. Each has its time from when it is begun, not from the call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.granted_job import GrantedJob
from ray_kvfabric.endpoint.jobs import BlocksJob
from ray_kvfabric.endpoint.links import Way
from ray_kvfabric.endpoint.transfers import GiveUp, Transfer
from ray_kvfabric.errors import LLMException, PeerGone, QueueFull, StaleRoute, TransferCancelled, TransferTimeout
from ray_kvfabric.memory.copy import Copier
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.fan import Branch, Fan
from ray_kvfabric.transport.host_link import HostLink

SHARED_NBYTES = 256 << 10  # from here on one reading of the source gains more than it costs
AT_ONCE = Deadline(0)

Outcome = Receipt | LLMException
Start = Callable[[BlocksJob, GiveUp | None], Transfer]


@dataclass(slots=True)
class Ready:
    """A job whose way is open and whose plan fits."""

    index: int
    job: BlocksJob
    way: Way
    plan: Plan


@dataclass(slots=True)
class Spread:
    """`start` lets a job move without the caller; `incarnation` is this endpoint's."""

    copier: Copier
    start: Start
    incarnation: int
    jobs: list[BlocksJob]
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def run(self) -> list[Outcome]:
        if not self.jobs:
            return []
        spans = [each.deadline.remaining_s for each in self.jobs]
        mover, cache_id = self.jobs[0].mover, self.jobs[0].cache_id
        entry = mover.caches.enter(cache_id, id(self))
        try:
            if self.jobs[0].nbytes(entry) < SHARED_NBYTES:
                for index in self._open_ones_first():
                    self.outcomes[index] = self._run_one(index, spans[index])
            else:
                self._share(entry, spans)
        finally:
            entry.leave(id(self))
        return [self.outcomes[index] for index in range(len(self.jobs))]

    def _open_ones_first(self) -> list[int]:
        """Who has to be looked for first does not keep those who are known."""
        return sorted(range(len(self.jobs)), key=lambda index: not self._is_open(self.jobs[index]))

    def _is_open(self, job: BlocksJob) -> bool:
        return job.mover.links.is_open(job.way_name)

    def _run_one(self, index: int, span_s: float) -> Outcome:
        self.jobs[index].begin_now(span_s)
        return _outcome(self.jobs[index].run)

    def _share(self, entry: CacheEntry, spans: list[float]) -> None:
        """Those that go alone begin first, and are waited for last."""
        found = [self._prepare(index, entry, spans[index]) for index in self._open_ones_first()]
        ready = [each for each in found if each is not None]
        together = [each for each in ready if self._may_share(each, ready)]
        started = {each.index: self._started(each, spans[each.index]) for each in ready if each not in together}
        if together:
            self._fan(together, entry, spans)
        for index, transfer in started.items():
            self.outcomes[index] = transfer if isinstance(transfer, LLMException) else _outcome(transfer.wait)

    def _prepare(self, index: int, entry: CacheEntry, span_s: float) -> Ready | None:
        job = self.jobs[index]
        job.begin_now(span_s)
        try:
            return Ready(index, job, *job.prepare(entry, is_last=False))
        except (StaleRoute, PeerGone):
            self.outcomes[index] = self._run_one(index, span_s)  # which looks for another way
        except LLMException as error:
            self.outcomes[index] = self._given_up(job, error)
        return None

    def _may_share(self, one: Ready, others: list[Ready]) -> bool:
        """Its target lies in memory of its own, which is mapped here; of several in one endpoint the first."""
        link = one.way.link
        first = next(each for each in others if each.way.link.peer.incarnation == link.peer.incarnation)
        blocks = list(one.plan.target_blocks)
        return (
            isinstance(link, HostLink)
            and link.reaches_memory
            and link.peer.incarnation != self.incarnation
            and first is one
            and len(set(blocks)) == len(blocks)
            and one.plan.span.source_first == others[0].plan.span.source_first
            and one.plan.span.num_regions == others[0].plan.span.num_regions
        )

    def _started(self, ready: Ready, span_s: float) -> Transfer | LLMException:
        job = ready.job
        job.begin_now(span_s)
        try:
            return self.start(job, job.give_up if isinstance(job, GrantedJob) else None)
        except QueueFull as error:
            return self._given_up(job, error)

    # ---- together ----------------------------------------------------------------------------------

    def _fan(self, together: list[Ready], entry: CacheEntry, spans: list[float]) -> None:
        jobs = [each.job for each in together]
        branches = []
        for each in together:
            each.job.begin_now(spans[each.index])
            assert isinstance(each.way.link, HostLink)
            branches.append(Branch(each.way.link, each.way.remote, each.plan, each.job.order(entry, None, None)))
        fan = Fan(self.copier, entry.table, branches, lambda *asked: _take_turns(jobs, *asked))
        for each, outcome in zip(together, fan.run(), strict=True):
            self.outcomes[each.index] = self._settled(each, outcome, spans[each.index])

    def _settled(self, ready: Ready, outcome: Outcome, span_s: float) -> Outcome:
        """A stale way, or a peer that had been restarted: a new way may work. No byte had landed there."""
        if isinstance(outcome, StaleRoute | PeerGone):
            ready.job.mover.links.forget(ready.way)
            return self._run_one(ready.index, span_s)
        return self._given_up(ready.job, outcome) if isinstance(outcome, LLMException) else outcome

    def _given_up(self, job: BlocksJob, error: LLMException) -> LLMException:
        """The receiver of a grant is not left waiting."""
        if isinstance(job, GrantedJob) and isinstance(error, TransferTimeout | TransferCancelled):
            job.give_up(error)
        return error


def _take_turns(jobs: list[BlocksJob], turns: ExitStack, wanted: list[int], nbytes: int) -> dict[int, LLMException]:
    """All of them, or for the moment none: who waits at one target holds no turn at another."""
    refused: dict[int, LLMException] = {}
    waited_for: int | None = None
    while True:
        taken = ExitStack()
        left = [index for index in wanted if index not in refused]
        if waited_for is not None:  # the one that had no room is waited for alone, and kept
            try:
                taken.enter_context(jobs[waited_for].piece_turn(nbytes, jobs[waited_for].deadline))
            except LLMException as error:
                refused[waited_for], waited_for = error, None
                continue
            left.remove(waited_for)
        waited_for = _take_at_once(jobs, taken, left, nbytes)
        if waited_for is None:
            turns.push(taken.pop_all())
            return refused
        taken.close()


def _take_at_once(jobs: list[BlocksJob], taken: ExitStack, wanted: list[int], nbytes: int) -> int | None:
    """The first that has no room now; None: all have."""
    return next((index for index in wanted if not _take_one(jobs[index], taken, nbytes)), None)


def _take_one(job: BlocksJob, taken: ExitStack, nbytes: int) -> bool:
    try:
        taken.enter_context(job.piece_turn(nbytes, AT_ONCE))
    except (TransferTimeout, QueueFull):
        return False
    return True


def _outcome(run: Callable[[], Receipt]) -> Outcome:
    try:
        return run()
    except LLMException as error:
        return error
