"""What every byte of a cache must hold: each 8-byte word is unique in its cache, so a misplaced byte shows.

source word   its number within the cache
target word   that of the source block which was written there last; the complement of its own number before
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.bench.cases import Case, Lists
from ray_kvfabric.cache.handle import Cache

Words = NDArray[np.uint64]
Held = list[int | None]  # target block -> source block written there last; None: untouched


class Ledger:
    """Which source block each block of one target must hold."""

    def __init__(self, case: Case) -> None:
        self.held: Held = [None] * case.num_blocks

    def write(self, lists: Lists) -> None:
        for source, target in zip(*lists, strict=True):
            self.held[target] = source


class GrantedLedger(Ledger):
    """A granted push writes neighbours among the granted `blocks`: target blocks come to a window of these."""

    def __init__(self, case: Case, blocks: tuple[int, ...]) -> None:
        super().__init__(case)
        self._blocks = blocks

    def at(self, lists: Lists) -> int:
        """Where in the grant; neighbouring target blocks stay what they are where the grant is in order."""
        return lists[1][0] % (len(self._blocks) - len(lists[1]) + 1)

    def write(self, lists: Lists) -> None:
        at = self.at(lists)
        super().write((lists[0], list(self._blocks[at : at + len(lists[1])])))


def fill_source(cache: Cache, case: Case) -> None:
    for tensor in range(case.num_tensors):
        words = words_of(cache, tensor)
        words[...] = np.arange(words.size, dtype=np.uint64) + np.uint64(tensor * words.size)


def fill_target(cache: Cache, case: Case) -> None:
    fill_source(cache, case)
    for tensor in range(case.num_tensors):
        words = words_of(cache, tensor)
        np.invert(words, out=words)


def words_of(cache: Cache, tensor: int) -> Words:
    flat: Words = cache.numpy(tensor).reshape(-1).view(np.uint64)
    return flat


def first_wrong(cache: Cache, case: Case, held: Held) -> str | None:
    """Where the target first differs from what the ledger says; None when every byte is right."""
    per_block = case.block_nbytes // 8
    ramp = np.arange(per_block, dtype=np.uint64)
    expected = np.empty_like(ramp)
    for tensor in range(case.num_tensors):
        blocks = words_of(cache, tensor).reshape(case.num_blocks, per_block)
        for block, source in enumerate(held):
            first = (tensor * case.num_blocks + (block if source is None else source)) * per_block
            np.add(ramp, np.uint64(first), out=expected)
            if source is None:
                np.invert(expected, out=expected)
            if not np.array_equal(blocks[block], expected):
                origin = "untouched" if source is None else f"from source block {source}"
                return f"tensor {tensor}, block {block} ({origin}) holds other bytes"
    return None
