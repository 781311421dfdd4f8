"""One push to many targets: those whose memory this process has mapped share one reading of the source."""

from __future__ import annotations

from collections.abc import Sequence

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.endpoint.grant_verbs import GrantPlace, GrantVerbs
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.endpoint.jobs import BlocksJob
from ray_kvfabric.endpoint.requests import BlockArgument
from ray_kvfabric.endpoint.spread import Spread
from ray_kvfabric.errors import LLMException
from ray_kvfabric.grant import Grant
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.route import Receipt

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
        return Spread(self._copier, self._start, self.endpoint.incarnation, jobs).run()

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
