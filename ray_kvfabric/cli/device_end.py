"""What runs in the children of doctor: a look at torch's devices, and one end of a push between two devices.

Both import torch, and so never run in doctor's own process. What libraries print goes to stderr: stdout is doctor's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.actors.chip import device_chip_name
from ray_kvfabric.bench.endpoints import CALL_TIMEOUT_MS, Roads
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.cli.trial import LISTS, TRIAL
from ray_kvfabric.cli.wire import Wire
from ray_kvfabric.config import PoolSettings, endpoint_settings
from ray_kvfabric.errors import FabricError, ParamInvalid
from ray_kvfabric.memory.device import Devices
from ray_kvfabric.route import Route
from ray_kvfabric.testing.contents import read_tensor, write_tensor

VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
_POOL = PoolSettings(memory_size=64 << 20)


class Seen(NamedTuple):
    """What torch finds: no `kind` where it finds nothing. `numbers` are what each device is pinned by.

    `error` says why nobody could look.
    """

    kind: str | None = None
    numbers: tuple[str, ...] = ()
    chip: str | None = None
    versions: str = ""
    error: str | None = None


class Look:
    """Asks torch, whose import may fail, or take its process with it."""

    def __init__(self) -> None:
        _leave_stdout()

    def seen(self) -> Seen:
        torch: Any = import_module("torch")
        has_npu = find_spec("torch_npu") is not None
        if has_npu:
            import_module("torch_npu")
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torch_npu")[: 1 + has_npu])
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type not in VISIBLE:
            return Seen(chip=device_chip_name(), versions=versions)
        chip = device_chip_name() if found.type == "npu" else torch.cuda.get_device_name(0)
        return Seen(found.type, _numbers(found.type, torch.accelerator.device_count()), chip, versions)

    def close(self) -> None:
        """Nothing is held."""


def _numbers(kind: str, count: int) -> tuple[str, ...]:
    """The names that pin a process to each of them: a pinned process hands on what it was given."""
    pinned = os.environ.get(VISIBLE[kind])
    numbers = pinned.split(",") if pinned else [str(index) for index in range(count)]
    return tuple(numbers[:count])


class End:
    """An endpoint on the device that this process is pinned to, as Ray pins a worker. One at a time."""

    def __init__(self, cluster_id: int, kind: str, number: str, pipe: Connection) -> None:
        _leave_stdout()
        os.environ[VISIBLE[kind]] = number  # before torch comes in
        self._cluster_id = cluster_id
        self._kind = kind
        self._wire = Wire(pipe)
        self._roads = Roads()
        self._manager: CacheManager | None = None

    def open_device(self) -> None:
        """Raises what torch says of a device that it does not work on."""
        with Devices(self._kind).open("a trial").current():
            return

    def open(self, transport: str) -> Route:
        """A new endpoint that knows one transport, with a cache filled as an untouched target's is."""
        self.close()
        manager = self._manager = CacheManager(
            self._cluster_id,
            directory=self._roads,
            peers=self._wire,
            settings=endpoint_settings(
                device=self._kind, device_pool=_POOL, transports=(transport,), sync_kv_timeout_ms=CALL_TIMEOUT_MS // 2
            ),
            tracer_pid=os.getppid(),
        )
        self._wire.answer = manager.answer
        shape = (TRIAL.num_blocks, TRIAL.block_nbytes)
        desc = CacheDesc(TRIAL.num_tensors, shape, DataType.DT_UINT8, Placement.DEVICE)
        self._cache = manager.allocate_blocks_cache(desc, BlocksCacheKey(self._cluster_id))
        self._fill(~_source())
        [info] = manager.caches()
        return Route(manager.endpoint, info)

    def push(self, target: Route) -> None:
        """Blocks of a source's contents into the other end. Raises FabricError."""
        if self._manager is None:
            raise ParamInvalid("this end is not open")
        self._roads.put(target)
        self._fill(_source())
        self._manager.push_blocks(BlocksCacheKey(target.endpoint.cluster_id), self._cache, *LISTS)

    def _fill(self, tensors: NDArray[np.uint8]) -> None:
        for index, blocks in enumerate(tensors):
            write_tensor(self._cache, index, blocks.reshape(-1))

    def first_wrong(self) -> str | None:
        """Where the cache first differs from what the push should have made of it."""
        expected, blocks = ~_source(), list(LISTS[1])
        expected[:, blocks] = _source()[:, list(LISTS[0])]
        for index, tensor in enumerate(expected):
            held = read_tensor(self._cache, index).reshape(tensor.shape)
            if not np.array_equal(held, tensor):
                block = int(np.argmax((held != tensor).any(-1)))
                return f"tensor {index}, block {block} holds other bytes"
        return None

    def close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with suppress(FabricError):  # the other end may have died; what it did is told by its own calls
                manager.close()


def _source() -> NDArray[np.uint8]:
    """[tensor, block, byte]; each 8-byte word is unique, so a misplaced byte shows."""
    words = np.arange(TRIAL.cache_nbytes // 8, dtype=np.uint64)
    return words.view(np.uint8).reshape(TRIAL.num_tensors, TRIAL.num_blocks, TRIAL.block_nbytes)


def _leave_stdout() -> None:
    os.dup2(2, 1)
