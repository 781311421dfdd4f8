"""AgeingQueue: who waits, in the order in which they are served. Called by `admission` and `offers`.

    effective priority = priority + waited / ageing_s        the highest goes first; of equals, who came first
Equal priorities age alike, so each has a plain queue, and only the heads of these need to be compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Priority(IntEnum):
    """How urgent a transfer is; a more urgent one goes first on its link."""

    BULK = 0
    NORMAL = 1
    INTERACTIVE = 2


PRIORITIES = tuple(reversed(Priority))  # the most urgent first


@dataclass(frozen=True, slots=True)
class Waiting(Generic[Item]):
    """The item that waits longest of those with its priority."""

    item: Item
    priority: Priority
    since: float

    def effective_priority(self, now: float, ageing_s: float) -> float:
        return self.priority + (now - self.since) / ageing_s

    def rank(self, now: float, ageing_s: float) -> tuple[float, float]:
        """The greatest is served first."""
        return self.effective_priority(now, ageing_s), -self.since


class AgeingQueue(Generic[Item]):
    """Items by effective priority. `now` never goes back; `limit` is how many may wait, None for any number."""

    __slots__ = ("_ageing_s", "_levels", "_limit")

    def __init__(self, ageing_s: float, limit: int | None = None) -> None:
        self._ageing_s = ageing_s
        self._limit = limit
        # An item is in at most one level; each level is ordered by the time since when it waits.
        self._levels: dict[Priority, OrderedDict[Item, float]] = {each: OrderedDict() for each in PRIORITIES}

    @property
    def is_full(self) -> bool:
        return self._limit is not None and len(self) >= self._limit

    def put(self, item: Item, priority: Priority, now: float) -> None:
        """Raises ValueError when it is full, or the item waits already."""
        if self.is_full:
            raise ValueError(f"the queue is full: {len(self)} wait, the limit is {self._limit}")
        if item in self:
            raise ValueError(f"{item!r} waits already")
        self._levels[priority][item] = now

    def remove(self, item: Item) -> bool:
        """Whether it was there."""
        return any(level.pop(item, None) is not None for level in self._levels.values())

    def heads(self) -> list[Waiting[Item]]:
        """Who waits longest of each priority, the most urgent priority first."""
        return [Waiting(next(iter(level)), priority, next(iter(level.values())))
                for priority, level in self._levels.items() if level]  # fmt: skip

    def head(self, priority: Priority) -> Waiting[Item] | None:
        level = self._levels[priority]
        return Waiting(next(iter(level)), priority, next(iter(level.values()))) if level else None

    def in_order(self, now: float) -> list[Waiting[Item]]:
        """All of them, who is served next first."""
        waiting = [
            Waiting(item, priority, since) for priority, level in self._levels.items() for item, since in level.items()
        ]
        return sorted(waiting, key=lambda each: each.rank(now, self._ageing_s), reverse=True)

    def count(self, priority: Priority) -> int:
        return len(self._levels[priority])

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __contains__(self, item: object) -> bool:
        return any(item in level for level in self._levels.values())

    def __iter__(self) -> Iterator[Item]:
        """The most urgent priority first, in each who waits longest first."""
        for level in self._levels.values():
            yield from level

    def check_integrity(self) -> None:
        items = list(self)
        assert len(set(items)) == len(items) == len(self)
        assert self._limit is None or len(self) <= self._limit
        for level in self._levels.values():
            assert list(level.values()) == sorted(level.values())
