"""The decoder pulls the rows of two requests; each key is used up by that, and the cache freed with the last."""

import sys

from common import IDS, Talk, arguments, checksums, expect, link, start, view
from llm_datadist import CacheDesc, CacheKey, DataType, LLMException, LLMStatusCode

SHAPE = (2, 8192)
TENSORS = 4

args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
keys = [CacheKey(IDS["prompt"], req_id) for req_id in (100, 101)]
if args.role == "prompt":
    datadist = start("prompt", args.port, pool=True)
    cache = datadist.cache_manager.allocate_cache(desc, keys)
    for index, tensor in enumerate(view(cache)):
        tensor[:] = [[31 * index + row + 1] for row in range(SHAPE[0])]
    wanted = checksums(view(cache), [0, 1])
    datadist.cache_manager.deallocate_cache(cache)  # its keys keep it alive
    talk = Talk(args.port + 1, is_host=True)
    talk.say(wanted)
    talk.hear()
else:
    datadist = start("decoder", pool=True)
    cache = datadist.cache_manager.allocate_cache(desc)
    link(datadist, "prompt", args.port)
    talk = Talk(args.port + 1, is_host=False)
    for row, key in enumerate(keys):
        datadist.cache_manager.pull_cache(key, cache, batch_index=row)
    expect("pull_cache", talk.hear(), checksums(view(cache), [0, 1]))
    try:
        datadist.cache_manager.pull_cache(keys[0], cache)
        sys.exit("a key was pulled twice")
    except LLMException as error:
        if error.status_code != LLMStatusCode.LLM_KV_CACHE_NOT_EXIST:
            raise
    talk.say("done")
datadist.finalize()
