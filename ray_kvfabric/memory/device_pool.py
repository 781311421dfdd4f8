"""DevicePool: the budget that DEVICE caches and staging buffers are cut from; one tensor of torch's a cache."""

from __future__ import annotations

import logging

from ray_kvfabric.memory.device import Devices, Tensor
from ray_kvfabric.memory.pool import Pool

logger = logging.getLogger(__name__)

_abandoned: list[DeviceMemory] = []
ALIGNMENT = 2 << 20  # the size of a huge page, and what one-sided engines of Atlas register


class DeviceMemory:
    """`nbytes` bytes at `address`, which is a multiple of 2 MiB; `tensor` is uint8 over just them."""

    __slots__ = ("_whole", "address", "nbytes", "tensor")

    def __init__(self, whole: Tensor, nbytes: int) -> None:
        start = -whole.data_ptr() % ALIGNMENT
        self._whole = whole
        self.tensor = whole[start : start + nbytes]
        self.address: int = self.tensor.data_ptr()
        self.nbytes = nbytes

    def holds(self, address: int, nbytes: int) -> bool:
        return self.address <= address and address + nbytes <= self.address + self.nbytes

    def view(self, address: int, nbytes: int) -> Tensor:
        """uint8 over bytes [address, address + nbytes); keeps the memory."""
        start = address - self.address
        return self.tensor[start : start + nbytes]

    def close(self) -> None:
        """The memory goes with this object and its last view: a copy that is under way keeps it by its table."""


class DevicePool(Pool[DeviceMemory]):
    """Of the endpoint's device, which is opened by the first allocation."""

    huge_pages = True  # torch's allocators ask for them

    def __init__(self, name: str, budget: int | None, devices: Devices, *, page_shift: int = 16) -> None:
        super().__init__(name, budget, page_shift)
        self._devices = devices

    def _create(self, name: str, nbytes: int) -> DeviceMemory:
        return DeviceMemory(self._devices.open(name).allocate(nbytes + ALIGNMENT), nbytes)

    def close(self) -> None:
        """What could not be freed before, because somebody may still write there, is never handed out again."""
        with self._lock:
            _abandoned.extend(self._held)
            if self._held:
                logger.warning("%d pieces of %s are still in use and stay taken", len(self._held), self.name)
            self._held.clear()
