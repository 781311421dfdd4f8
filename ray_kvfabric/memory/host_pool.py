"""HostPool: the budget that HOST caches are cut from; one memfd a cache."""

from __future__ import annotations

from ray_kvfabric.memory.huge_pages import can_advise, shared_memory_policy
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.memory.pool import Pool


class HostPool(Pool[HostMemory]):
    def __init__(self, name: str, budget: int | None, *, huge_pages: bool, page_shift: int = 16) -> None:
        super().__init__(name, budget, page_shift)
        self.huge_pages = huge_pages and can_advise(shared_memory_policy())

    def _create(self, name: str, nbytes: int) -> HostMemory:
        return HostMemory.create(name, nbytes, huge_pages=self.huge_pages)
