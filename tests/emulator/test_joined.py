"""Endpoints without an actor of their own: commands and questions reach them by a poll, also while they open links."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.contents import read_tensor, write_tensor

DESC = CacheDesc(2, [8, 64], DataType.DT_INT8, Placement.DEVICE)


class Joined:
    """An actor that is no CacheWorker, and joins a fabric from inside."""

    def __init__(self, fabric: str, cluster_id: int, transport: str) -> None:
        settings = EndpointSettings.model_validate(
            {
                "device": "npu",
                "transports": (transport,),
                "device_pool": {"memory_size": "16MiB"},
                "sync_kv_timeout_ms": 20_000,
                "hccl_buffer_size": "1MiB",
            }
        )
        self.manager = Fabric.connect(fabric).join(cluster_id, settings=settings)
        self.cache = self.manager.allocate_blocks_cache(DESC, BlocksCacheKey(cluster_id))
        for tensor in range(2):
            write_tensor(self.cache, tensor, np.full(DESC.size, cluster_id, np.uint8))

    def ready(self) -> int:
        return self.manager.endpoint.cluster_id

    def push(self, target: int, block: int) -> None:
        self.manager.push_blocks(BlocksCacheKey(target), self.cache, [0], [block])

    def blocks(self) -> list[int]:
        return [int(each[0]) for each in read_tensor(self.cache, 1).reshape(8, 64)]


@pytest.fixture(params=["device_ipc", "hccl"])
def joined(request: pytest.FixtureRequest, npus: None) -> Iterator[dict[int, Any]]:
    name = f"joined-{uuid.uuid4().hex[:8]}"
    with Fabric.connect(name):
        kind: Any = ray.remote(num_cpus=0, resources={"NPU": 1})(Joined)
        made = {each: kind.remote(name, each, request.param) for each in (1, 2)}
        ray.get([each.ready.remote() for each in made.values()], timeout=60)
        yield made
        for each in made.values():
            ray.kill(each)


def test_two_that_joined_push_to_each_other_at_once(joined: dict[int, Any]) -> None:
    ray.get([joined[each].push.remote(3 - each, 4) for each in (1, 2)], timeout=60)
    ray.get([joined[each].push.remote(3 - each, 6) for each in (1, 2)], timeout=60)
    for each in (1, 2):
        assert ray.get(joined[each].blocks.remote(), timeout=30) == [
            3 - each if block in (4, 6) else each for block in range(8)
        ]
