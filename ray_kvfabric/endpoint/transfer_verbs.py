"""The verbs that move bytes between endpoints (contract section 12), and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import (
    LayerConfig,
    LayerSynchronizer,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.endpoint.jobs import Job
from ray_kvfabric.endpoint.layer_moves import LayerMoves
from ray_kvfabric.endpoint.layer_requests import LayerOrder, LayerPart, check_layer_transfer
from ray_kvfabric.endpoint.layer_task import CacheTask, run_layers
from ray_kvfabric.endpoint.requests import BlockArgument, check_transfer_id
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.route import Receipt, Route
from ray_kvfabric.transport.registry import Verdict

Around = Callable[[int], AbstractContextManager[None]]  # given the cluster_id that a layer goes to


class TransferVerbs(EndpointCore):
    """Pushes and pulls. What is refused has moved nothing; what fails later may have written some of its targets."""

    # ---- blocks ----------------------------------------------------------------------------------

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: BlockArgument | None = (),
        dst_blocks: BlockArgument = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """Writes block `src_blocks[i]` of every listed layer into block `dst_blocks[i]` of the peer's cache.

        Returns when the bytes are there. `sync_kv_timeout_ms` bounds the call. Raises TypeError or ValueError for
        wrong types and widths, LLMException otherwise: LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST,
        LLM_NOT_YET_LINK, LLM_LINK_FAILED, LLM_SUSPECT_REMOTE_ERROR (the peer died), LLM_TIMEOUT, LLM_FAILED.
        """
        self._check_open()
        self._requests.push(
            dst_cache_key,
            src_cache,
            src_blocks,
            dst_blocks,
            src_layer_range,
            dst_layer_range,
            tensor_num_per_layer,
        ).run()

    def start_push(
        self,
        dst_cache_key: BlocksCacheKey,
        src_cache: Cache,
        src_blocks: BlockArgument | None = (),
        dst_blocks: BlockArgument = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Transfer:
        """`push_blocks` without the wait. Wrong arguments and a full queue raise here, everything else from it.

        `transfer_id` is 32 hexadecimal digits, made here when left out; the same id twice is the same transfer.
        A more urgent transfer goes first on its link, and one that moves there gives way to it.
        """
        self._check_open()
        job = self._requests.push(
            dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer,
            transfer_id, timeout_s, priority,
        )  # fmt: skip
        return self._start(job)

    def pull_blocks(
        self,
        src_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        dst_cache: Cache,
        src_blocks: BlockArgument = (),
        dst_blocks: BlockArgument = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """Reads the peer's block `src_blocks[i]` into the local block `dst_blocks[i]`; raises as `push_blocks`.

        With a CacheKey or CacheKeyByIdAndIndex the named row of a continuous cache is cut into local blocks:
        piece i goes to `dst_blocks[i]`, the row's last piece may be shorter, and src_blocks stays empty.
        """
        self.blocks_pull(
            src_cache_key, dst_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer
        ).run()

    def blocks_pull(
        self,
        src_cache_key: BlocksCacheKey | CacheKey | CacheKeyByIdAndIndex,
        dst_cache: Cache,
        src_blocks: BlockArgument,
        dst_blocks: BlockArgument,
        src_layer_range: range | None,
        dst_layer_range: range | None,
        tensor_num_per_layer: int,
    ) -> Job:
        """`pull_blocks` with its arguments checked, to be run; for whoever has checks of his own in between."""
        self._check_open()
        layers = src_layer_range, dst_layer_range, tensor_num_per_layer
        if isinstance(src_cache_key, CacheKey | CacheKeyByIdAndIndex):
            return self._rows.pull_into_blocks(src_cache_key, dst_cache, src_blocks, dst_blocks, *layers)
        return self._requests.pull(src_cache_key, dst_cache, src_blocks, dst_blocks, *layers)

    def start_pull(
        self,
        src_cache_key: BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: BlockArgument = (),
        dst_blocks: BlockArgument = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Transfer:
        """`pull_blocks` of a blocks cache without the wait, as `start_push` is to `push_blocks`."""
        self._check_open()
        job = self._requests.pull(
            src_cache_key, dst_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer,
            transfer_id, timeout_s, priority,
        )  # fmt: skip
        return self._start(job)

    # ---- rows ------------------------------------------------------------------------------------

    def push_cache(
        self,
        dst_cache_key: CacheKeyByIdAndIndex,
        src_cache: Cache,
        src_batch_index: int = 0,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        size: int = -1,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """Writes row `src_batch_index` of every listed layer into the beginning of the row that the key names.

        Raises as `push_blocks`; a source row longer than the target's is LLM_PARAM_INVALID.
        """
        self._check_open()
        self._rows.push(
            dst_cache_key, src_cache, src_batch_index, src_layer_range, dst_layer_range, size, tensor_num_per_layer
        ).run()

    def pull_cache(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int = 0,
        size: int = -1,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """Reads the first `size` bytes (-1: a local row's) of the row that the key names into row `batch_index`.

        With `transfer_mode="request"` the key of an allocated cache is used up once all its tensors were pulled.
        Raises as `push_blocks`.
        """
        self.row_pull(cache_key, cache, batch_index, size, src_layer_range, dst_layer_range, tensor_num_per_layer).run()

    def row_pull(
        self,
        cache_key: CacheKey | CacheKeyByIdAndIndex,
        cache: Cache,
        batch_index: int,
        size: int,
        src_layer_range: range | None,
        dst_layer_range: range | None,
        tensor_num_per_layer: int,
    ) -> Job:
        """`pull_cache` with its arguments checked, to be run, as `blocks_pull`."""
        self._check_open()
        return self._rows.pull(
            cache_key, cache, batch_index, size, src_layer_range, dst_layer_range, tensor_num_per_layer
        )

    # ---- layer by layer --------------------------------------------------------------------------

    def transfer_cache_async(
        self,
        src_cache: Cache,
        layer_synchronizer: LayerSynchronizer,
        transfer_configs: Sequence[LayerConfig],
        src_block_indices: Sequence[int] | None = None,
        dst_block_indices: Sequence[int] | None = None,
        dst_block_memory_size: int | None = None,
    ) -> CacheTask:
        """Pushes each layer, two tensors of it, once `layer_synchronizer` says that it was computed.

        src and dst blocks    blocks to blocks
        dst blocks alone      one row, cut into blocks of `dst_block_memory_size` bytes
        none                  one row of each tensor (block 0 of a blocks cache)
        Wrong arguments raise here; what becomes of each config is in the CacheTask. `sync_kv_timeout_ms` bounds
        each layer.
        """
        self._check_open()
        kinds = (TransferConfig, TransferWithCacheKeyConfig)
        order = check_layer_transfer(
            src_cache, layer_synchronizer, transfer_configs, src_block_indices, dst_block_indices,
            dst_block_memory_size, kinds, allows_host=True,
        )  # fmt: skip
        return self.run_layer_order(order)

    def run_layer_order(self, order: LayerOrder, around: Around = lambda _: nullcontext()) -> CacheTask:
        """Starts a layer-wise transfer whose arguments were checked already; `around` is entered for each move."""
        moves = LayerMoves(order, self._requests, self._rows)

        def move(part: LayerPart) -> None:
            job = moves.job(part)
            with around(job.way_name[0]):
                job.run()

        return run_layers(order, move)

    # ---- ways and outcomes -----------------------------------------------------------------------

    def open_link(self, cache_key: BlocksCacheKey, timeout_s: float | None = None) -> None:
        """Opens what the first push to this key would open, from memory of the kind that it names: a question to the
        directory, a mapping, a communicator.
        """
        self._check_open()
        check_type(cache_key, BlocksCacheKey, "cache_key")
        deadline = self._control_deadline() if timeout_s is None else Deadline.after(timeout_s)
        self._links.open(cache_key.way, deadline)

    def explain(self, cache_key: BlocksCacheKey) -> tuple[Route, list[Verdict]]:
        """The route to this key and, for each transport, why it could not serve it (None: it could)."""
        check_type(cache_key, BlocksCacheKey, "cache_key")
        return self._links.explain(cache_key.way, self._control_deadline())

    def result(self, transfer_id: str, timeout_s: float) -> Receipt:
        """What became of a started transfer: its receipt or its error.

        Raises TransferUnknown for an id never started here or forgotten since, TransferTimeout while it moves.
        """
        return self._transfers.find(transfer_id).wait(timeout_s)

    def cancel(self, transfer_id: str) -> bool:
        """Stops a started transfer within 4 MiB; False when it had ended. Raises TransferUnknown."""
        return self._transfers.find(transfer_id).cancel()

    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        """Sleeps until a peer's push of this id has landed here; no Ray call. A receipt is given once.

        Raises TransferTimeout. A peer's 256 newest receipts are kept for a reader that comes late.
        """
        return self._receipts.wait(check_transfer_id(transfer_id), Deadline.after(timeout_s))
