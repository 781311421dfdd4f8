"""Programs of one process with an emulated NPU, run by test_one_process.py: `python programs.py NAME`."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch_npu  # noqa: F401  # torch learns of NPUs by it

from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheManager, DataType, LLMException, Placement
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.contents import read_tensor, write_tensor
from ray_kvfabric.testing.dict_peers import DictPeers
from ray_kvfabric.testing.directory import DictDirectory

SHAPE = [8, 2, 64]  # 8 blocks of 128 bytes
DEVICE = CacheDesc(2, SHAPE, DataType.DT_INT8, Placement.DEVICE)
HOST = CacheDesc(2, SHAPE, DataType.DT_INT8, Placement.HOST)
PEERS = DictPeers()
DIRECTORY = DictDirectory()


def manager(cluster_id: int, **settings: object) -> CacheManager:
    chosen = {"mem_pool": {"memory_size": "8MiB"}, "device_pool": {"memory_size": "16MiB"}, **settings}
    made = CacheManager(cluster_id, directory=DIRECTORY, peers=PEERS, settings=EndpointSettings.model_validate(chosen))
    PEERS.register(made)
    return made


def numbered(cache: Cache) -> None:
    """Block i of tensor t is full of 16 t + i."""
    blocks = np.arange(8, dtype=np.uint8)
    for tensor in range(cache.cache_desc.num_tensors):
        write_tensor(cache, tensor, np.repeat(16 * tensor + blocks, cache.cache_desc.size // 8))


def numbers(cache: Cache, tensor: int = 0) -> list[int]:
    """The number of each block; fails for a block of several."""
    blocks = read_tensor(cache, tensor).reshape(8, -1)
    assert (blocks == blocks[:, :1]).all()
    return [int(block[0]) for block in blocks]


def refused(call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except LLMException as error:
        said = str(error)
    else:
        raise AssertionError(f"not refused: {words}")
    assert all(word in said for word in words), said


def local_copies() -> None:
    with manager(1) as near:
        device, host = near.allocate_blocks_cache(DEVICE), near.allocate_blocks_cache(HOST)
        assert numbers(device) == [0] * 8  # a pool's memory is zeroed
        numbered(device)
        near.copy_blocks(device, {0: [7, 6], 1: [2]})
        assert numbers(device) == [0, 1, 1, 3, 4, 5, 0, 0]
        numbered(device)
        near.copy_blocks(device, {0: [1], 1: [2], 2: [3]})  # a chain carries block 0 on
        assert numbers(device) == [0, 0, 0, 0, 4, 5, 6, 7]
        numbered(device)
        near.swap_blocks(device, host, {5: 1, 6: 2, 0: 7})
        assert (numbers(host), numbers(host, 1)) == ([0, 5, 6, 0, 0, 0, 0, 0], [0, 21, 22, 0, 0, 0, 0, 16])
        near.swap_blocks(host, device, {1: 0})
        assert numbers(device) == [5, 1, 2, 3, 4, 5, 6, 7]
        rows = near.allocate_cache(DEVICE)
        numbered(rows)
        near.copy_cache(rows, rows, 3, 6)
        near.copy_cache(rows, rows, 0, 7, offset=64, size=64)
        flat = read_tensor(rows, 0).reshape(8, 128)
        assert (flat[3] == 6).all()
        assert (flat[0] == [0] * 64 + [7] * 64).all()


def registration() -> None:
    with manager(1) as near:
        tensors = [torch.zeros(SHAPE, dtype=torch.int8).to("npu") for _ in range(2)]
        cache = near.register_blocks_cache(DEVICE, list(tensors))
        assert cache.tensor_addrs == [tensor.data_ptr() for tensor in tensors]
        numbered(cache)
        assert tensors[1].cpu()[3, 0, 0] == 19
        assert near.caches()[0].device is not None
        refused(lambda: cache.numpy(0), "npu:0", "torch()")
        by_address = near.register_blocks_cache(DEVICE, [tensor.data_ptr() for tensor in tensors])
        near.copy_blocks(by_address, {1: [4]})
        assert numbers(cache)[4] == 1
        refused(lambda: near.register_blocks_cache(HOST, list(tensors)), "addrs[0]", "HOST")
        here = [np.zeros(1024, np.uint8) for _ in range(2)]
        refused(lambda: near.register_blocks_cache(DEVICE, list(here)), "addrs[0]", "the host", "npu:0")
        scattered = [torch.zeros([8, 4, 64], dtype=torch.int8).to("npu")[:, :2] for _ in range(2)]
        refused(lambda: near.register_blocks_cache(DEVICE, list(scattered)), "addrs[0]", "contiguous")
        small = [torch.zeros([7, 2, 64], dtype=torch.int8).to("npu") for _ in range(2)]
        refused(lambda: near.register_blocks_cache(DEVICE, list(small)), "addrs[0]", "896", "1024")


def zeroing() -> None:
    """Allocating waits for what the model has still queued on memory that it gave back."""
    emulation = ctypes.CDLL("libascendcl.so")
    with manager(1) as near:
        near.allocate_blocks_cache(DEVICE)  # opens the device
        new = torch.full([1 << 20], 7, dtype=torch.uint8).to("npu")
        kept = torch.empty([1 << 20], dtype=torch.uint8, device="npu")
        passing = torch.empty([3 << 20], dtype=torch.uint8, device="npu")  # as much as a cache takes of the pool
        passing[: 1 << 20].copy_(new)
        torch.npu.synchronize()
        emulation.kvf_emulator_set_faults(b"stream_op:1:delay=0.4")
        kept.copy_(passing[: 1 << 20])
        del passing
        near.allocate_blocks_cache(DEVICE)
        torch.npu.synchronize()
        assert (kept.cpu() == 7).all()


def freeing() -> None:
    """A cache that is freed under a local copy keeps its memory until the copy has come to rest."""
    emulation = ctypes.CDLL("libascendcl.so")
    with manager(1) as near:
        cache = near.allocate_blocks_cache(DEVICE)
        address = cache.tensor_addrs[0]
        emulation.kvf_emulator_set_faults(b"stream_op:1:delay=0.4")
        copy = threading.Thread(target=near.copy_blocks, args=(cache, {0: [1]}))
        copy.start()
        time.sleep(0.1)
        near.deallocate_blocks_cache(cache)
        assert near.allocate_blocks_cache(DEVICE).tensor_addrs[0] != address
        copy.join()


def two_endpoints() -> None:
    """In one process device memory needs no mapping, and HCCL makes no two ranks of it."""
    with manager(1) as near, manager(2) as far:
        source, target = near.allocate_blocks_cache(DEVICE), far.allocate_blocks_cache(DEVICE, BlocksCacheKey(2, 0))
        numbered(source)
        near.push_blocks(BlocksCacheKey(2, 0), source, [1, 2, 6], [4, 5, 0])
        assert numbers(target) == [6, 0, 0, 0, 1, 2, 0, 0]
        _, verdicts = near.explain(BlocksCacheKey(2, 0))
        told = {verdict.name: verdict.refusal for verdict in verdicts}
        assert told["device_ipc"] is None
        assert "one process" in str(told["hccl"])
        assert "device to device" in str(told["shared_memory"])
        near.push_blocks(BlocksCacheKey(1, 5), near.allocate_blocks_cache(DEVICE, BlocksCacheKey(1, 5)), [0], [0])


def odd_blocks() -> None:
    """Blocks that the copy engine does not take are refused with the rule, before a byte moves."""
    odd = CacheDesc(2, [8, 150], DataType.DT_INT8, Placement.DEVICE)
    with manager(1) as near, manager(2) as far:
        source, _ = near.allocate_blocks_cache(odd), far.allocate_blocks_cache(odd, BlocksCacheKey(2, 0))
        refused(lambda: near.push_blocks(BlocksCacheKey(2, 0), source, [0], [0]), "150 bytes", "multiples of 64")
        refused(lambda: near.copy_blocks(source, {0: [1]}), "multiples of 64")


def pools() -> None:
    with manager(1, device_pool=None) as poor, manager(2) as far:
        refused(lambda: poor.allocate_blocks_cache(DEVICE), "device_pool is not configured")
        far.allocate_blocks_cache(DEVICE, BlocksCacheKey(2, 0))
        host = poor.allocate_blocks_cache(HOST, BlocksCacheKey(1, 0))
        for call in (poor.push_blocks, poor.pull_blocks):
            refused(lambda call=call: call(BlocksCacheKey(2, 0), host, [0], [0]), "device_pool of endpoint 1")
        device = far.allocate_blocks_cache(DEVICE)
        for call in (far.push_blocks, far.pull_blocks):
            refused(lambda call=call: call(BlocksCacheKey(1, 0), device, [0], [0]), "device_pool of that endpoint")
    with manager(1, device_pool={"memory_size": "1MiB"}, staging_size="4MiB") as small, manager(2) as far:
        far.allocate_blocks_cache(DEVICE, BlocksCacheKey(2, 0))
        host = small.allocate_blocks_cache(HOST)
        refused(
            lambda: small.push_blocks(BlocksCacheKey(2, 0), host, [0], [0]), "staging buffer", "device_pool.memory_size"
        )


if __name__ == "__main__":
    globals()[sys.argv[1]]()
