"""The decoder pulls blocks out of the prompt's cache. Request mode."""

from common import IDS, Talk, addresses, arguments, checksums, expect, link, memory, start, unlink
from llm_datadist import BlocksCacheKey, CacheDesc, DataType

SHAPE = (16, 4096)
TENSORS = 8
FROM, TO = [0, 1, 2, 11], [8, 9, 10, 3]

args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
key = BlocksCacheKey(IDS["prompt"], 7)
if args.role == "prompt":
    datadist = start("prompt", args.port)
    tensors = memory(TENSORS, SHAPE, seed=2)
    datadist.cache_manager.register_blocks_cache(desc, addresses(tensors), key)
    talk = Talk(args.port + 1, is_host=True)
    talk.say(checksums(tensors, FROM))
    talk.hear()
else:
    datadist = start("decoder")
    tensors = memory(TENSORS, SHAPE)
    cache = datadist.cache_manager.register_blocks_cache(desc, addresses(tensors))
    link(datadist, "prompt", args.port)
    talk = Talk(args.port + 1, is_host=False)
    datadist.cache_manager.pull_blocks(key, cache, FROM, TO)
    expect("pull_blocks", talk.hear(), checksums(tensors, TO))
    unlink(datadist, "prompt", args.port)
    talk.say("done")
datadist.finalize()
