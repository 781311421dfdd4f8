"""DecodeBook: the scheduler side of a consumer. Pure: the engine's calls in, `Orders` out.

    queued     its transfer is known, nothing is allocated       -> begun | declined
    begun      blocks are granted, the worker reports the end    -> over
A transfer is asked for once: a request that is preempted after it has begun computes its own KV.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ray_kvfabric.integrations.vllm.orders import NULL_BLOCK, Decline, Expect, Orders, Receive, Span
from ray_kvfabric.integrations.vllm.params import Remote


class _Queued(NamedTuple):
    transfer_id: str
    source: str
    num_tokens: int


class DecodeBook:
    """`block_sizes[g]` is the tokens of a block of KV group g."""

    def __init__(self, block_sizes: Sequence[int]) -> None:
        self._block_sizes = tuple(block_sizes)
        self._queued: dict[str, _Queued] = {}
        self._begun: dict[str, str] = {}  # req_id to transfer_id

    def arrived(self, req_id: str, remote: Remote, num_tokens: int, orders: Orders) -> None:
        """A new request whose prompt has `num_tokens`. One whose twin waits already computes its own KV.

        It waits for the KV of all but the last token, which the engine has to compute itself.
        """
        assert remote.engine is not None
        if self._has_twin(remote.transfer_id):
            return
        self._queued[req_id] = _Queued(remote.transfer_id, remote.engine, num_tokens - 1)
        orders.expect.append(Expect(remote.transfer_id))

    def _has_twin(self, transfer_id: str) -> bool:
        """One look a request, at those that are open."""
        queued = any(each.transfer_id == transfer_id for each in self._queued.values())
        return queued or transfer_id in self._begun.values()

    def wanted_tokens(self, req_id: str, num_computed: int) -> int:
        """How many tokens' KV the engine shall allocate for; 0 for a request that computes its own. No side effect."""
        queued = self._queued.get(req_id)
        return 0 if queued is None else max(queued.num_tokens - num_computed, 0)

    def allocated(self, req_id: str, blocks: Sequence[Sequence[int]], num_external: int, orders: Orders) -> None:
        """Blocks were allocated, `num_external` tokens of them for the transfer; `blocks[g]` is group g's table."""
        queued = self._queued.pop(req_id, None)
        if queued is None:
            return
        if num_external == 0:  # the engine has decided to compute all of it
            orders.decline.append(Decline(queued.transfer_id, queued.source))
            return
        spans = tuple(
            span
            for group, table in enumerate(blocks)
            if (span := self._span(group, table, queued.num_tokens, num_external)).blocks
        )
        self._begun[req_id] = queued.transfer_id
        orders.receive.append(Receive(req_id, queued.transfer_id, queued.source, queued.num_tokens, spans))

    def _span(self, group: int, table: Sequence[int], num_tokens: int, num_external: int) -> Span:
        """The blocks behind those that lay in the prefix cache, as far as a sliding window still sees them."""
        size = self._block_sizes[group]
        stop = -(-num_tokens // size)
        first = (num_tokens - num_external) // size
        while first < stop and table[first] == NULL_BLOCK:
            first += 1
        return Span(group, first, tuple(table[first:stop]))

    def finished(self, req_id: str, orders: Orders) -> None:
        """The request ended, in whatever way and state."""
        queued = self._queued.pop(req_id, None)
        if queued is not None:
            orders.decline.append(Decline(queued.transfer_id, queued.source))
        elif self._begun.pop(req_id, None) is not None:
            orders.revoke.append(req_id)

    def received(self, req_id: str) -> None:
        """The worker has reported the end of the transfer."""
        self._begun.pop(req_id, None)

    @property
    def num_open(self) -> int:
        return len(self._queued) + len(self._begun)
