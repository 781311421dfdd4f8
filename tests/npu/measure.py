"""What a push costs between two NPUs of one host, by device_ipc and by hccl, against copies inside one in the same run.

    python -m tests.npu.measure [--json] [--rounds N] [CASE ...]

Two actors, each pinned to an NPU by Ray; the source's times its own calls of CacheManager.push_blocks. `inside` is as
many bytes copied in one stretch inside the source's own memory: the yardstick. GB/s are 10^9 bytes moved a second.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from random import Random
from statistics import median
from typing import Any

import numpy as np
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, FabricConfig, Placement
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.bench.cases import Case, select
from ray_kvfabric.bench.statistics import percentile
from ray_kvfabric.config import EndpointSettings, WorkerGroup
from ray_kvfabric.memory.device import Direction

TRANSPORTS = ("device_ipc", "hccl")
SOURCE_ID, TARGET_ID = 1, 2
SMALL_REPS, LARGE_REPS = 200, 10
LINE = "{case:<11} {transport:<11} {gbps[median]:8.2f} GB/s  {to_inside:5.2f} of inside  p50 {p50_us:9.1f} us"


class Measured(CacheWorker):
    """One end."""

    def make(self, case: Case) -> None:
        desc = CacheDesc(case.num_tensors, (case.num_blocks, case.block_nbytes), DataType.DT_UINT8, Placement.DEVICE)
        self.cache = self.manager.allocate_blocks_cache(desc, BlocksCacheKey(self.manager.endpoint.cluster_id))

    def free(self) -> None:
        self.manager.deallocate_blocks_cache(self.cache)

    def push(self, case: Case, reps: int, seed: int) -> list[int]:
        """Nanoseconds of each push, other random blocks each time."""
        random, key = Random(seed), BlocksCacheKey(TARGET_ID)
        return [_timed(self.manager.push_blocks, key, self.cache, *case.draw(random)) for _ in range(reps)]

    def inside(self, nbytes: int, reps: int) -> list[int]:
        """Nanoseconds of as many bytes in one stretch inside this NPU."""
        device: Any = self.manager._devices.open("measuring")
        here, there = device.allocate(nbytes), device.allocate(nbytes)
        pieces = np.array([[here.data_ptr(), there.data_ptr(), nbytes]], np.uint64)

        def copy() -> None:
            with device.queue() as queue:
                queue.copy(pieces, Direction.INSIDE)
                queue.finish(time.monotonic_ns() + 60 * 10**9)

        with device.current():
            return [_timed(copy) for _ in range(reps)]


def _timed(call: Any, *arguments: Any) -> int:
    began = time.perf_counter_ns()
    call(*arguments)
    return time.perf_counter_ns() - began


def start(transport: str) -> tuple[Fabric, list[Any]]:
    settings = EndpointSettings.model_validate(
        {
            "transports": (transport,),
            "device_pool": {"memory_size": "4GiB"},
            "sync_kv_timeout_ms": 60_000,
            "hccl_buffer_size": "64MiB",
        }
    )
    fabric = Fabric.connect(config=FabricConfig(name=f"measure-{uuid.uuid4().hex[:8]}"))
    groups = [
        WorkerGroup(name="npu", first_cluster_id=each, num_cpus=0, resources={"NPU": 1}, endpoint=settings)
        for each in (SOURCE_ID, TARGET_ID)
    ]
    return fabric, fabric.add_workers(*groups, worker_class=Measured, timeout_s=300)


def measure(case: Case, transport: str, ends: list[Any], rounds: int) -> dict[str, Any]:
    source, _ = ends
    reps = SMALL_REPS if case.is_small else LARGE_REPS
    ray.get([end.make.remote(case) for end in ends])
    ray.get(source.push.remote(case, 3, -1))  # opens the link
    pushes, copies = [], []
    for turn in range(rounds):
        pushes.append(ray.get(source.push.remote(case, reps, turn)))
        copies.append(ray.get(source.inside.remote(case.nbytes, reps)))
    ray.get([end.free.remote() for end in ends])
    rates = [case.nbytes / median(each) for each in pushes]
    yards = [case.nbytes / median(each) for each in copies]
    every = [sample for each in pushes for sample in each]
    return {
        "case": case.name,
        "transport": transport,
        "bytes": case.nbytes,
        "gbps": {"median": median(rates), "lowest": min(rates), "highest": max(rates)},
        "to_inside": median(rate / yard for rate, yard in zip(rates, yards, strict=True)),
        "p50_us": percentile(every, 50) / 1000,
        "p99_us": percentile(every, 99) / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--npus", type=int, help="how many there are, where Ray does not find them by itself")
    options = parser.parse_args()
    resources = {} if options.npus is None else {"NPU": options.npus}
    ray.init(address="local", resources=resources, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for transport in TRANSPORTS:
        fabric, ends = start(transport)
        for case in select(tuple(options.cases)):
            found = measure(case, transport, ends, options.rounds)
            print(json.dumps(found) if options.json else LINE.format(**found), flush=True)
        fabric.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
