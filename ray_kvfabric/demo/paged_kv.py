"""One sequence's view of paged K and V arrays that belong to somebody else, a fabric cache as a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_kvfabric.demo.weights import Array


@dataclass(frozen=True, slots=True)
class PagedKV:
    """Token i lies in row `i % block_tokens` of block `block_table[i // block_tokens]`, in every layer.

    `keys` and `values` hold one array per layer, [num_blocks, block_tokens, kv_heads, head_dim]; keys are
    stored after RoPE. The arrays are written in place, so views of shared memory stay views.
    """

    keys: Sequence[Array]
    values: Sequence[Array]
    block_table: Sequence[int]

    @property
    def block_tokens(self) -> int:
        return int(self.keys[0].shape[1])

    @property
    def capacity_tokens(self) -> int:
        return len(self.block_table) * self.block_tokens

    def write(self, layer: int, start: int, k: Array, v: Array) -> None:
        """Stores k and v [n, kv_heads, head_dim] from token `start` on; IndexError past the last block."""
        blocks, rows = np.divmod(np.arange(start, start + len(k)), self.block_tokens)
        slots = np.asarray(self.block_table)[blocks], rows
        self.keys[layer][slots] = k
        self.values[layer][slots] = v

    def gather(self, layer: int, length: int) -> tuple[Array, Array]:
        """Copies of K and V of the first `length` tokens, each [length, kv_heads, head_dim]."""
        blocks = list(self.block_table[: -(-length // self.block_tokens)])
        k, v = self.keys[layer][blocks], self.values[layer][blocks]
        return k.reshape(-1, *k.shape[2:])[:length], v.reshape(-1, *v.shape[2:])[:length]
