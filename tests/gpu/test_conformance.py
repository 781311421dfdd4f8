"""The conformance suite over device_ipc between two actors: on one GPU, half of it each, and on two if there are."""

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

TRANSPORT = "device_ipc"
GRAIN = 1  # the kernel copies any bytes
SHARES = {"one GPU": 0.5, "two GPUs": 1.0}  # of a GPU, for each actor
PLACES = {
    "device to device": ("DEVICE", "DEVICE", True),
    "device to a torch tensor": ("DEVICE", "DEVICE", False),
    "host to device": ("HOST", "DEVICE", True),
    "device to host": ("DEVICE", "HOST", True),
}


class Workers:
    """Two workers of one fabric that know one transport; a dead target is replaced."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.fabric = Fabric.connect(config=FabricConfig(name=f"gpu-{uuid.uuid4().hex[:8]}"))
        self.source = self._start(SOURCE_ID)
        self.target = self._start(TARGET_ID)

    def _start(self, cluster_id: int) -> ActorHandle[Any]:
        settings = EndpointSettings.model_validate(
            {
                "transports": (TRANSPORT,),
                "device": "cuda",
                "sync_kv_timeout_ms": 30_000,
                "mem_pool": {"memory_size": "512MiB"},
                "device_pool": {"memory_size": "512MiB"},
                "staging_size": "4MiB",
            }
        )
        group = WorkerGroup(
            name="pinned", first_cluster_id=cluster_id, num_cpus=0, resources={"GPU": self.share}, endpoint=settings
        )
        [worker] = self.fabric.add_workers(group, worker_class=PeerWorker)
        return worker

    def run(self, case: Case, setup: Setup) -> None:
        pid = ray.get(self.target.pid.remote(), timeout=60)
        try:
            ray.get(self.source.run_case.remote(case, setup, self.target, pid), timeout=120)
        finally:
            if "dead" in case.name:
                self.target = self._start(TARGET_ID)


@pytest.fixture(scope="module", params=SHARES)
def workers(request: pytest.FixtureRequest, gpus: int) -> Iterator[Workers]:
    if SHARES[request.param] * 2 > gpus:
        pytest.skip(f"{request.param} are needed, there is {gpus}")
    workers = Workers(SHARES[request.param])
    yield workers
    workers.fabric.close()


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("places", PLACES)
def test_conformance(workers: Workers, places: str, case: Case) -> None:
    source, target, allocates = PLACES[places]
    workers.run(case, Setup(TRANSPORT, source, target, allocates, GRAIN))
