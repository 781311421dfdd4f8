"""Pool: a budget of memory of one kind that caches are cut from, each with memory of its own.

A late writer to a deallocated cache writes into an orphan and never into the cache that came after it.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import Generic, Protocol, TypeVar

from ray_kvfabric.errors import OutOfMemory, ParamInvalid


class Memory(Protocol):
    """`nbytes` bytes at `address`, held while this object or a view of it lives."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def holds(self, address: int, nbytes: int) -> bool: ...
    def close(self) -> None: ...


M = TypeVar("M", bound=Memory)


class Pool(Generic[M]):
    """`budget` bytes in pages of `2**page_shift`; None means that no pool is configured. Threads may share it.

    `name` is the setting that refusals speak of. A tensor takes whole pages (contract section 6).
    """

    huge_pages: bool

    def __init__(self, name: str, budget: int | None, page_shift: int) -> None:
        self.name = name
        self.budget = budget
        self._page_nbytes = 1 << page_shift
        self._lock = threading.Lock()
        self._held: list[M] = []

    @abstractmethod
    def _create(self, name: str, nbytes: int) -> M:
        """New zeroed memory. Raises LLMException (LLM_OUT_OF_MEMORY, LLM_PARAM_INVALID)."""

    @property
    def used(self) -> int:
        with self._lock:
            return sum(memory.nbytes for memory in self._held)

    def allocate(self, name: str, num_tensors: int, tensor_nbytes: int) -> tuple[M, list[int]]:
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
            memory = self._create(name, nbytes)
            self._held.append(memory)
        return memory, [memory.address + index * pitch for index in range(num_tensors)]

    def find(self, address: int, nbytes: int) -> M | None:
        """The pool memory that holds these bytes, if any."""
        with self._lock:
            return next((memory for memory in self._held if memory.holds(address, nbytes)), None)

    def free(self, memory: M) -> None:
        with self._lock:
            self._held.remove(memory)
        memory.close()

    def close(self) -> None:
        with self._lock:
            for memory in self._held:
                memory.close()
            self._held.clear()
