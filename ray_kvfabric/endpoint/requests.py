"""Arguments of push_blocks and pull_blocks to a Job: the checks that need no peer, in the order of contract 12.1."""

from __future__ import annotations

import re
import secrets
from itertools import count

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.jobs import Job, Mover
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import BlockList, Copier
from ray_kvfabric.plan import LayerRequest, request_layers

BlockArgument = tuple[int, ...] | list[int]
_TRANSFER_ID = re.compile(r"[0-9a-f]{32}")
_UINT64_MAX = 2**64 - 1


def check_transfer_id(transfer_id: str) -> str:
    """32 lower-case hexadecimal digits: 128 bits, as the completion record holds them."""
    if not isinstance(transfer_id, str):
        raise TypeError(f"transfer_id must be a str, got {type(transfer_id).__name__}")
    if not _TRANSFER_ID.fullmatch(transfer_id):
        raise ParamInvalid(f"transfer_id must be 32 lower-case hexadecimal digits, got {transfer_id!r}")
    return transfer_id


class Requests:
    """Makes the jobs of one endpoint."""

    def __init__(self, mover: Mover, copier: Copier, timeout_s: float) -> None:
        self._mover = mover
        self._copier = copier
        self._timeout_s = timeout_s
        self._id_prefix = secrets.token_hex(8)
        self._id_numbers = count(1)

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
    ) -> Job:
        _check_pair(key, cache, "dst_cache_key", "src_cache")
        sources = self._copier.BlockList(() if src_blocks is None else src_blocks, "src_blocks")
        targets = self._copier.BlockList(dst_blocks, "dst_blocks")
        layers = _check_request(cache, "src_cache", targets, src_layers, dst_layers, tensors_per_layer)
        return self._job(key, cache, layers, sources, targets, transfer_id, timeout_s)

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
    ) -> Job:
        _check_pair(key, cache, "src_cache_key", "dst_cache")
        sources = self._copier.BlockList(src_blocks, "src_blocks")
        targets = self._copier.BlockList(dst_blocks, "dst_blocks")
        src_layers, dst_layers = _drop_empty(src_layers), _drop_empty(dst_layers)
        layers = _check_request(cache, "dst_cache", targets, src_layers, dst_layers, tensors_per_layer)
        if key.cluster_id == self._mover.cluster_id:
            raise ParamInvalid(f"src_cache_key names cluster_id {key.cluster_id}, this endpoint itself")
        job = self._job(key, cache, layers, sources, targets, transfer_id, timeout_s)
        job.is_pull = True
        return job

    def _job(
        self,
        key: BlocksCacheKey,
        cache: Cache,
        layers: LayerRequest,
        sources: BlockList,
        targets: BlockList,
        transfer_id: str | None,
        timeout_s: float | None,
    ) -> Job:
        return Job(
            self._mover,
            key.cluster_id,
            key.model_id,
            cache.cache_id,
            layers,
            sources,
            targets,
            f"{self._id_prefix}{next(self._id_numbers):016x}"
            if transfer_id is None
            else check_transfer_id(transfer_id),
            Deadline.after(self._timeout_s if timeout_s is None else timeout_s),
        )


def _check_pair(key: object, cache: object, key_field: str, cache_field: str) -> None:
    if not isinstance(key, BlocksCacheKey):
        raise TypeError(f"{key_field} must be a BlocksCacheKey, got {type(key).__name__}")
    cluster_id, model_id = key.cluster_id, key.model_id
    if not 0 <= cluster_id <= _UINT64_MAX:
        raise TypeError(f"{key_field}.cluster_id must be a uint64, got {cluster_id}")
    if not 0 <= model_id <= _UINT64_MAX:
        raise TypeError(f"{key_field}.model_id must be a uint64, got {model_id}")
    if not isinstance(cache, Cache):
        raise TypeError(f"{cache_field} must be a Cache, got {type(cache).__name__}")


def _check_request(
    cache: Cache,
    cache_field: str,
    targets: BlockList,
    src_layers: range | None,
    dst_layers: range | None,
    tensors_per_layer: int,
) -> LayerRequest:
    if not cache.is_blocks_cache:
        raise ParamInvalid(f"{cache_field} {cache.cache_id} is not a blocks cache")
    if not len(targets):
        raise ParamInvalid("dst_blocks is empty")
    if cache.cache_id < 0:
        raise TypeError(f"{cache_field} has cache_id {cache.cache_id}: it was made by create_cpu_cache")
    return request_layers(src_layers, dst_layers, tensors_per_layer, cache.cache_desc.num_tensors)


def _drop_empty(layers: range | None) -> range | None:
    """In a pull an empty range means "not given" (contract 12.3)."""
    return None if isinstance(layers, range) and not layers else layers
