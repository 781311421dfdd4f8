"""One quiet Ray for all integration tests; each test has fabrics of its own."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.config import FabricConfig, SchedulerSettings
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.route import CacheRef

BLOCKS = 32
TENSORS = 4
DESC = (TENSORS, [BLOCKS, 256], DataType.DT_FLOAT)

_numbers = itertools.count()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a Ray with two nodes of this host: eight logical CPUs and eight logical NPUs each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    node = {"num_cpus": 8, "object_store_memory": 100 * 2**20, "resources": {"NPU": 8}}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, namespace="kvfabric", logging_level="ERROR", log_to_driver=False)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def fabric(ray_cluster: str) -> Iterator[Fabric]:
    """An empty fabric with short leases."""
    with Fabric.connect(config=config()) as opened:
        yield opened


def config(**fields: object) -> FabricConfig:
    settings = SchedulerSettings(lease_s=3.0, poll_s=0.5, rebuild_s=3.0)
    return FabricConfig.model_validate({"name": f"test-{next(_numbers)}", "scheduler": settings, **fields})


def desc() -> CacheDesc:
    return CacheDesc(*DESC, Placement.HOST)


def pair(fabric: Fabric, source: int = 1, target: int = 2) -> tuple[CacheRef, CacheRef]:
    """Two workers with a keyed cache each; the source's blocks are random."""
    fabric.add_workers(source, target)
    refs = [fabric.allocate_blocks_cache(each, desc(), BlocksCacheKey(each)) for each in (source, target)]
    scramble(fabric, refs[0])
    return refs[0], refs[1]


def scramble(fabric: Fabric, ref: CacheRef, seed: int = 1) -> None:
    random = np.random.default_rng(seed)
    everything = list(range(BLOCKS))
    worker = fabric.worker(ref.cluster_id)
    for tensor in range(TENSORS):
        values = random.random((BLOCKS, 256), dtype=np.float32)
        ray.get(worker.write_blocks.remote(ref.cache_id, tensor, everything, values))


def read(fabric: Fabric, ref: CacheRef, blocks: list[int]) -> np.ndarray:
    """These blocks of all tensors: [tensor, block, element]."""
    worker = fabric.worker(ref.cluster_id)
    calls = [worker.read_blocks.remote(ref.cache_id, tensor, blocks) for tensor in range(TENSORS)]
    return np.stack(ray.get(calls, timeout=30))


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def process_of(name_part: str) -> list[psutil.Process]:
    """Processes whose command line holds `name_part`, such as Ray's `ray::SchedulerActor`."""
    everything = psutil.process_iter(["cmdline"])
    return [process for process in everything if name_part in " ".join(process.info["cmdline"] or [])]


def shm_names() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if "kvfabric" in path.name}
