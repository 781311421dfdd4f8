"""A model split over two actors: one prefills a prompt and pushes its K and V, the other decodes from them.

    PrefillWorker                                   DecodeWorker
    layer 0: K, V into own blocks -> start_push --> into other blocks of its cache, seen by wait_received
    layer 1: ...                                    ...
                                                    all have landed: decodes from its own cache

Between the call that starts each side and the first token no Ray call is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ray_kvfabric.actors.endpoint import Seat
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.demo.generate import blocks_for, continuation, scattered, tensor_shape, write_alone
from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.overlap import Span
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.request import (
    AloneRun,
    LayerReceived,
    ModelChoice,
    PrefillRun,
    Request,
    TokenWritten,
)
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.errors import ConfigError


class ModelWorker(CacheWorker):
    """An actor with a model whose K and V lie in a blocks cache of its own endpoint."""

    def __init__(self, seat: Seat, model: ModelChoice) -> None:
        self.llama = Llama(model.load())
        super().__init__(seat)

    @property
    def key(self) -> BlocksCacheKey:
        return BlocksCacheKey(self.manager.endpoint.cluster_id)

    def num_layers(self) -> int:
        return self.llama.config.num_hidden_layers

    def reserve(self, tokens: int, block_tokens: int) -> list[int]:
        """Allocates the cache; the ids of random blocks of it with room for `tokens`, in their order."""
        config = self.llama.config
        if tokens > config.max_position_embeddings:
            raise ConfigError(
                f"prompt and new tokens are {tokens}, max_position_embeddings is {config.max_position_embeddings}"
            )
        count = blocks_for(tokens, block_tokens)
        shape = tensor_shape(config, 2 * count, block_tokens)
        desc = CacheDesc(2 * config.num_hidden_layers, shape, DataType.DT_FLOAT, Placement.HOST)
        self.cache = self.manager.allocate_blocks_cache(desc, self.key)
        self.blocks = scattered(count, 2 * count)
        self.kv = paged_view(self.cache, self.blocks)
        return self.blocks

    def write_alone(self, request: Request) -> AloneRun:
        """The same text by this process alone, in private memory."""
        begin_ns = time.monotonic_ns()
        sampler = request.sampler(self.llama.config)
        tokens = write_alone(self.llama, request.tokens, sampler, request.max_new_tokens, request.block_tokens)
        return AloneRun(tuple(tokens), Span(begin_ns, time.monotonic_ns()))


class PrefillWorker(ModelWorker):
    """Computes prompts."""

    def prefill(self, request: Request, target: BlocksCacheKey, target_blocks: list[int]) -> PrefillRun:
        """Each layer sets off as soon as its K and V lie in the cache, while the next ones are computed."""
        self.manager.open_link(target, request.timeout_s)
        computed_ns: list[int] = []
        transfers: list[Transfer] = []

        def push(layer: int) -> None:
            computed_ns.append(time.monotonic_ns())
            transfers.append(self._start_push(request, layer, target, target_blocks))

        begin_ns = time.monotonic_ns()
        self.llama.prefill(request.tokens[:-1], self.kv, on_layer=push)
        end_ns = time.monotonic_ns()
        receipts = tuple(transfer.wait(request.timeout_s) for transfer in transfers)
        return PrefillRun(Span(begin_ns, end_ns), tuple(computed_ns), receipts)

    def _start_push(self, request: Request, layer: int, target: BlocksCacheKey, target_blocks: list[int]) -> Transfer:
        return self.manager.start_push(
            target,
            self.cache,
            [self.blocks[index] for index in request.pushed],
            [target_blocks[index] for index in request.pushed],
            src_layer_range=range(layer, layer + 1),
            dst_layer_range=range(layer, layer + 1),
            transfer_id=request.transfer_id(layer),
            timeout_s=request.timeout_s,
        )


class DecodeWorker(ModelWorker):
    """Writes what follows a prompt whose K and V a PrefillWorker pushes here."""

    def decode(self, request: Request) -> Iterator[LayerReceived | TokenWritten]:
        """Sleeps until all layers have landed, then decodes; each event is yielded when it happens."""
        for layer in range(self.num_layers()):
            self.manager.wait_received(request.transfer_id(layer), request.timeout_s)
            yield LayerReceived(layer, time.monotonic_ns())
        sampler = request.sampler(self.llama.config)
        for token in continuation(self.llama, request.tokens, self.kv, sampler, request.max_new_tokens):
            yield TokenWritten(token, time.monotonic_ns())


def paged_view(cache: Cache, blocks: list[int]) -> PagedKV:
    """The cache's own memory, in which tensors 2 l and 2 l + 1 are K and V of layer l."""
    tensors = [cache.numpy(index).view(np.float32) for index in range(cache.cache_desc.num_tensors)]
    return PagedKV(tensors[::2], tensors[1::2], blocks)
