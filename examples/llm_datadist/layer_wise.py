"""The prompt transfers layers 2 and 3 while it computes them, into layers 0 and 1 of the decoder. One-sided mode."""

import sys
import threading
import time

from common import IDS, Talk, addresses, arguments, checksums, expect, link, memory, start
from llm_datadist import (
    BlocksCacheKey,
    CacheDesc,
    DataType,
    LayerSynchronizer,
    LLMStatusCode,
    TransferWithCacheKeyConfig,
)

SHAPE = (16, 4096)
TENSORS = 8
FROM, TO = [1, 2, 3], [13, 4, 5]


class Computed(LayerSynchronizer):
    """Says when a layer is there."""

    def __init__(self, layers):
        self._events = [threading.Event() for _ in range(layers)]

    def finish(self, layer):
        self._events[layer].set()

    def synchronize_layer(self, layer_index, timeout_in_millis):
        return self._events[layer_index].wait(30)


args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
if args.role == "decoder":
    datadist = start("decoder", args.port, one_sided=True)
    tensors = memory(TENSORS, SHAPE)
    datadist.cache_manager.register_blocks_cache(desc, addresses(tensors), BlocksCacheKey(IDS["decoder"], 0))
    talk = Talk(args.port + 1, is_host=True)
    expect("layers 2 and 3 to 0 and 1", talk.hear(), checksums(tensors[:4], TO))
    untouched = memory(4, SHAPE)
    expect("the other layers", checksums(untouched, range(16)), checksums(tensors[4:], range(16)))
    talk.say("seen")
else:
    datadist = start("prompt", one_sided=True)
    tensors = memory(TENSORS, SHAPE)
    cache = datadist.cache_manager.register_blocks_cache(desc, addresses(tensors))
    link(datadist, "decoder", args.port)
    talk = Talk(args.port + 1, is_host=False)
    computed = Computed(TENSORS // 2)
    config = TransferWithCacheKeyConfig(BlocksCacheKey(IDS["decoder"], 0), range(2, 4), range(2))
    task = datadist.cache_manager.transfer_cache_async(cache, computed, [config], FROM, TO)
    values = memory(TENSORS, SHAPE, seed=3)
    for layer in range(TENSORS // 2):
        time.sleep(0.05)
        for index in (2 * layer, 2 * layer + 1):
            tensors[index][:] = values[index]
        computed.finish(layer)
    if task.synchronize(20000) != LLMStatusCode.LLM_SUCCESS:
        sys.exit(f"layer-wise transfer: {task.get_results()}")
    talk.say(checksums(tensors[4:], FROM))
    talk.hear()
datadist.finalize()
