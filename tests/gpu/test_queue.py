"""What the kernel and the queue do on the GPU itself, in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch

from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.memory.cuda import CudaDevice, CudaQueue
from ray_kvfabric.memory.device import Direction

TILE = 32 << 10


@pytest.fixture(scope="module")
def device() -> Iterator[CudaDevice]:
    device = CudaDevice(0)
    yield device
    device.close()


@pytest.fixture
def queue(device: CudaDevice) -> Iterator[CudaQueue]:
    queue = device.open_queue()
    assert isinstance(queue, CudaQueue)
    yield queue
    queue.close()


def _soon() -> int:
    return time.monotonic_ns() + 10 * 10**9


def _random(nbytes: int, device: Any) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device)


def _pieces(source: torch.Tensor, target: torch.Tensor, offsets: list[tuple[int, int, int]]) -> Any:
    return np.array(offsets, np.uint64) + np.array([source.data_ptr(), target.data_ptr(), 0], np.uint64)


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16])
def test_pieces_of_all_sizes_land_in_one_launch(queue: CudaQueue, alignment: int) -> None:
    random = np.random.default_rng(alignment)
    offsets, place = [], 0
    for _ in range(3000):
        nbytes = int(random.choice([0, 1, 15, 16, 150, 4096, TILE - 1, TILE, TILE + 1, 144 << 10]))
        offsets.append((place, place + alignment, nbytes))
        place += -(-nbytes // 64) * 64 + 64
    source, target = _random(place, "cuda:0"), torch.full((place + 64,), 0xEE, dtype=torch.uint8, device="cuda:0")
    expected, held = target.cpu().numpy().copy(), source.cpu().numpy()
    for start, goal, nbytes in offsets:
        expected[goal : goal + nbytes] = held[start : start + nbytes]
    torch.cuda.synchronize()
    queue.copy(_pieces(source, target, [offsets[index] for index in random.permutation(3000)]), Direction.INSIDE)
    assert queue.finish(_soon())
    assert queue.num_launches == 1
    np.testing.assert_array_equal(target.cpu().numpy(), expected)


def test_tables_that_grow_behind_each_other(queue: CudaQueue) -> None:
    source, target = _random(40_000 * 64, "cuda:0"), torch.zeros(40_000 * 64, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    for first, stop in ((0, 10), (10, 20_000), (20_000, 40_000)):
        places = [(64 * index, 64 * index, 64) for index in range(first, stop)]
        queue.copy(_pieces(source, target, places), Direction.INSIDE)
    assert queue.finish(_soon())
    assert torch.equal(source, target)


@pytest.mark.parametrize("pinned", [False, True])
def test_pieces_from_and_to_host_memory(queue: CudaQueue, pinned: bool) -> None:
    host = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, pin_memory=pinned)
    back, there = torch.zeros_like(host), torch.zeros(1 << 20, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    places = [(4096 * index, 4096 * (255 - index), 4096) for index in range(256)]
    queue.copy(_pieces(host, there, places), Direction.TO_DEVICE)
    queue.copy(_pieces(there, back, places), Direction.TO_HOST)
    assert queue.finish(_soon())
    assert torch.equal(host, back)


def test_pieces_that_depend_on_each_other_keep_their_order(queue: CudaQueue) -> None:
    memory = _random(1 << 20, "cuda:0")
    model = memory.cpu().numpy().copy()
    offsets = [(0, 500_000, 100_000), (550_000, 10, 100_000), (700_000, 50, 5), (0, 7, 300_000)]
    for start, goal, nbytes in offsets:
        model[goal : goal + nbytes] = model[start : start + nbytes].copy()
    torch.cuda.synchronize()
    queue.copy(_pieces(memory, memory, offsets), Direction.INSIDE)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(memory.cpu().numpy(), model)


def test_a_past_deadline_is_told_and_the_copy_goes_on(queue: CudaQueue) -> None:
    source, target = _random(1 << 30, "cuda:0"), torch.zeros(1 << 30, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    queue.copy(_pieces(source, target, [(0, 0, 1 << 30)]), Direction.INSIDE)
    assert not queue.finish(time.monotonic_ns())
    assert queue.finish(_soon())
    assert torch.equal(source, target)


def _write_nowhere() -> LLMStatusCode:
    source = _random(64, "cuda:0")
    queue = CudaDevice(0).open_queue()
    queue.copy(np.array([(source.data_ptr(), 16, 64)], np.uint64), Direction.INSIDE)
    try:
        queue.finish(_soon())
    except LLMException as error:
        return error.status_code
    return LLMStatusCode.LLM_SUCCESS


def test_an_address_that_is_no_memory_is_told() -> None:
    """In a process of its own: its context is broken afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        assert processes.submit(_write_nowhere).result(timeout=60) is LLMStatusCode.LLM_DEVICE_MEM_ERROR
