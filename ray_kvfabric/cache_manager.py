"""CacheManager: one endpoint of the fabric, in whatever process it is made. The LLM-DataDist verbs live here.

    caches    `endpoint/caches.py`     what this endpoint holds
    links     `endpoint/links.py`      how it reaches the others
    jobs      `endpoint/jobs.py`       one push or pull
    transfers `endpoint/transfers.py`  those that were started and can be asked for

It knows other endpoints through the `Directory` and `PeerCalls` ports only, and never imports Ray.
"""

from __future__ import annotations

from types import TracebackType

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, LLMRole
from ray_kvfabric.config import EndpointSettings, endpoint_settings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.caches import CacheEntry, CacheTable
from ray_kvfabric.endpoint.identity import ANY_TRACER, Identity, allow_tracer
from ray_kvfabric.endpoint.jobs import Mover
from ray_kvfabric.endpoint.links import LinkTable
from ray_kvfabric.endpoint.local import check_pairs_of_lists, copy_inside, swap
from ray_kvfabric.endpoint.requests import BlockArgument, Requests, check_transfer_id
from ray_kvfabric.endpoint.status import describe_endpoint
from ray_kvfabric.endpoint.transfers import Transfer, TransferTable
from ray_kvfabric.errors import FeatureNotEnabled, ParamInvalid
from ray_kvfabric.memory.copy import load
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.ports import Directory, PeerCalls
from ray_kvfabric.route import CacheInfo, Receipt, Route
from ray_kvfabric.telemetry import Counters
from ray_kvfabric.transport.base import LocalEnd
from ray_kvfabric.transport.process_vm import ADMIT_WRITER
from ray_kvfabric.transport.receipts import ReceiptReader
from ray_kvfabric.transport.registry import Verdict, usable


class CacheManager:
    """The verbs of one endpoint. Threads may share it; a forked child must make its own.

    `directory` and `peers` connect it to the fabric; `tracer_pid` is the process that process_vm writers descend
    from (the raylet, for Ray workers). Raises ClusterIdTaken when another live endpoint has this cluster_id.
    """

    def __init__(
        self,
        cluster_id: int,
        *,
        directory: Directory,
        peers: PeerCalls | None = None,
        settings: EndpointSettings | None = None,
        role: LLMRole = LLMRole.MIX,
        node: str = "",
        tracer_pid: int | None = None,
    ) -> None:
        check_int(cluster_id, "uint64", "cluster_id")
        self.settings = settings or endpoint_settings()
        self.counters = Counters()
        self._directory = directory
        self._copier = load(self.settings.copy_kernel)
        if self.settings.copy_threads is not None:
            self._copier.set_copy_threads(self.settings.copy_threads)
        transports = usable(self.settings.transports)
        self._identity = Identity(cluster_id, role, node, tuple(each.name for each in transports))
        self.endpoint = self._identity.endpoint
        self._pool = _pool(self.settings)
        self._caches = CacheTable(self._pool, self._identity.page, self._copier, emulates_device=self._emulates_device)
        local = LocalEnd(self.endpoint, self._copier)
        self._links = LinkTable(local, transports, directory, peers, self.counters)
        mover = Mover(cluster_id, self._caches, self._links, self.counters)
        self._requests = Requests(mover, self._copier, self.settings.sync_kv_timeout_ms / 1000)
        self._transfers = TransferTable(self.settings.transfer_threads, self.settings.result_ttl_s)
        self._receipts = ReceiptReader(self._identity.page, cluster_id)
        self._is_closed = False
        if tracer_pid is not None:
            allow_tracer(tracer_pid)
        directory.announce(self.endpoint, self._control_deadline())

    @property
    def _emulates_device(self) -> bool:
        return self.settings.emulated_device == "host"

    def _control_deadline(self) -> Deadline:
        return Deadline.after(self.settings.control_timeout_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} is closed")

    # ---- caches ----------------------------------------------------------------------------------

    def allocate_blocks_cache(self, cache_desc: CacheDesc, blocks_cache_key: BlocksCacheKey | None = None) -> Cache:
        """A blocks cache from this endpoint's pool, zeroed, its pages touched, visible to peers at once.

        Raises LLMException: LLM_PARAM_INVALID (no pool, no tensors, bad shape, model_id taken),
        LLM_OUT_OF_MEMORY (the budget or the host).
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        model_id = _model_id(blocks_cache_key)
        if cache_desc.num_tensors == 0:
            raise ParamInvalid("cache_desc.num_tensors must be at least 1, got 0")
        return self._publish(self._caches.allocate(cache_desc, model_id))

    def register_blocks_cache(
        self,
        cache_desc: CacheDesc,
        addrs: list[object],
        blocks_cache_key: BlocksCacheKey | None = None,
        remote_accessible: bool | None = None,
    ) -> Cache:
        """A blocks cache over memory that somebody else owns: one address or buffer or DLPack tensor a tensor.

        Objects are kept alive while registered. `remote_accessible` None means True. A `model_id` that is in use
        moves to the new cache. Raises LLMException (LLM_PARAM_INVALID), TypeError.
        """
        self._check_open()
        check_type(cache_desc, CacheDesc, "cache_desc")
        check_type(addrs, list, "addrs")
        model_id = _model_id(blocks_cache_key)
        if remote_accessible is not None:
            check_type(remote_accessible, bool, "remote_accessible")
        if not addrs:
            raise ParamInvalid("addrs is empty")
        return self._publish(self._caches.register(cache_desc, addrs, model_id, remote_accessible is not False))

    def _publish(self, entry: CacheEntry) -> Cache:
        """Makes the cache known; one that the directory does not take is taken back."""
        try:
            self._directory.publish(self.endpoint, entry.info, self._control_deadline())
        except BaseException:
            self._caches.remove(entry.info.cache_id, self._control_deadline())
            raise
        return entry.cache

    def unregister_cache(self, cache_id: int) -> None:
        """Forgets a cache, registered or allocated; an unknown id is no error.

        Returns when no peer writes into it any more. Raises TransferTimeout while one does not leave.
        """
        check_int(cache_id, "int64", "cache_id")
        entry = self._caches.remove(cache_id, self._control_deadline())
        if entry is not None:
            entry.cache.forget_addresses()
            self._directory.withdraw(self.endpoint, cache_id, self._control_deadline())

    def deallocate_blocks_cache(self, cache: Cache) -> None:
        """Frees an allocated blocks cache; a freed or registered one is no error. `cache.tensor_addrs` empties."""
        check_type(cache, Cache, "cache")
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"cache {cache.cache_id} is not a blocks cache")
        if self._pool.budget is None:
            raise FeatureNotEnabled("mem_pool is not configured, so there is nothing to deallocate from")
        if self._is_allocated(cache.cache_id):
            self.unregister_cache(cache.cache_id)
        cache.forget_addresses()

    def _is_allocated(self, cache_id: int) -> bool:
        return any(entry.info.cache_id == cache_id and entry.memory is not None for entry in self._caches.all())

    def cache(self, cache_id: int) -> Cache:
        """The live cache of this id. Raises LLMException (LLM_KV_CACHE_NOT_EXIST)."""
        return self._caches.find(cache_id).cache

    def caches(self) -> list[CacheInfo]:
        """What this endpoint holds, as it is announced."""
        return [entry.info for entry in self._caches.all()]

    # ---- transfers -------------------------------------------------------------------------------

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
        A refused call has moved nothing; one that fails later may have written some of its target blocks.
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
    ) -> Transfer:
        """`push_blocks` without the wait. Wrong arguments raise here, everything else from the transfer.

        `transfer_id` is 32 hexadecimal digits, made here when left out; the same id twice is the same transfer.
        """
        self._check_open()
        job = self._requests.push(
            dst_cache_key, src_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer,
            transfer_id, timeout_s,
        )  # fmt: skip
        return self._transfers.start(job.transfer_id, job.run, self._copier.StopWord())

    def pull_blocks(
        self,
        src_cache_key: BlocksCacheKey,
        dst_cache: Cache,
        src_blocks: BlockArgument = (),
        dst_blocks: BlockArgument = (),
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
    ) -> None:
        """Reads the peer's block `src_blocks[i]` into the local block `dst_blocks[i]`; raises as `push_blocks`."""
        self._check_open()
        self._requests.pull(
            src_cache_key,
            dst_cache,
            src_blocks,
            dst_blocks,
            src_layer_range,
            dst_layer_range,
            tensor_num_per_layer,
        ).run()

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
    ) -> Transfer:
        """`pull_blocks` without the wait, as `start_push` is to `push_blocks`."""
        self._check_open()
        job = self._requests.pull(
            src_cache_key, dst_cache, src_blocks, dst_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer,
            transfer_id, timeout_s,
        )  # fmt: skip
        return self._transfers.start(job.transfer_id, job.run, self._copier.StopWord())

    def open_link(self, cache_key: BlocksCacheKey, timeout_s: float | None = None) -> None:
        """Opens what the first push to this key would open: a question to the directory, a mapping."""
        self._check_open()
        check_type(cache_key, BlocksCacheKey, "cache_key")
        deadline = self._control_deadline() if timeout_s is None else Deadline.after(timeout_s)
        self._links.way(cache_key.cluster_id, cache_key.model_id, deadline)

    def drop_dead_links(self) -> None:
        """Lets go of the memory of peers that died; who keeps an endpoint in the fabric calls it now and then."""
        self._links.sweep()

    def explain(self, cache_key: BlocksCacheKey) -> tuple[Route, list[Verdict]]:
        """The route to this key and, for each transport, why it could not serve it (None: it could)."""
        check_type(cache_key, BlocksCacheKey, "cache_key")
        return self._links.explain(cache_key.cluster_id, cache_key.model_id, self._control_deadline())

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

    # ---- inside this endpoint --------------------------------------------------------------------

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """Copies each source block to each listed block of the same cache, all tensors, in the dict's order."""
        self._check_open()
        check_type(cache, Cache, "cache")
        sources, targets = check_pairs_of_lists(copy_block_info)
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"cache {cache.cache_id} is not a blocks cache")
        copy_inside(self._copier, self._caches.find_mapped(cache.cache_id), sources, targets)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """Copies blocks from a host cache to a device cache or back, one way, as LLM-DataDist's verb of this name.

        Raises LLMException: LLM_PARAM_INVALID for a pair that does not fit, LLM_FEATURE_NOT_ENABLED without a
        device and without `emulated_device`.
        """
        self._check_open()
        swap(self._copier, src_cache, dst_cache, src_to_dst, emulates_device=self._emulates_device)

    # ---- the endpoint ----------------------------------------------------------------------------

    def answer(self, question: str, arguments: dict[str, int]) -> object:
        """What a peer's `PeerCalls.ask` comes to."""
        if question != ADMIT_WRITER:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} does not know the question {question!r}")
        self.counters.warn_once(
            "admitted_any_tracer",
            f"process {arguments['pid']} may not trace this process yet: every process of this user is now allowed to",
        )
        allow_tracer(ANY_TRACER)
        return True

    def status(self) -> dict[str, object]:
        """Endpoint, caches, links, transfers, memory and counters, ready for JSON."""
        return describe_endpoint(self.endpoint, self.caches(), self._links, self._transfers, self._pool)

    def close(self) -> None:
        """Leaves the fabric: transfers are stopped, links closed, caches fenced off and freed. Idempotent.

        Raises TransferTimeout when a live writer does not leave registered memory.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._transfers.close()
        try:
            self._directory.leave(self.endpoint, self._control_deadline())
        finally:
            self._links.close()
            for entry in self._caches.all():
                self._caches.remove(entry.info.cache_id, self._control_deadline())
                entry.cache.forget_addresses()
            self._pool.close()
            self._identity.close()

    def __enter__(self) -> CacheManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<CacheManager {self.endpoint.cluster_id} {state}: {len(self._caches.all())} caches, "
            f"{len(self._links.links())} links>"
        )


def _pool(settings: EndpointSettings) -> HostPool:
    pool = settings.mem_pool
    if pool is None:
        return HostPool(None, huge_pages=False)
    return HostPool(pool.memory_size, huge_pages=pool.huge_pages == "auto")


def _model_id(key: BlocksCacheKey | None) -> int | None:
    """A key's cluster_id is ignored at registration (contract 8.2)."""
    if key is None:
        return None
    model_id = check_type(key, BlocksCacheKey, "blocks_cache_key").model_id
    if not 0 <= model_id < 2**64:
        raise TypeError(f"blocks_cache_key.model_id must be a uint64, got {model_id}")
    return model_id
