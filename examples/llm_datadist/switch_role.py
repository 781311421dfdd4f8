"""Both change their roles: first the decoder listens and the prompt pushes; then the other way round."""

from common import IDS, Talk, addresses, arguments, checksums, expect, link, memory, start, unlink
from llm_datadist import BlocksCacheKey, CacheDesc, DataType, LLMRole

SHAPE = (8, 4096)
TENSORS = 4

args = arguments()
desc = CacheDesc(TENSORS, SHAPE, DataType.DT_UINT8)
is_prompt = args.role == "prompt"
datadist = start(args.role, None if is_prompt else args.port, one_sided=True)
tensors = memory(TENSORS, SHAPE, seed=IDS[args.role])
manager = datadist.cache_manager
cache = manager.register_blocks_cache(desc, addresses(tensors), BlocksCacheKey(IDS[args.role], 0))
other = "decoder" if is_prompt else "prompt"
talk = Talk(args.port + 1, is_host=not is_prompt)


def push(blocks, to):
    manager.push_blocks(BlocksCacheKey(IDS[other], 0), cache, blocks, to)
    talk.say(checksums(tensors, blocks))
    talk.hear()


def receive(what, to):
    expect(what, talk.hear(), checksums(tensors, to))
    talk.say("seen")


if is_prompt:
    link(datadist, "decoder", args.port)
    push([0, 1], [4, 5])
    receive("push from the end that accepted", [6, 7])
    unlink(datadist, "decoder", args.port)
    datadist.switch_role(LLMRole.DECODER, {"llm.listenIpInfo": f"127.0.0.1:{args.port + 2}"})
    talk.say("switched")
    receive("push after the switch", [3])
    talk.hear()
else:
    receive("push before the switch", [4, 5])
    push([2, 3], [6, 7])
    talk.hear()
    datadist.switch_role(LLMRole.PROMPT)
    link(datadist, "prompt", args.port + 2)
    push([1], [3])
    unlink(datadist, "prompt", args.port + 2)
    talk.say("unlinked")
datadist.finalize()
