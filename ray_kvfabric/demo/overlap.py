"""How much of a push hid behind compute: pure, from the times of one prefill and its receipts.

A prefill makes K and V of one layer after the other. Computing layer l is all that lies between K and V of layer
l - 1 and its own: attention and MLP of layer l - 1, then the projections of layer l. What follows the last layer's
K and V computes no later layer, so of n equal layers at most (n - 1) / n can hide.

    computing   |-- layer 0 --|-- layer 1 --|-- layer 2 --|-- layer 3 --|  attention and MLP of layer 3
    landed                      ^ 0: hidden   ^ 1: hidden   ^ 2: hidden   ^ 3: not
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ray_kvfabric.route import Receipt


class Span(NamedTuple):
    """From `begin_ns` until before `end_ns`, on the host's monotonic clock."""

    begin_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


def layer_spans(begin_ns: int, computed_ns: Sequence[int]) -> list[Span]:
    """When each layer was computed; `computed_ns[l]` is when K and V of layer l lay in the cache."""
    return [Span(*pair) for pair in pairwise([begin_ns, *computed_ns])]


def hidden_fraction(layers: Sequence[Span], receipts: Sequence[Receipt]) -> float:
    """Bytes that landed while a later layer was being computed, over all bytes."""
    total = sum(receipt.nbytes for receipt in receipts)
    hidden = sum(receipt.nbytes for receipt in receipts if _is_hidden(layers, receipt))
    return hidden / total if total else 0.0


def _is_hidden(layers: Sequence[Span], receipt: Receipt) -> bool:
    later = layers[receipt.first_layer + receipt.num_layers :]
    return any(span.begin_ns <= receipt.landed_ns < span.end_ns for span in later)


def moving_seconds(receipts: Sequence[Receipt]) -> float:
    """How long at least one transfer was moving; transfers that overlap count once."""
    moved_ns, reached_ns = 0, 0
    for receipt in sorted(receipts, key=lambda each: each.started_ns):
        moved_ns += max(0, receipt.landed_ns - max(receipt.started_ns, reached_ns))
        reached_ns = max(reached_ns, receipt.landed_ns)
    return moved_ns / 1e9
