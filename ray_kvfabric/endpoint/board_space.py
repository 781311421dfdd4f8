"""BoardSpace: where in the endpoint's page the next grant's board lies. First fit over free stretches, merged again."""

from __future__ import annotations

from bisect import insort

from ray_kvfabric.errors import CreditExhausted

ALIGNMENT = 64  # boards share no cache line


class BoardSpace:
    """Offsets below `nbytes`; whoever uses it holds a lock."""

    def __init__(self, nbytes: int) -> None:
        self._free = [(0, nbytes)]  # (offset, size), rising, no two touching

    def take(self, nbytes: int) -> int:
        """The offset of that many bytes. Raises CreditExhausted."""
        wanted = -(-nbytes // ALIGNMENT) * ALIGNMENT
        for index, (offset, size) in enumerate(self._free):
            if size >= wanted:
                self._free[index : index + 1] = [(offset + wanted, size - wanted)] if size > wanted else []
                return offset
        raise CreditExhausted(f"no room for the {nbytes} bytes of the grant's board: too many large grants are out")

    def give_back(self, offset: int, nbytes: int) -> None:
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        insort(self._free, (offset, size))
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    @property
    def free_nbytes(self) -> int:
        return sum(size for _, size in self._free)
