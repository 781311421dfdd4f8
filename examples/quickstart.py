"""Two actors with a KV cache each: blocks pushed from one into the other, by key and not by address."""

import numpy as np
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, Placement

# K and V of two layers: 64 blocks of 16 tokens, 2 heads of 32
desc = CacheDesc(4, [64, 16, 2, 32], DataType.DT_FLOAT16, Placement.HOST)

with Fabric.connect("quickstart") as fabric:
    prefill, decode = fabric.add_workers(1, 2)
    source = fabric.allocate_blocks_cache(1, desc, BlocksCacheKey(1))
    target = fabric.allocate_blocks_cache(2, desc, BlocksCacheKey(2))
    keys = np.random.default_rng(0).random((3, 16, 2, 32)).astype(np.float16)
    ray.get(prefill.write_blocks.remote(source.cache_id, 0, [5, 6, 7], keys))
    receipt = fabric.push_blocks(BlocksCacheKey(2), source, src_blocks=[5, 6, 7], dst_blocks=[60, 2, 33])
    landed = ray.get(decode.read_blocks.remote(target.cache_id, 0, [60, 2, 33]))
    print(f"{receipt.nbytes} bytes by {receipt.transport}, equal: {np.array_equal(landed, keys)}")
