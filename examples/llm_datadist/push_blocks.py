"""The prompt pushes blocks of all layers into the decoder's cache, which gets no call. One-sided mode."""

from common import IDS, Talk, addresses, arguments, checksums, expect, link, memory, start, unlink
from llm_datadist import BlocksCacheKey, CacheDesc, DataType

SHAPE = (16, 4096)
TENSORS = 8
FROM, TO = [3, 4, 5, 9], [12, 0, 1, 7]

args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
if args.role == "decoder":
    datadist = start("decoder", args.port, one_sided=True)
    tensors = memory(TENSORS, SHAPE)
    datadist.cache_manager.register_blocks_cache(desc, addresses(tensors), BlocksCacheKey(IDS["decoder"], 0))
    talk = Talk(args.port + 1, is_host=True)
    expect("push_blocks", talk.hear(), checksums(tensors, TO))
    talk.say("seen")
    talk.hear()
else:
    datadist = start("prompt", one_sided=True)
    tensors = memory(TENSORS, SHAPE, seed=1)
    cache = datadist.cache_manager.register_blocks_cache(desc, addresses(tensors))
    link(datadist, "decoder", args.port)
    talk = Talk(args.port + 1, is_host=False)
    datadist.cache_manager.push_blocks(
        BlocksCacheKey(IDS["decoder"], 0), cache, FROM, TO, range(TENSORS // 2), range(TENSORS // 2)
    )
    talk.say(checksums(tensors, FROM))
    talk.hear()
    unlink(datadist, "decoder", args.port)
    talk.say("unlinked")
datadist.finalize()
