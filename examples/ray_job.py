"""A Ray job that hands KV blocks round a ring of workers and checks them at the end.

ray job submit --working-dir . -- python examples/ray_job.py --workers 4
python examples/ray_job.py

The fabric and its workers end with the job.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid

import numpy as np
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, FabricConfig, Placement, WorkerGroup

BLOCKS = 32
SHAPE = (BLOCKS, 16, 8, 128)  # blocks, tokens, heads, head size


def ring_config(workers: int) -> FabricConfig:
    group = WorkerGroup(name="ring", count=workers, first_cluster_id=0, num_cpus=0)
    return FabricConfig(name=f"ring-{uuid.uuid4().hex[:8]}", groups=(group,))


async def hand_round(fabric: Fabric, workers: int) -> float:
    """Pushes the blocks from each worker to the next, in turn. Returns GB/s of the slowest push."""
    desc = CacheDesc(2, list(SHAPE), DataType.DT_FLOAT16, Placement.HOST)
    caches = [fabric.allocate_blocks_cache(each, desc, BlocksCacheKey(each)) for each in range(workers)]
    blocks = list(range(BLOCKS))
    values = np.random.default_rng(0).random(SHAPE).astype(np.float16)
    ray.get(fabric.worker(0).write_blocks.remote(caches[0].cache_id, 0, blocks, values))
    receipts = []
    for source, target in zip(caches, [*caches[1:], caches[0]], strict=True):
        receipts.append(await fabric.start_push(BlocksCacheKey(target.cluster_id), source, blocks, blocks[::-1]))
        blocks.reverse()
    arrived = ray.get(fabric.worker(0).read_blocks.remote(caches[0].cache_id, 0, blocks))
    if not np.array_equal(arrived, values):
        raise SystemExit("the blocks that came back are not those that were sent")
    return min(receipt.gbps for receipt in receipts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    workers = parser.parse_args().workers
    with Fabric.start(ring_config(workers)) as fabric:
        slowest = asyncio.run(hand_round(fabric, workers))
        print(f"{workers} pushes, all equal; the slowest ran at {slowest:.2f} GB/s")


if __name__ == "__main__":
    main()
