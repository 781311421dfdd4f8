"""One push to many targets: those whose memory this process has mapped share one reading of the source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.grant_verbs import GrantPlace, GrantVerbs
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.endpoint.jobs import BlocksJob
from ray_kvfabric.endpoint.links import Way
from ray_kvfabric.endpoint.requests import BlockArgument
from ray_kvfabric.errors import LLMException, PeerGone, StaleRoute
from ray_kvfabric.grant import Grant
from ray_kvfabric.plan import TENSORS_PER_LAYER, Plan
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport.fan import Branch, Fan
from ray_kvfabric.transport.host_link import HostLink

SHARED_NBYTES = 256 << 10  # from here on one reading of the source gains more than it costs
PushTarget = Grant | IssuedGrant | tuple[BlocksCacheKey, BlockArgument]
Layers = tuple[range | None, range | None, int]


class FanVerbs(GrantVerbs):
    """`push_blocks_to`."""

    def push_blocks_to(
        self,
        targets: Sequence[PushTarget],
        src_cache: Cache,
        src_blocks: BlockArgument,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        at: int = 0,
        seal: bool = True,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> list[Receipt | LLMException]:
        """Pushes the same blocks to every target: to a grant (at position `at`, see `push_granted`), or to the blocks
        of a key, `(key, dst_blocks)`. Returns what became of each, in their order: one that fails costs the others
        nothing. Raises TypeError, ValueError and ParamInvalid for wrong arguments, before a byte moves.
        """
        layers = src_layer_range, dst_layer_range, tensor_num_per_layer
        place = GrantPlace(at, seal, None)
        jobs = [self._job_to(each, src_cache, src_blocks, layers, place, timeout_s, priority) for each in targets]
        return _Spread(self, jobs).run()

    def _job_to(
        self,
        target: PushTarget,
        cache: Cache,
        blocks: BlockArgument,
        layers: Layers,
        place: GrantPlace,
        timeout_s: float | None,
        priority: Priority,
    ) -> BlocksJob:
        if isinstance(target, Grant | IssuedGrant):
            grant = target if isinstance(target, Grant) else target.grant
            return self._granted_job(grant, cache, blocks, layers, place, None, timeout_s, priority)
        if not isinstance(target, tuple) or len(target) != 2:
            raise TypeError(f"a target must be a Grant or (BlocksCacheKey, dst_blocks), got {type(target).__name__}")
        self._check_open()
        return self._requests.push(target[0], cache, blocks, target[1], *layers, None, timeout_s, priority)


@dataclass(slots=True)
class _Ready:
    """A job that goes with the fan."""

    index: int
    job: BlocksJob
    way: Way
    plan: Plan

    @property
    def link(self) -> HostLink:
        assert isinstance(self.way.link, HostLink)
        return self.way.link


@dataclass(slots=True)
class _Spread:
    """The jobs of one call, and what became of each."""

    verbs: FanVerbs
    jobs: list[BlocksJob]
    outcomes: dict[int, Receipt | LLMException] = field(default_factory=dict)

    def run(self) -> list[Receipt | LLMException]:
        if not self.jobs:
            return []
        mover, cache_id = self.jobs[0].mover, self.jobs[0].cache_id
        entry = mover.caches.enter(cache_id, id(self))
        try:
            self._run_inside(entry)
        finally:
            entry.leave(id(self))
        return [self.outcomes[index] for index in range(len(self.jobs))]

    def _run_inside(self, entry: CacheEntry) -> None:
        """Those that go alone begin first, and are waited for last. Little is pushed sooner than it is shared."""
        if self.jobs[0].nbytes(entry) < SHARED_NBYTES:
            self.outcomes |= {index: _outcome(job.run) for index, job in enumerate(self.jobs)}
            return
        ready = [found for index in range(len(self.jobs)) if (found := self._prepare(index, entry)) is not None]
        apart = [each for each in ready if not self._may_share(each, ready)]
        together = [each for each in ready if each not in apart]
        started = {each.index: self.verbs._start(each.job) for each in apart}
        if together:
            self._fan(together, entry)
        for index, transfer in started.items():
            self.outcomes[index] = _outcome(transfer.wait)

    def _prepare(self, index: int, entry: CacheEntry) -> _Ready | None:
        try:
            return _Ready(index, self.jobs[index], *self.jobs[index].prepare(entry, is_last=True))
        except LLMException as error:
            self.outcomes[index] = error
            return None

    def _may_share(self, one: _Ready, others: list[_Ready]) -> bool:
        """Its target lies in memory of its own, which is mapped here."""
        link, local = one.way.link, self.verbs.endpoint.incarnation
        first = next(each for each in others if each.way.link.peer.incarnation == link.peer.incarnation)
        blocks = list(one.plan.target_blocks)
        return (
            isinstance(link, HostLink)
            and link.reaches_memory
            and link.peer.incarnation != local
            and first is one
            and len(set(blocks)) == len(blocks)
            and one.plan.span.source_first == others[0].plan.span.source_first
            and one.plan.span.num_regions == others[0].plan.span.num_regions
        )

    def _fan(self, together: list[_Ready], entry: CacheEntry) -> None:
        """Turns are taken in the order of targets, so that two fans do not wait for each other."""
        with ExitStack() as turns:
            branches = {}
            for each in sorted(together, key=lambda ready: ready.job.way_name[0]):
                try:
                    turn = turns.enter_context(each.job.turn(None))
                except LLMException as error:
                    self.outcomes[each.index] = error
                    continue
                order = each.job.order(entry, None, turn)
                branches[each.index] = Branch(each.link, each.way.remote, each.plan, order)
            copier = self.verbs._copier
            outcomes = Fan(copier, entry.table, list(branches.values())).run() if branches else []
        for index, outcome in zip(branches, outcomes, strict=True):
            self.outcomes[index] = self._once_more(index, outcome)

    def _once_more(self, index: int, outcome: Receipt | LLMException) -> Receipt | LLMException:
        """A stale way, or a peer that had been restarted: nothing was moved there, and a new way may work."""
        if not isinstance(outcome, StaleRoute | PeerGone):
            return outcome
        job = self.jobs[index]
        job.mover.links.forget_cluster(job.way_name[0])
        return _outcome(job.run)


def _outcome(run: Callable[[], Receipt]) -> Receipt | LLMException:
    try:
        return run()
    except LLMException as error:
        return error
