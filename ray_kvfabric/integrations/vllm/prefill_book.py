"""PrefillBook: the scheduler side of a producer. Pure: the engine's calls in, `Orders` out.

    begun -> computing, chunk by chunk -> whole          a preemption leads back to the first chunk
A chunk brings the blocks that it fills, behind those that came from the prefix cache before it; the last chunk brings
the last block, filled or not. So none is written twice but after a preemption, and something is left to seal with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_kvfabric.integrations.vllm.orders import NULL_BLOCK, Begin, Finish, Gone, Orders, Part, Span
from ray_kvfabric.integrations.vllm.params import Remote

Tables = Sequence[Sequence[int]]  # block ids by KV group


@dataclass(slots=True)
class _Prefill:
    transfer_id: str
    num_tokens: int
    tables: list[list[int]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # by group, the position of the first block that was not brought yet
    is_whole: bool = False


class PrefillBook:
    """`block_sizes[g]` is the tokens of a block of KV group g. Groups in `windows` lose blocks that have left their
    window; None for one whose window is no fixed number of tokens.
    """

    def __init__(self, block_sizes: Sequence[int], windows: Mapping[int, int | None] | None = None) -> None:
        self._block_sizes = tuple(block_sizes)
        self._windows = dict(windows or {})
        self._open: dict[str, _Prefill] = {}

    def arrived(self, req_id: str, remote: Remote, num_tokens: int, orders: Orders) -> None:
        """A new request whose prompt has `num_tokens`. One whose twin is open promises nothing.

        The last token's KV is not promised, but waited for: the step that computes it writes into the last block.
        """
        if any(each.transfer_id == remote.transfer_id for each in self._open.values()):
            return
        self._open[req_id] = _Prefill(remote.transfer_id, num_tokens)
        orders.begin.append(Begin(req_id, remote.transfer_id, remote.engine, num_tokens - 1))

    def has(self, req_id: str) -> bool:
        return req_id in self._open

    def scheduled(self, req_id: str, tables: Tables, num_computed: int, num_new: int, orders: Orders) -> None:
        """A step that starts the request, or resumes it: `tables` are all its blocks."""
        prefill = self._open.get(req_id)
        if prefill is None:
            return
        prefill.tables = [list(table) for table in tables]
        prefill.sent = [0] * len(tables)
        self._bring(req_id, prefill, num_computed + num_new, orders)

    def continued(self, req_id: str, added: Tables | None, num_computed: int, num_new: int, orders: Orders) -> None:
        """A step that goes on with it: `added` are its new blocks."""
        prefill = self._open.get(req_id)
        if prefill is None:
            return
        if prefill.is_whole:  # it goes on to generate, and its windows with it
            for group in self._windows:
                self._tell_gone(req_id, group, self._passed(prefill, group, num_computed), orders)
            return
        for table, new in zip(prefill.tables, added or (), strict=False):
            table.extend(new)
        self._bring(req_id, prefill, num_computed + num_new, orders)

    def _bring(self, req_id: str, prefill: _Prefill, computed: int, orders: Orders) -> None:
        """Tokens [0, computed) will have their KV when the step has run."""
        prefill.is_whole = computed >= prefill.num_tokens
        spans = []
        for group, (table, size) in enumerate(zip(prefill.tables, self._block_sizes, strict=True)):
            last = -(-(prefill.num_tokens - 1) // size)
            stop = last if prefill.is_whole else min(computed // size, last - 1)
            first = prefill.sent[group]
            if stop > first:
                spans.append(Span(group, first, tuple(table[first:stop])))
                prefill.sent[group] = stop
        if spans or prefill.is_whole:
            orders.parts.append(Part(req_id, tuple(spans), prefill.is_whole))

    def _passed(self, prefill: _Prefill, group: int, num_computed: int) -> int:
        """How many blocks the engine has taken back by the next step, as it counts."""
        window = self._windows[group]
        if window is None:
            return len(prefill.tables[group])
        return max(num_computed - window + 1, 0) // self._block_sizes[group]

    def _tell_gone(self, req_id: str, group: int, stop: int, orders: Orders) -> None:
        if stop:
            orders.gone.append(Gone(req_id, group, stop))

    def preempted(self, req_id: str, orders: Orders) -> None:
        """Its blocks were taken away; when it is resumed all of it is brought again."""
        prefill = self._open.get(req_id)
        if prefill is None:
            return
        prefill.is_whole = False
        orders.drop.append(req_id)

    def finished(self, req_id: str, tables: Tables, orders: Orders) -> str | None:
        """The request ended: its transfer_id if its blocks are to be kept until the worker says that they were sent.

        `tables` are what is left of its blocks.
        """
        prefill = self._open.pop(req_id, None)
        if prefill is None:
            return None
        for group in self._windows if prefill.tables else ():
            both = enumerate(zip(prefill.tables[group], tables[group], strict=False))
            stop = max((place + 1 for place, (had, has) in both if had != NULL_BLOCK == has), default=0)
            self._tell_gone(req_id, group, stop, orders)
        reason = None if prefill.is_whole else "the prefill ended before all of the prompt was computed"
        orders.finish.append(Finish(req_id, reason))
        return prefill.transfer_id

    @property
    def num_open(self) -> int:
        return len(self._open)
