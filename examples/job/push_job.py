"""A Ray job that joins a running fabric by name, pushes blocks to one of its workers and takes them back.

ray job submit --working-dir examples/job -- python push_job.py --fabric one-host --to 100

The driver itself is the endpoint, so all that the job brings ends with its process. Workers that it added to a
detached fabric would be detached as well, and stay.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import ray_kvfabric
from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheManager, CacheRef, DataType, Fabric, Placement


def find_cache(fabric: Fabric, cluster_id: int) -> tuple[CacheRef, CacheDesc]:
    """A cache of this endpoint, and what one like it is made from."""
    for ref, info in fabric.caches().items():
        if ref.cluster_id == cluster_id:
            kind = DataType[info.data_type]
            return ref, CacheDesc(len(info.regions), list(info.shape), kind, Placement.HOST)
    raise SystemExit(f"endpoint {cluster_id} of fabric {fabric.name!r} has no cache, or does not run")


def fill(cache: Cache) -> None:
    random = np.random.default_rng()
    for tensor in range(cache.cache_desc.num_tensors):
        raw = cache.numpy(tensor).view(np.uint8)
        raw[:] = random.integers(256, size=raw.shape, dtype=np.uint8)


def are_equal(one: Cache, other: Cache) -> bool:
    tensors = range(one.cache_desc.num_tensors)
    return all(np.array_equal(one.numpy(i).view(np.uint8), other.numpy(i).view(np.uint8)) for i in tensors)


def push(
    fabric: Fabric, manager: CacheManager, source: Cache, target: CacheRef, blocks: list[int], layer_seconds: float
) -> None:
    """Layer by layer under a grant that ends with this job: it names who may write."""
    grant = fabric.grant_blocks(target, blocks, sources=[manager.endpoint.cluster_id], verify="crc32c")
    for layer in grant.layers:
        time.sleep(layer_seconds)
        this, is_last = range(layer, layer + 1), layer == grant.layers[-1]
        manager.push_granted(grant, source, list(range(len(blocks))), this, this, seal=is_last)
    fabric.wait_granted(grant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fabric", default="one-host", help="its name")
    parser.add_argument("--to", type=int, default=100, help="the cluster_id whose cache is written")
    parser.add_argument("--cluster-id", type=int, default=900, help="of this job")
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--layer-seconds", type=float, default=0.0, help="what a layer would take to compute")
    arguments = parser.parse_args()
    print(f"package: {ray_kvfabric.__file__}")
    # `ray.init` turns the SIGTERM of `ray job stop` into SystemExit: the `with` leaves the fabric at once.
    with Fabric.connect(arguments.fabric) as fabric:
        target, desc = find_cache(fabric, arguments.to)
        manager = fabric.join(arguments.cluster_id)
        source = manager.allocate_blocks_cache(desc)
        returned = manager.allocate_blocks_cache(desc, BlocksCacheKey(arguments.cluster_id))
        there = list(reversed(range(desc.shape[0])))
        nbytes = 0
        for _ in range(arguments.pushes):
            fill(source)
            push(fabric, manager, source, target, there, arguments.layer_seconds)
            back = fabric.push_blocks(BlocksCacheKey(arguments.cluster_id), target, there, there[::-1])
            if not are_equal(source, returned):
                raise SystemExit("the blocks that came back are not those that were sent")
            nbytes += back.nbytes
        print(f"{arguments.pushes} pushes to endpoint {arguments.to}, {nbytes} bytes each way, all equal")


if __name__ == "__main__":
    main()
