"""Which transport is taken between two NPUs of one host, what it costs in calls, and what status says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.errors import ParamInvalid
from tests.emulator.faulty import TENSORS, FaultyPair

COPIES, WAITS, BATCHES = "aclrtMemcpyAsync", "aclrtSynchronizeStreamWithTimeout", "HcclBatchSendRecv"


@pytest.fixture(scope="module")
def started(npus: None) -> Iterator[FaultyPair]:
    pair = FaultyPair(None)
    pair.start(1, 2)
    yield pair
    pair.fabric.close()


@pytest.fixture
def pair(started: FaultyPair) -> Iterator[FaultyPair]:
    yield started
    for cluster_id in (1, 2):
        started.on(cluster_id, "clear")


def status(pair: FaultyPair, cluster_id: int) -> dict[str, Any]:
    found: dict[str, Any] = pair.on(cluster_id, "status")
    return found


def test_device_memory_of_one_host_goes_by_ipc_in_one_batch_and_one_wait(pair: FaultyPair) -> None:
    source, _ = pair.on(1, "make"), pair.on(2, "make")
    assert pair.on(1, "push", source, 2, [0], [0]) == "device_ipc"
    for cluster_id in (1, 2):
        pair.on(cluster_id, "counts")
    pair.on(1, "push", source, 2, [1, 2, 3, 9], [4, 5, 6, 1])
    assert pair.on(1, "counts", COPIES, WAITS, BATCHES) == [2 * TENSORS, 1, 0]  # two runs of each tensor
    assert pair.on(2, "counts", COPIES, WAITS, BATCHES) == [0, 0, 0]  # the target's process is not disturbed


def test_blocks_that_the_copy_engine_does_not_take_go_by_hccl_in_one_batch(pair: FaultyPair) -> None:
    source, target = (pair.on(each, "make", "DEVICE", (16, 150)) for each in (1, 2))
    assert pair.on(1, "push", source, 2, [0], [0], 30.0) == "hccl"
    for cluster_id in (1, 2):
        pair.on(cluster_id, "counts")
    pair.on(1, "push", source, 2, [1, 2, 3, 9], [4, 5, 6, 1])
    for cluster_id in (1, 2):
        assert pair.on(cluster_id, "counts", COPIES, BATCHES) == [0, 1]
    landed = pair.on(2, "blocks", target)
    assert (landed[:, [0, 4, 5, 6, 1]] == 1).all()
    assert (landed[:, 7:] == 2).all()
    assert status(pair, 1)["counters"]["slow_path/hccl"] == 1
    [link] = [each for each in status(pair, 1)["links"] if each["transport"] == "hccl"]
    assert link["device_bytes"] == 2 << 20  # two buffers of hccl_buffer_size


def test_host_and_device_meet_in_the_staging_buffer_both_ways(pair: FaultyPair) -> None:
    shape = (64, 1 << 16)  # 4 tensors of 4 MiB, buffers of 2 MiB
    host, device = pair.on(1, "make", "HOST", shape), pair.on(2, "make", "DEVICE", shape)
    everything = list(range(64))
    assert pair.on(1, "push", host, 2, everything, everything[::-1], 30.0) == "device_ipc"
    assert (pair.on(2, "blocks", device) == 1).all()
    assert status(pair, 1)["device_memory"]["used_bytes"] == 4 << 20
    pair.on(2, "clear")
    again = pair.on(2, "make", "DEVICE", shape, 7)
    assert pair.on(1, "pull", host, 2, everything, everything, 30.0) == "device_ipc"
    assert (pair.on(1, "blocks", host) == 7).all()
    assert pair.on(2, "push", again, 1, [3], [5], 30.0) == "device_ipc"  # carried out by the host's side


def test_of_two_writes_to_one_block_the_later_stays_across_windows(pair: FaultyPair) -> None:
    shape = (8, 1 << 20)  # blocks of 1 MiB: two a window
    host, device = pair.on(1, "make", "HOST", shape), pair.on(2, "make", "DEVICE", shape)
    for _ in range(5):
        pair.on(1, "number", host)
        pair.on(1, "push", host, 2, [0, 1, 2, 3, 4], [1, 3, 3, 5, 1], 30.0)
        landed = pair.on(2, "blocks", device)[:, :, 0]
        assert (landed[:, [1, 3, 5]] == [4, 2, 3]).all()


def test_host_memory_may_lie_anywhere(pair: FaultyPair) -> None:
    source, target = pair.on(1, "numpy_source"), pair.on(2, "make")
    assert pair.on(1, "push", source, 2, [3, 7], [1, 2], 30.0) == "device_ipc"
    assert (pair.on(2, "blocks", target)[:, 1:3] == 9).all()


def test_status_names_the_device_and_where_caches_lie(pair: FaultyPair) -> None:
    pair.on(1, "make")
    told = status(pair, 1)
    assert told["device"].startswith("npu:0 (Ascend")
    assert [cache["memory"] for cache in told["caches"]] == [told["device"]]
    assert "Ascend910" in told["chip"]


def test_blocks_can_be_read_and_set_from_outside(pair: FaultyPair) -> None:
    cache_id = pair.on(1, "make")
    values = np.full((2, 4, 64), 5, np.int8)
    pair.on(1, "write_blocks", cache_id, 3, [7, 2], values)
    np.testing.assert_array_equal(pair.on(1, "read_blocks", cache_id, 3, [2, 7]), values)
    with pytest.raises(ParamInvalid, match="values are float32"):
        pair.on(1, "write_blocks", cache_id, 3, [7], np.zeros((1, 4, 64), np.float32))
