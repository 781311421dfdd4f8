"""A model split over two actors: one prefills a prompt and pushes its K and V, the other decodes from them.

    PrefillWorker                                   DecodeWorker
    layer 0: K, V into own blocks -> start_push --> into other blocks of its cache, seen by wait_received
    layer 1: ...                                    ...
                                                    all have landed: decodes from its own cache

Between the call that starts each side and the first token no Ray call is made, over one-sided transports; one that is
not asks the peer for each push. On a device the model still computes on the host: `home.py` copies in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import ray

from ray_kvfabric.actors.endpoint import Seat
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.demo.generate import blocks_for, continuation, scattered, tensor_shape, write_alone
from ray_kvfabric.demo.home import home_of
from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.overlap import Span
from ray_kvfabric.demo.place import RESOURCES
from ray_kvfabric.demo.request import (
    AloneRun,
    LayerReceived,
    ModelChoice,
    PrefillRun,
    Request,
    Reserved,
    TokenWritten,
)
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.route import DeviceId


class ModelWorker(CacheWorker):
    """An actor with a model whose K and V lie in a blocks cache of its own endpoint, on its device if it has one."""

    def __init__(self, seat: Seat, model: ModelChoice) -> None:
        self.llama = Llama(model.load())
        super().__init__(seat)

    @property
    def key(self) -> BlocksCacheKey:
        return BlocksCacheKey(self.manager.endpoint.cluster_id)

    def num_layers(self) -> int:
        return self.llama.config.num_hidden_layers

    def reserve(self, tokens: int, block_tokens: int) -> Reserved:
        """Allocates the cache; random blocks of it with room for `tokens`."""
        config = self.llama.config
        if tokens > config.max_position_embeddings:
            raise ConfigError(
                f"prompt and new tokens are {tokens}, max_position_embeddings is {config.max_position_embeddings}"
            )
        count = blocks_for(tokens, block_tokens)
        shape = tensor_shape(config, 2 * count, block_tokens)
        placement = Placement.HOST if self.manager.settings.device is None else Placement.DEVICE
        desc = CacheDesc(2 * config.num_hidden_layers, shape, DataType.DT_FLOAT, placement)
        self.cache = self.manager.allocate_blocks_cache(desc, self.key)
        self.blocks = scattered(count, 2 * count)
        self.home = home_of(self.cache, self.blocks)
        return Reserved(self.blocks, self._memory())

    def _memory(self) -> str:
        """Of the cache, as it was published."""
        [info] = [each for each in self.manager.caches() if each.cache_id == self.cache.cache_id]
        return "host memory" if info.device is None else pinned_name(info.device)

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
            self.home.store(layer, self.blocks)
            computed_ns.append(time.monotonic_ns())
            transfers.append(self._start_push(request, layer, target, target_blocks))

        begin_ns = time.monotonic_ns()
        self.llama.prefill(request.tokens[:-1], self.home.kv, on_layer=push)
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
            self.home.load(layer, self.blocks[: request.prompt_blocks])
        sampler = request.sampler(self.llama.config)
        for token in continuation(self.llama, request.tokens, self.home.kv, sampler, request.max_new_tokens):
            yield TokenWritten(token, time.monotonic_ns())


def pinned_name(device: DeviceId) -> str:
    """Such as "NPU 1 (Ascend910B3)", by the number of the cluster's node; the process itself sees one and counts 0."""
    resource = RESOURCES[device.kind]
    ids = ray.get_runtime_context().get_accelerator_ids().get(resource)
    return f"{resource} {ids[0] if ids else device.number} ({device.chip})"
