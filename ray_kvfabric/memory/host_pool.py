"""HostPool: the budget that allocated caches are cut from; one memfd a cache.

Each cache has memory of its own, so that a late writer to a deallocated cache writes into an orphan and never
into the cache that came after it.
"""

from __future__ import annotations

import threading

from ray_kvfabric.errors import OutOfMemory, ParamInvalid
from ray_kvfabric.memory.huge_pages import can_advise, shared_memory_policy
from ray_kvfabric.memory.memfd import HostMemory


class HostPool:
    """`budget` bytes in pages of `2**page_shift`; None means that no pool is configured. Threads may share it.

    `name` is the setting that refusals speak of. A tensor takes whole pages (contract section 6).
    """

    def __init__(self, name: str, budget: int | None, *, huge_pages: bool, page_shift: int = 16) -> None:
        self.name = name
        self.budget = budget
        self._page_nbytes = 1 << page_shift
        self.huge_pages = huge_pages and can_advise(shared_memory_policy())
        self._lock = threading.Lock()
        self._held: list[HostMemory] = []

    @property
    def used(self) -> int:
        with self._lock:
            return sum(memory.nbytes for memory in self._held)

    def allocate(self, name: str, num_tensors: int, tensor_nbytes: int) -> tuple[HostMemory, list[int]]:
        """Memory for equal tensors and their addresses.

        Raises LLMException: LLM_PARAM_INVALID without a pool, LLM_OUT_OF_MEMORY beyond the budget.
        """
        if self.budget is None:
            raise ParamInvalid(f"{self.name} is not configured, so no cache can be allocated from it")
        pitch = -(-tensor_nbytes // self._page_nbytes) * self._page_nbytes
        nbytes = pitch * num_tensors
        with self._lock:
            used = sum(memory.nbytes for memory in self._held)
            if used + nbytes > self.budget:
                raise OutOfMemory(
                    f"{name} needs {nbytes} bytes, {self.name}.memory_size is {self.budget} with {used} in use"
                )
            memory = HostMemory.create(name, nbytes, huge_pages=self.huge_pages)
            self._held.append(memory)
        return memory, [memory.address + index * pitch for index in range(num_tensors)]

    def find(self, address: int, nbytes: int) -> HostMemory | None:
        """The pool memory that holds these bytes, if any."""
        with self._lock:
            return next((memory for memory in self._held if memory.holds(address, nbytes)), None)

    def free(self, memory: HostMemory) -> None:
        with self._lock:
            self._held.remove(memory)
        memory.close()

    def close(self) -> None:
        with self._lock:
            for memory in self._held:
                memory.close()
            self._held.clear()
