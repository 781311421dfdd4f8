"""A request's blocks under a grant: the receiver grants, the writer pushes, and neither can write or read too late.

The decode worker grants three blocks. The prefill worker pushes into them and into nothing else; what it pushes is
compared with a digest before the receipt. A second request is aborted: its blocks are free at once, and a late push is
refused before a byte moves.
"""

import numpy as np
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, DataType, Fabric, LLMException, Placement

desc = CacheDesc(4, [64, 16, 2, 32], DataType.DT_FLOAT16, Placement.HOST)

with Fabric.connect("grants") as fabric:
    prefill, decode = fabric.add_workers(1, 2)
    source = fabric.allocate_blocks_cache(1, desc, BlocksCacheKey(1))
    target = fabric.allocate_blocks_cache(2, desc, BlocksCacheKey(2))
    keys = np.random.default_rng(0).random((3, 16, 2, 32)).astype(np.float16)
    ray.get(prefill.write_blocks.remote(source.cache_id, 0, [5, 6, 7], keys))

    grant = fabric.grant_blocks(target, [60, 2, 33], request_id="request-1", ttl_s=30, verify="crc32c")
    fabric.push_granted(grant, source, [5, 6, 7])
    receipt = fabric.wait_granted(grant)
    landed = ray.get(decode.read_blocks.remote(target.cache_id, 0, [60, 2, 33]))
    print(f"{receipt.nbytes} bytes, {receipt.verified} right, equal: {np.array_equal(landed, keys)}")

    aborted = fabric.grant_blocks(target, [10, 11, 12], request_id="request-2", ttl_s=30)
    fabric.revoke_grant(aborted)
    again = fabric.grant_blocks(target, [10, 11, 12], request_id="request-3", ttl_s=30)  # the blocks are free
    try:
        fabric.push_granted(aborted, source, [5, 6, 7])
    except LLMException as error:
        print(f"too late: {type(error).__name__}")
    fabric.push_granted(again, source, [5, 6, 7])
    print(f"request-3: {fabric.wait_granted(again).num_blocks} blocks")
