"""The conformance suite between two actors, each pinned to an emulated NPU, over the real torch_npu."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

from ray_kvfabric import Fabric, FabricConfig
from ray_kvfabric.config import EndpointSettings, WorkerGroup
from ray_kvfabric.testing.conformance import SOURCE_ID, TARGET_ID
from ray_kvfabric.testing.workers import Case, PeerWorker, Setup, cases

GRAIN = 64  # an NPU copies multiples of 64 bytes
PLACES = {
    "device to device": ("DEVICE", "DEVICE", True),
    "device to a torch tensor": ("DEVICE", "DEVICE", False),
    "host to device": ("HOST", "DEVICE", True),
    "device to host": ("DEVICE", "HOST", True),
}


class Workers:
    """Two pinned workers of one fabric that know one transport; a dead target is replaced."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.fabric = Fabric.connect(config=FabricConfig(name=f"emulated-{uuid.uuid4().hex[:8]}"))
        self.source = self._start(SOURCE_ID)
        self.target = self._start(TARGET_ID)

    def _start(self, cluster_id: int) -> ActorHandle[Any]:
        settings = EndpointSettings.model_validate(
            {
                "transports": (self.transport,),
                "sync_kv_timeout_ms": 30_000,
                "mem_pool": {"memory_size": "512MiB"},
                "device_pool": {"memory_size": "512MiB"},
                "staging_size": "4MiB",
            }
        )
        group = WorkerGroup(
            name="pinned", first_cluster_id=cluster_id, num_cpus=0, resources={"NPU": 1}, endpoint=settings
        )
        [worker] = self.fabric.add_workers(group, worker_class=PeerWorker)
        return worker

    def run(self, case: Case, setup: Setup) -> None:
        pid = ray.get(self.target.pid.remote(), timeout=30)
        try:
            ray.get(self.source.run_case.remote(case, setup, self.target, pid), timeout=45)
        finally:
            if "dead" in case.name:
                self.target = self._start(TARGET_ID)


@pytest.fixture(scope="module", params=["device_ipc", "hccl"])
def workers(request: pytest.FixtureRequest, npus: None) -> Iterator[Workers]:
    workers = Workers(request.param)
    yield workers
    workers.fabric.close()


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("places", PLACES)
def test_conformance(workers: Workers, places: str, case: Case) -> None:
    source, target, allocates = PLACES[places]
    workers.run(case, Setup(workers.transport, source, target, allocates, GRAIN))
