"""Arguments of push_blocks and pull_blocks to a job: the checks that need no peer, in the order of contract 12.1."""

from __future__ import annotations

import re
import secrets
from itertools import count

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName, WayName
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.grant_rules import granted_blocks
from ray_kvfabric.endpoint.granted_job import GrantedJob
from ray_kvfabric.endpoint.jobs import BlocksJob
from ray_kvfabric.endpoint.mover import Mover
from ray_kvfabric.errors import NoneGiven, ParamInvalid
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import BlockList
from ray_kvfabric.memory.device import Mark
from ray_kvfabric.plan import LayerRequest, request_layers, request_pulled_layers

BlockArgument = tuple[int, ...] | list[int]
_TRANSFER_ID = re.compile(r"[0-9a-f]{32}")
UINT64_MAX = 2**64 - 1


def check_transfer_id(transfer_id: str) -> str:
    """32 lower-case hexadecimal digits: 128 bits, as the completion record holds them."""
    if not isinstance(transfer_id, str):
        raise TypeError(f"transfer_id must be a str, got {type(transfer_id).__name__}")
    if not _TRANSFER_ID.fullmatch(transfer_id):
        raise ParamInvalid(f"transfer_id must be 32 lower-case hexadecimal digits, got {transfer_id!r}")
    return transfer_id


class Stamp:
    """Gives each job its transfer_id and its deadline."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._prefix = secrets.token_hex(8)
        self._numbers = count(1)

    def transfer_id(self, given: str | None = None) -> str:
        return f"{self._prefix}{next(self._numbers):016x}" if given is None else check_transfer_id(given)

    def deadline(self, timeout_s: float | None = None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s)


class Requests:
    """Makes the jobs that move blocks to blocks."""

    def __init__(self, mover: Mover, stamp: Stamp) -> None:
        self._mover = mover
        self._copier = mover.copier
        self._stamp = stamp

    def push(
        self,
        key: BlocksCacheKey,
        cache: Cache,
        src_blocks: BlockArgument | None,
        dst_blocks: BlockArgument,
        src_layers: range | None,
        dst_layers: range | None,
        tensors_per_layer: int,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> BlocksJob:
        check_blocks_key(key, "dst_cache_key")
        check_cache(cache, "src_cache")
        sources = self._copier.BlockList(() if src_blocks is None else src_blocks, "src_blocks")
        targets = self._copier.BlockList(dst_blocks, "dst_blocks")
        check_is_blocks(cache, "src_cache", targets)
        check_source_is_known(cache, "src_cache")
        layers = request_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        return self._job(key.way, cache, layers, sources, targets, transfer_id, timeout_s, priority, is_pull=False)

    def push_granted(
        self,
        use: GrantUse,
        cache: Cache,
        src_blocks: BlockArgument,
        src_layers: range | None,
        dst_layers: range | None,
        tensors_per_layer: int,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
        after: Mark | None = None,
    ) -> GrantedJob:
        """Its deadline is the grant's, if that comes first and both are of one clock."""
        grant = use.grant
        check_cache(cache, "src_cache")
        sources = self._copier.BlockList(src_blocks, "src_blocks")
        targets = self._copier.BlockList(granted_blocks(grant, use.at, len(sources)), "granted blocks")
        check_is_blocks(cache, "src_cache", targets)
        check_source_is_known(cache, "src_cache")
        if src_layers is None and dst_layers is None and grant.num_tensors < cache.cache_desc.num_tensors:
            src_layers, dst_layers, tensors_per_layer = grant.layers, grant.layers, grant.tensors_per_layer
        layers = request_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        deadline = self._stamp.deadline(timeout_s)
        if grant.boot_id == self._mover.boot_id:
            deadline = Deadline(min(deadline.at_ns, grant.deadline_ns))
        way = (grant.cluster_id, CacheName("id", grant.cache_id))
        return GrantedJob(
            self._mover, way, cache.cache_id, layers, self._stamp.transfer_id(transfer_id), deadline, False,
            after or self._mover.mark(cache), priority, sources, targets, use,
        )  # fmt: skip

    def pull(
        self,
        key: BlocksCacheKey,
        cache: Cache,
        src_blocks: BlockArgument,
        dst_blocks: BlockArgument,
        src_layers: range | None,
        dst_layers: range | None,
        tensors_per_layer: int,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> BlocksJob:
        check_blocks_key(key, "src_cache_key")
        check_cache(cache, "dst_cache")
        sources = self._copier.BlockList(src_blocks, "src_blocks")
        targets = self._copier.BlockList(dst_blocks, "dst_blocks")
        check_is_blocks(cache, "dst_cache", targets)
        layers = request_pulled_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)
        if not len(sources):
            raise ParamInvalid("src_blocks is empty, a BlocksCacheKey as src_cache_key needs some")
        check_not_own(key.cluster_id, self._mover.cluster_id)
        return self._job(key.way, cache, layers, sources, targets, transfer_id, timeout_s, priority, is_pull=True)

    def mark(self, cache: Cache) -> Mark | None:
        return self._mover.mark(cache)

    def block_nbytes(self, cache: Cache) -> int:
        """As it was made, whatever became of its description since. Raises LLMException (LLM_KV_CACHE_NOT_EXIST)."""
        return self._mover.caches.find(cache.cache_id).info.regions[0].block_nbytes

    def push_layer(
        self, way: WayName, cache: Cache, layers: LayerRequest, blocks: tuple[BlockArgument, BlockArgument]
    ) -> BlocksJob:
        """One layer of transfer_cache_async, its arguments checked already."""
        sources = self._copier.BlockList(blocks[0], "src_block_indices")
        targets = self._copier.BlockList(blocks[1], "dst_block_indices")
        return self._job(way, cache, layers, sources, targets, None, None, Priority.NORMAL, is_pull=False)

    def _job(
        self,
        way: WayName,
        cache: Cache,
        layers: LayerRequest,
        sources: BlockList,
        targets: BlockList,
        transfer_id: str | None,
        timeout_s: float | None,
        priority: Priority,
        *,
        is_pull: bool,
    ) -> BlocksJob:
        return BlocksJob(
            self._mover,
            way,
            cache.cache_id,
            layers,
            self._stamp.transfer_id(transfer_id),
            self._stamp.deadline(timeout_s),
            is_pull,
            self._mover.mark(cache),
            priority,
            sources,
            targets,
        )


def check_blocks_key(key: object, field: str) -> None:
    if key is None:
        raise NoneGiven(f"{field} must be a BlocksCacheKey, got None")
    if not isinstance(key, BlocksCacheKey):
        raise TypeError(f"{field} must be a BlocksCacheKey, got {type(key).__name__}")
    cluster_id, model_id = key.cluster_id, key.model_id
    if not 0 <= cluster_id <= UINT64_MAX:
        raise TypeError(f"{field}.cluster_id must be a uint64, got {cluster_id}")
    if not 0 <= model_id <= UINT64_MAX:
        raise TypeError(f"{field}.model_id must be a uint64, got {model_id}")


def check_cache(cache: object, field: str) -> None:
    if cache is None:
        raise NoneGiven(f"{field} must be a Cache, got None")
    if not isinstance(cache, Cache):
        raise TypeError(f"{field} must be a Cache, got {type(cache).__name__}")


def check_is_blocks(cache: Cache, field: str, targets: BlockList) -> None:
    if not cache.is_blocks_cache:
        raise ParamInvalid(f"{field} {cache.cache_id} is not a blocks cache")
    if not len(targets):
        raise ParamInvalid("dst_blocks is empty")


def check_source_is_known(cache: Cache, field: str) -> None:
    """The source's id is unsigned in LLM-DataDist; a pull finds no cache of that id instead (contract 3.2)."""
    if cache.cache_id < 0:
        raise TypeError(f"{field} has cache_id {cache.cache_id}: it was made by create_cpu_cache")


def check_not_own(cluster_id: int, own: int) -> None:
    if cluster_id == own:
        raise ParamInvalid(f"the key names cluster_id {cluster_id}, this endpoint itself")
