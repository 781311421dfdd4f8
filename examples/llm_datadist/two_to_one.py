"""One decoder pulls from two prompts, over two links made by one call. Request mode. Start it three times."""

import sys

from common import IDS, Talk, addresses, arguments, checksums, cluster, expect, memory, start
from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMStatusCode

SHAPE = (8, 4096)
TENSORS = 4
PROMPTS = {"prompt": [0, 1], "second_prompt": [5, 6]}

args = arguments("prompt", "second_prompt", "decoder")
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
ports = {"prompt": args.port, "second_prompt": args.port + 2}
if args.role in PROMPTS:
    port = ports[args.role]
    datadist = start(args.role, port)
    tensors = memory(TENSORS, SHAPE, seed=IDS[args.role])
    datadist.cache_manager.register_blocks_cache(desc, addresses(tensors), BlocksCacheKey(0, 0))
    talk = Talk(port + 1, is_host=True)
    talk.say(checksums(tensors, [2, 3]))
    talk.hear()
else:
    datadist = start("decoder")
    tensors = memory(TENSORS, SHAPE)
    cache = datadist.cache_manager.register_blocks_cache(desc, addresses(tensors))
    talks = {name: Talk(ports[name] + 1, is_host=False) for name in PROMPTS}
    clusters = [cluster(name, ports[name]) for name in PROMPTS]
    overall, each = datadist.link_clusters(clusters, 3000)
    if overall != LLMStatusCode.LLM_SUCCESS:
        sys.exit(f"linking two clusters: {each}")
    for name, blocks in PROMPTS.items():
        datadist.cache_manager.pull_blocks(BlocksCacheKey(IDS[name], 0), cache, [2, 3], blocks)
    for name, blocks in PROMPTS.items():
        expect(f"pulled from {name}", talks[name].hear(), checksums(tensors, blocks))
    datadist.unlink_clusters(clusters, 3000)
    for talk in talks.values():
        talk.say("done")
datadist.finalize()
