"""The decoder pulls a request's row of a continuous cache into blocks of its paged cache. Request mode."""

import zlib

import numpy as np
from common import IDS, Talk, addresses, arguments, expect, link, memory, start, view
from llm_datadist import BlocksCacheKey, CacheDesc, CacheKey, DataType

ROW = 10_000  # two whole blocks and a part of a third
BLOCK = 4096
TENSORS = 4
TO = [5, 2, 7]

args = arguments()
key = CacheKey(IDS["prompt"], req_id=42)
if args.role == "prompt":
    datadist = start("prompt", args.port, pool=True)
    cache = datadist.cache_manager.allocate_cache(CacheDesc(TENSORS, (1, ROW), DataType.DT_UINT8), [key])
    for index, tensor in enumerate(view(cache)):
        tensor[:] = (np.arange(ROW) * (index + 3)) % 251
    talk = Talk(args.port + 1, is_host=True)
    talk.say([zlib.crc32(tensor.tobytes()) for tensor in view(cache)])
    talk.hear()
else:
    datadist = start("decoder", pool=True)
    tensors = memory(TENSORS, (8, BLOCK))
    desc = CacheDesc(TENSORS, (8, BLOCK), DataType.DT_UINT8)
    cache = datadist.cache_manager.register_blocks_cache(desc, addresses(tensors), BlocksCacheKey(0, 0))
    link(datadist, "prompt", args.port)
    talk = Talk(args.port + 1, is_host=False)
    datadist.cache_manager.pull_blocks(key, cache, [], TO)
    landed = [zlib.crc32(tensor[TO].tobytes()[:ROW]) for tensor in tensors]
    expect("cache to blocks", talk.hear(), landed)
    talk.say("done")
datadist.finalize()
