"""How a model of your own is split over a prefill and a decode actor: what you write, and what the fabric does.

    python examples/disaggregated_prefill_decode.py "Return the name of the"

The model here is the demo's numpy Llama. Yours has to write K and V of each layer into tensors of the cache and to
say when a layer is written; `allocate_blocks_cache` gives the memory, and `register_blocks_cache` takes memory that
your model already owns.
"""

from __future__ import annotations

import sys
import uuid

import numpy as np
import ray

from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheWorker, DataType, Fabric, Placement
from ray_kvfabric.demo.checkpoint import default_model_dir, load_checkpoint
from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.sampling import Sampler

PREFILL, DECODE = 1, 2
BLOCKS, BLOCK_TOKENS = 32, 16
NEW_TOKENS = 32
TIMEOUT_S = 60.0


class Server(CacheWorker):
    """An actor that holds a model and an endpoint; the model's K and V lie in a cache of the endpoint."""

    def __init__(self, seat) -> None:
        super().__init__(seat)
        checkpoint = load_checkpoint(default_model_dir())
        self.llama, self.text = Llama(checkpoint), checkpoint.text
        config = checkpoint.config
        shape = [BLOCKS, BLOCK_TOKENS, config.num_key_value_heads, config.head_dim]
        desc = CacheDesc(2 * config.num_hidden_layers, shape, DataType.DT_FLOAT, Placement.HOST)
        self.cache = self.manager.allocate_blocks_cache(desc, BlocksCacheKey(seat.cluster_id))
        self.tensors = [self.cache.numpy(index) for index in range(desc.num_tensors)]

    def paged(self, blocks: list[int]) -> PagedKV:
        return PagedKV(self.tensors[::2], self.tensors[1::2], blocks)


class Prefill(Server):
    def prefill(self, prompt: str, blocks: list[int], target_blocks: list[int], transfer_ids: list[str]) -> int:
        """Pushes each layer while the next ones are computed. Returns the bytes pushed."""
        tokens = self.text.encode(prompt)[:-1]  # the decoder computes the last token itself
        count = -(-len(tokens) // BLOCK_TOKENS)
        transfers = []

        def push(layer: int) -> None:  # called as soon as K and V of the layer are written; never blocks
            one = range(layer, layer + 1)
            transfers.append(
                self.manager.start_push(
                    BlocksCacheKey(DECODE),
                    self.cache,
                    blocks[:count],
                    target_blocks[:count],
                    src_layer_range=one,
                    dst_layer_range=one,
                    transfer_id=transfer_ids[layer],
                    timeout_s=TIMEOUT_S,
                )
            )

        self.llama.prefill(tokens, self.paged(blocks), on_layer=push)
        return sum(transfer.wait(TIMEOUT_S).nbytes for transfer in transfers)


class Decode(Server):
    def decode(self, prompt: str, blocks: list[int], transfer_ids: list[str]) -> str:
        for transfer_id in transfer_ids:  # no call to anybody: the writer leaves a record in this process
            self.manager.wait_received(transfer_id, TIMEOUT_S)
        tokens, cache = self.text.encode(prompt), self.paged(blocks)
        sampler = Sampler(seed=1, suppressed=self.llama.config.end_token_ids)
        for position in range(len(tokens), len(tokens) + NEW_TOKENS):
            logits = self.llama.decode(tokens[-1], position - 1, cache)
            tokens.append(sampler.pick(logits, position))
        return self.text.decode(tokens)


def main(prompt: str) -> None:
    transfer_ids = [uuid.uuid4().hex for _ in range(4)]  # one a layer, known to both sides
    shuffled = np.random.default_rng()
    source_blocks, target_blocks = (shuffled.permutation(BLOCKS).tolist() for _ in range(2))
    with Fabric.connect("disaggregated") as fabric:
        [prefill] = fabric.add_workers(PREFILL, worker_class=Prefill)
        [decode] = fabric.add_workers(DECODE, worker_class=Decode)
        text = decode.decode.remote(prompt, target_blocks, transfer_ids)
        pushed = prefill.prefill.remote(prompt, source_blocks, target_blocks, transfer_ids)
        print(f"{ray.get(pushed, timeout=TIMEOUT_S)} bytes pushed")
        print(ray.get(text, timeout=TIMEOUT_S))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "This module provides a shared store for blocks of bytes. Return the name of the")
