"""A worker whose emulated NPU is made to fail, and pairs of such workers."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
import uuid
from typing import Any

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, FabricConfig, Placement
from ray_kvfabric.config import EndpointSettings, WorkerGroup
from ray_kvfabric.errors import LLMException, TransferCancelled
from ray_kvfabric.testing.contents import read_tensor, write_tensor
from ray_kvfabric.testing.workers import PeerWorker
from ray_kvfabric.transport import hccl_halves

SHAPE = (16, 4, 64)  # 16 blocks of 256 bytes
TENSORS = 4
TIMEOUT_S = 3.0


class FaultyWorker(PeerWorker):
    def emulation(self) -> ctypes.CDLL:
        return ctypes.CDLL("libascendcl.so")

    def faults(self, spec: str) -> None:
        assert self.emulation().kvf_emulator_set_faults(spec.encode()) == 0

    def counts(self, *calls: str) -> list[int]:
        """How often this process has made each call since the last time this was asked."""
        emulation = self.emulation()
        counted = [int(emulation.kvf_emulator_count(call.encode())) for call in calls]
        emulation.kvf_emulator_reset_counts()
        return counted

    def make(self, placement: str = "DEVICE", shape: tuple[int, ...] = SHAPE, value: int | None = None) -> int:
        """A blocks cache of model 0, of this byte or of the worker's cluster_id."""
        desc = CacheDesc(TENSORS, list(shape), DataType.DT_INT8, Placement[placement])
        cluster_id = self.manager.endpoint.cluster_id
        cache = self.manager.allocate_blocks_cache(desc, BlocksCacheKey(cluster_id))
        filling = np.full(desc.size, cluster_id % 256 if value is None else value, np.uint8)
        for tensor in range(TENSORS):
            write_tensor(cache, tensor, filling)
        return cache.cache_id

    def number(self, cache_id: int) -> None:
        """Block i of every tensor is full of i."""
        cache = self.manager.cache(cache_id)
        count = cache.cache_desc.shape[0]
        for tensor in range(TENSORS):
            write_tensor(cache, tensor, np.repeat(np.arange(count, dtype=np.uint8), cache.cache_desc.size // count))

    def registered(self, address: int) -> int:
        """A cache over device addresses that nobody allocated."""
        desc = CacheDesc(TENSORS, list(SHAPE), DataType.DT_INT8, Placement.DEVICE)
        addresses = [address + tensor * desc.size for tensor in range(TENSORS)]
        key = BlocksCacheKey(self.manager.endpoint.cluster_id)
        return self.manager.register_blocks_cache(desc, list(addresses), key).cache_id

    def push(
        self, cache_id: int, target: int, sources: list[int], targets: list[int], timeout_s: float = TIMEOUT_S
    ) -> str:
        """Its receipt's transport; raises what the push raises."""
        cache = self.manager.cache(cache_id)
        transfer = self.manager.start_push(BlocksCacheKey(target), cache, sources, targets, timeout_s=timeout_s)
        return transfer.wait(timeout_s + 60).transport

    def pull(
        self, cache_id: int, source: int, sources: list[int], targets: list[int], timeout_s: float = TIMEOUT_S
    ) -> str:
        cache = self.manager.cache(cache_id)
        transfer = self.manager.start_pull(BlocksCacheKey(source), cache, sources, targets, timeout_s=timeout_s)
        return transfer.wait(timeout_s + 60).transport

    def blocks(self, cache_id: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[tensor, block, byte]"""
        cache = self.manager.cache(cache_id)
        tensors = [read_tensor(cache, tensor) for tensor in range(TENSORS)]
        return np.stack(tensors).reshape(TENSORS, cache.cache_desc.shape[0], -1)

    def numpy_source(self) -> int:
        """A HOST cache over numpy arrays, which lie on no multiple of 64 bytes."""
        desc = CacheDesc(TENSORS, list(SHAPE), DataType.DT_INT8, Placement.HOST)
        odd = [np.full(desc.size + 128, 9, np.uint8) for _ in range(TENSORS)]
        arrays = [each[1 - each.ctypes.data % 64 + 64 :][: desc.size] for each in odd]
        return self.manager.register_blocks_cache(desc, list(arrays)).cache_id

    def cancel_and_push(self, cache_id: int, target: int) -> list[str]:
        """Cancels a push in the middle and pushes at once again. The ids of both."""
        cache, key = self.manager.cache(cache_id), BlocksCacheKey(target)
        blocks = list(range(cache.cache_desc.shape[0]))
        cancelled = self.manager.start_push(key, cache, blocks, blocks, timeout_s=20.0)
        time.sleep(0.3)
        cancelled.cancel()
        with pytest.raises(TransferCancelled):
            cancelled.wait(30)
        again = self.manager.start_push(key, cache, blocks, blocks, timeout_s=20.0)
        again.wait(30)
        return [cancelled.transfer_id, again.transfer_id]

    def miscount(self, on: bool) -> None:
        """Lets this end expect another size of the first item than the peer sends."""
        right = hccl_halves.items_of
        if not on:
            hccl_halves.items_of = self._right  # type: ignore[assignment]
            return
        self._right = right

        def wrong(*arguments: Any) -> Any:
            items = right(*arguments)
            items["count"][0] -= 64
            return items

        hccl_halves.items_of = wrong

    def leave(self) -> None:
        """The endpoint ends, its process lives on."""
        self.manager.close()

    def allocated(self) -> int:
        """Bytes of torch's that are in use on the device, limbo included."""
        import torch

        self.manager.drop_dead_links()
        return int(torch.npu.memory_allocated())

    def push_what_is_being_written(self, cache_id: int, target: int, delay: str) -> int:
        """Enqueues a write of block 3, which the device carries out late, and pushes that block at once."""
        import torch

        new = torch.from_numpy(np.full(256, 0x77, np.uint8)).to("npu")
        torch.npu.synchronize()
        self.faults(f"stream_op:1:{delay}")
        for tensor in range(TENSORS):
            flat = self.manager.cache(cache_id).torch(tensor).view(torch.uint8).reshape(16, 256)
            flat[3].copy_(new, non_blocking=True)
        try:
            self.manager.push_blocks(BlocksCacheKey(target), self.manager.cache(cache_id), [3], [5])
        finally:
            self.faults("")
        return 0


class FaultyPair:
    """Workers 1 and 2 of one transport, each pinned to an emulated NPU."""

    def __init__(self, transport: str | None, *, pool: str = "64MiB", staging: str = "4MiB") -> None:
        self.fabric = Fabric.connect(config=FabricConfig(name=f"faulty-{uuid.uuid4().hex[:8]}"))
        self._settings = EndpointSettings.model_validate(
            {
                "transports": None if transport is None else (transport,),
                "sync_kv_timeout_ms": int(TIMEOUT_S * 1000),
                "mem_pool": {"memory_size": "64MiB"},
                "device_pool": {"memory_size": pool},
                "staging_size": staging,
                "hccl_buffer_size": "1MiB",
            }
        )
        self.workers: dict[int, ActorHandle[Any]] = {}

    def start(self, *cluster_ids: int) -> None:
        groups = [
            WorkerGroup(
                name=f"npu-{each}", first_cluster_id=each, num_cpus=0, resources={"NPU": 1}, endpoint=self._settings
            )
            for each in cluster_ids
        ]
        started = self.fabric.add_workers(*groups, worker_class=FaultyWorker, timeout_s=180)
        self.workers.update(zip(cluster_ids, started, strict=True))

    def on(self, cluster_id: int, method: str, *arguments: Any, timeout_s: float = 60) -> Any:
        """Raises what the worker raised, unwrapped from Ray's."""
        return settled(getattr(self.workers[cluster_id], method).remote(*arguments), timeout_s)

    def kill(self, cluster_id: int) -> None:
        pidfd = os.pidfd_open(self.on(cluster_id, "pid"))
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 30)[0], "it does not die"
        os.close(pidfd)
        with pytest.raises(RayActorError):
            ray.get(self.workers[cluster_id].ping.remote(), timeout=30)


def settled(reference: Any, timeout_s: float = 60) -> Any:
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LLMException):
            raise error.cause from None
        raise
