"""The prompt pushes one batch row of a continuous cache into a row of the decoder's. One-sided mode, pools."""

from common import IDS, Talk, arguments, checksums, expect, link, start, view
from llm_datadist import CacheDesc, CacheKeyByIdAndIndex, DataType

SHAPE = (4, 8192)
TENSORS = 4
DECODER_CACHE = 1  # ids start at 1

args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
if args.role == "decoder":
    datadist = start("decoder", args.port, one_sided=True, pool=True)
    cache = datadist.cache_manager.allocate_cache(desc)
    for tensor in view(cache):
        tensor[:] = 0
    untouched = checksums(view(cache), [0, 1, 2])
    talk = Talk(args.port + 1, is_host=True)
    expect("push_cache", talk.hear(), checksums(view(cache), [3]))
    expect("the other rows", untouched, checksums(view(cache), [0, 1, 2]))
    talk.say("seen")
else:
    datadist = start("prompt", one_sided=True, pool=True)
    cache = datadist.cache_manager.allocate_cache(desc)
    for index, tensor in enumerate(view(cache)):
        tensor[:] = [[17 * index + row + 1] for row in range(SHAPE[0])]
    link(datadist, "decoder", args.port)
    talk = Talk(args.port + 1, is_host=False)
    datadist.cache_manager.push_cache(CacheKeyByIdAndIndex(IDS["decoder"], DECODER_CACHE, 3), cache, 1)
    talk.say(checksums(view(cache), [1]))
    talk.hear()
datadist.cache_manager.deallocate_cache(cache)
datadist.finalize()
