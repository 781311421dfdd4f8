"""An accelerator of this process: its memory, its private streams, and what other processes may map of it.

    Device   one NPU or CUDA GPU, by the index that torch gives it in this process
    Queue    a private stream of it: what is enqueued runs in order, behind the caller's back
    Share    a stretch of its memory that another process of this host can map

`Devices` opens the device on first need. Nothing here imports torch before that.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from enum import IntEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ConfigError, LLMException, ParamInvalid, StillMoving
from ray_kvfabric.route import DeviceId

PATIENCE_NS = 30 * 10**9  # for a device that is late: nothing may be freed under its copies
Pieces = NDArray[np.uint64]  # [n, 3]: source address, target address, bytes
Mark = Any  # an event of a stream of the caller's
Tensor = Any  # of torch

_MODULES = {"npu": "ray_kvfabric.memory.npu:NpuDevice", "cuda": "ray_kvfabric.memory.cuda:CudaDevice"}


class Direction(IntEnum):
    """Where a copy goes; the numbers are those of aclrtMemcpyKind."""

    TO_DEVICE = 1
    TO_HOST = 2
    INSIDE = 3  # device to device, another process's mapped memory too


class Share(NamedTuple):
    """What torch's IPC reduction says of a storage: plain data, good while the storage lives.

    `address` is the storage's at its owner. The counter is the owner's count of who still maps it.
    """

    address: int
    nbytes: int
    handle: bytes
    offset: int
    counter_handle: bytes
    counter_offset: int
    event_handle: bytes
    needs_event: bool


class Queue(ABC):
    """One user at a time."""

    @property
    @abstractmethod
    def handle(self) -> int:
        """The stream as the driver knows it."""

    @abstractmethod
    def copy(self, pieces: Pieces, direction: Direction) -> None:
        """Enqueues all pieces. Raises LLMException (LLM_FAILED) for one that the driver refuses."""

    @abstractmethod
    def finish(self, deadline_ns: int) -> bool:
        """Sleeps until everything enqueued is done; False when the deadline (CLOCK_MONOTONIC) comes first.

        Raises LLMException (LLM_DEVICE_MEM_ERROR, LLM_FAILED) for what went wrong on the device.
        """

    @abstractmethod
    def close(self) -> None:
        """Gives the stream back, with what is still on it given up."""


class Device(ABC):
    """Threads may share it; each call makes the device the current one of its thread and puts the former back."""

    kind: ClassVar[str]
    granule: ClassVar[int]  # addresses and sizes of copies inside must be multiples of it

    def __init__(self, index: int) -> None:
        self.index = index
        self._idle: list[Queue] = []
        self._lock = threading.Lock()
        self.retired: deque[list[Tensor]] = deque()  # see `unmap_retired`

    @property
    @abstractmethod
    def chip(self) -> str:
        """The chip's name."""

    @property
    def id(self) -> DeviceId:
        return DeviceId(self.kind, self.index, self.chip)

    @abstractmethod
    def has(self, device: object) -> bool:
        """Whether a tensor whose `device` is this one lies here."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """The calling thread works on this device inside."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Tensor:
        """uint8 [nbytes], zeroed. Raises OutOfMemory."""

    @abstractmethod
    def block_around(self, address: int) -> Tensor:
        """uint8 over the whole block of torch's allocator that an address lies in, which somebody else keeps alive.

        Raises LLMException (LLM_PARAM_INVALID) for memory that torch did not allocate.
        """

    @abstractmethod
    def probe(self, address: int) -> None:
        """Raises LLMException (LLM_PARAM_INVALID) for an address that a copy must not be tried with."""

    @abstractmethod
    def mark(self) -> Mark | None:
        """What the calling thread has enqueued on its current stream; None when nothing is left to do there."""

    @abstractmethod
    def await_mark(self, mark: Mark, deadline_ns: int) -> bool:
        """Sleeps until the work before the mark is done; False when the deadline comes first."""

    @abstractmethod
    def share(self, tensor: Tensor) -> Share:
        """Lets processes of this host map the tensor's storage."""

    @abstractmethod
    def map_share(self, share: Share) -> Tensor:
        """uint8 of another process's storage, mapped here while the tensor lives. Raises LinkFailed."""

    def unmap_retired(self) -> None:
        """Drops mappings that nobody uses any more, which whoever used them last has put into `retired`.

        Not where they were used last: that may be any thread, the garbage collector's too, and torch ends the process
        when a mapping goes in a thread without a device.
        """
        with self.current(), suppress(IndexError):
            while True:  # another thread may take the last one
                self.retired.popleft().clear()

    @abstractmethod
    def release_share(self, share: Share) -> None:
        """At the owner: counts down for a process that died while it had the share mapped."""

    @abstractmethod
    def collect(self) -> None:
        """Frees memory that waited for others to unmap it, as far as they have."""

    @abstractmethod
    def open_queue(self) -> Queue: ...

    @contextmanager
    def queue(self) -> Iterator[Queue]:
        """A private stream, kept for the next user; after an error it is thrown away."""
        with self._lock:
            queue = self._idle.pop() if self._idle else None
        queue = queue or self.open_queue()
        try:
            yield queue
        except StillMoving:
            queue.close()
            raise
        except BaseException:
            self._give_up(queue)
            raise
        with self._lock:
            self._idle.append(queue)

    def _give_up(self, queue: Queue) -> None:
        """After an error: what was enqueued before it still runs. Raises StillMoving when it does not come to rest."""
        try:
            is_at_rest = queue.finish(time.monotonic_ns() + PATIENCE_NS)
        except LLMException:  # it stopped there
            is_at_rest = True
        queue.close()
        if not is_at_rest:
            raise StillMoving(f"{self} does not come to rest after an error")

    def close(self) -> None:
        with self._lock:
            queues, self._idle = self._idle, []
        for queue in queues:
            queue.close()
        self.unmap_retired()

    def __repr__(self) -> str:
        return f"<{self.chip} {self.kind}:{self.index}>"


def check_granule(device: Device, pieces: Pieces, what: str, columns: Sequence[int] = (0, 1, 2)) -> None:
    """Raises LLMException (LLM_PARAM_INVALID) where blocks do not start and end as copies inside the device want it.

    `columns` are those of device addresses, and the sizes.
    """
    if device.granule == 1 or not len(pieces):
        return
    odd = np.flatnonzero((pieces[:, list(columns)] % np.uint64(device.granule)).any(axis=1))
    if len(odd):
        source, target, nbytes = (int(value) for value in pieces[odd[0]])
        raise ParamInvalid(
            f"{what}: blocks of {nbytes} bytes from {source:#x} to {target:#x} are wanted; copies inside {device} "
            f"start and end at multiples of {device.granule} bytes"
        )


class Devices:
    """The device of one endpoint.

    `wanted`: "npu", "cuda", one with an index ("npu:1"), or None for torch's choice. `index` is the one to take where
    no other is wanted; None: torch's current one.
    """

    def __init__(self, wanted: str | None, index: int | None = None) -> None:
        self._wanted = wanted
        self._index = index
        self._lock = threading.Lock()
        self.device: Device | None = None  # once it was opened

    def open(self, needed_for: str) -> Device:
        """Raises LLMException (LLM_PARAM_INVALID) when there is none."""
        with self._lock:
            if self.device is None:
                self.device = self._find(needed_for)
            return self.device

    def find(self) -> Device | None:
        """The device, where one is wanted or torch is at work in this process already and has one."""
        if self.device is None and (self._wanted is not None or _torch_sees() is not None):
            return self.open("device memory")
        return self.device

    def _find(self, needed_for: str) -> Device:
        kind, _, index = (self._wanted or "").partition(":")
        needed = ["torch", "torch_npu"] if kind == "npu" else ["torch"]
        for module in needed:
            if find_spec(module) is None:
                raise ParamInvalid(
                    f"{needed_for} needs a device, and {module} is not installed; "
                    "ray-kvfabric[npu] and ray-kvfabric[cuda] bring it"
                )
        torch, *_ = (import_module(module) for module in needed)
        seen = torch.accelerator.current_accelerator(check_available=True)
        found = None if seen is None else seen.type
        if found not in _MODULES or kind not in ("", found):
            wanted = f"device is {self._wanted!r}" if kind else "device is not set"
            raise ParamInvalid(
                f"{needed_for} needs a device: {wanted}, torch {torch.__version__} finds {found or 'none'}; "
                "emulated_device=host lets DEVICE caches lie in host memory"
            )
        return self._make(torch, found, index)

    def _make(self, torch: Any, kind: str, index: str) -> Device:
        count = torch.accelerator.device_count()
        default = torch.accelerator.current_device_index() if self._index is None else self._index
        chosen = int(index) if index else default
        if not 0 <= chosen < count:
            raise ConfigError(f"device {kind}:{chosen} is wanted, this process sees {count} of that kind")
        module, _, name = _MODULES[kind].partition(":")
        make: Callable[[int], Device] = getattr(import_module(module), name)
        return make(chosen)

    def close(self) -> None:
        with self._lock:
            if self.device is not None:
                self.device.close()


def _torch_sees() -> str | None:
    """The accelerator that torch has in this process, if torch was imported at all."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "accelerator"):
        return None
    seen = torch.accelerator.current_accelerator(check_available=True)
    return seen.type if seen is not None and seen.type in _MODULES else None
