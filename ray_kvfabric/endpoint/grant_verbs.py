"""The verbs of grants: a receiver gives one, writers push under it, and whatever goes wrong reaches the other side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ray_kvfabric.cache.checks import check_layer_range, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.endpoint.grant_rules import check_incarnation, check_ttl, check_wanted, writer_index
from ray_kvfabric.endpoint.granted_job import GrantedJob
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.endpoint.requests import BlockArgument, check_cache
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.errors import FeatureNotEnabled, LLMStatusCode, ParamInvalid
from ray_kvfabric.grant import Grant, GrantUse
from ray_kvfabric.memory.device import Mark
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.route import CacheInfo, Receipt


class GrantPlace(NamedTuple):
    """Where in a grant a push begins, whether it is the writer's last, and which writer it is."""

    at: int
    seals: bool
    writer: int | None


class GrantVerbs(EndpointCore):
    """The receiver's `grant_blocks` and what its IssuedGrant does; the writers' `push_granted` and `fail_granted`."""

    # ---- the receiver ------------------------------------------------------------------------------

    def grant_blocks(
        self,
        cache: Cache,
        blocks: BlockArgument,
        *,
        request_id: str = "",
        ttl_s: float | None = None,
        writers: int = 1,
        sources: Sequence[int] = (),
        layers: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        verify: str | None = None,
    ) -> IssuedGrant:
        """Lets a writer fill `blocks` of a blocks cache of this endpoint for `ttl_s` (None: the setting).

        The result pickles as the Grant that a writer needs; give it to whoever shall write. `writers` say how many
        endpoints share the work, `sources` which (cluster_ids, writer i being sources[i]): the death of one that is
        named is noticed before it came. `layers` None means all. `verify="crc32c"`: the digest of each block as it
        was read at the source is compared with what lies here before `wait` returns; for HOST caches.
        Raises TypeError, ParamInvalid (also for a block that another grant has), CreditExhausted, EndpointDraining.
        """
        self._check_open()
        check_cache(cache, "cache")
        entry = self._caches.find_mapped(cache.cache_id)
        info = entry.info
        if not info.is_blocks:
            raise ParamInvalid(f"cache {info.cache_id} is a continuous cache, it has no blocks")
        check_wanted(blocks, writers, sources, verify, info.regions[0].num_blocks)
        if verify is not None and info.memory != "host":
            raise FeatureNotEnabled(f"verify={verify!r}: cache {info.cache_id} lies in device memory")
        check_ttl(ttl_s)
        if sources and writers not in (1, len(sources)):
            raise ParamInvalid(f"writers is {writers}, sources names {len(sources)} endpoints")
        first, count, per_layer = _granted_tensors(info, layers, tensor_num_per_layer)
        wanted = Grant(
            grant_id="",
            request_id=check_type(request_id, str, "request_id"),
            cluster_id=self.endpoint.cluster_id,
            incarnation=self.endpoint.incarnation,
            boot_id="",
            cache_id=info.cache_id,
            generation=info.generation,
            blocks=tuple(blocks),
            first_tensor=first,
            num_tensors=count,
            tensors_per_layer=per_layer,
            writers=len(sources) or writers,
            sources=tuple(sources),
            verify=verify,
            deadline_ns=0,
            slot=0,
            fence=0,
            board=0,
            secret=b"",
        )
        nbytes = len(blocks) * sum(region.block_nbytes for region in info.regions[first : first + count])
        issued = self._grants.issue(self.endpoint, wanted, nbytes, ttl_s)
        if not self._caches.holds(entry):  # freed meanwhile: who did it may not have seen this grant
            issued.revoke()
            self._caches.find(cache.cache_id)
        self._watch.begin()
        return issued

    def issued(self, grant_id: str) -> IssuedGrant:
        """A grant that this endpoint gave, also one that has ended. Raises TransferUnknown."""
        return self._grants.find(grant_id)

    # ---- writers -----------------------------------------------------------------------------------

    def push_granted(
        self,
        grant: Grant,
        src_cache: Cache,
        src_blocks: BlockArgument,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        at: int = 0,
        seal: bool = True,
        writer: int | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
        after: Mark | None = None,
    ) -> Receipt:
        """Writes block `src_blocks[i]` into the granted block at position `at + i`; returns when the bytes are there.

        `seal` says that it is this writer's last push under the grant: the receiver's `wait` returns when every writer
        has sealed. Pushes before it, layer by layer or chunk by chunk, take `seal=False`. `writer` is this endpoint's
        index where the grant has several writers and names none. A push that fails after it was let in fails the
        writer for good, and the receiver is told at once. `after` is what `mark` gave to the thread that computed the
        blocks; None: what the calling thread has enqueued.
        Raises as `push_blocks`, and before a byte moves GrantForged, GrantExpired, GrantReplayed, GrantRevoked (it was
        taken back or has landed; also while moving), StaleIncarnation, QueueFull.
        """
        layers = src_layer_range, dst_layer_range, tensor_num_per_layer
        return self._granted_job(
            grant, src_cache, src_blocks, layers, GrantPlace(at, seal, writer), None, timeout_s, priority, after
        ).run()

    def start_push_granted(
        self,
        grant: Grant,
        src_cache: Cache,
        src_blocks: BlockArgument,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        at: int = 0,
        seal: bool = True,
        writer: int | None = None,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Transfer:
        """`push_granted` without the wait. Wrong arguments and a full queue raise here, everything else from it."""
        layers = src_layer_range, dst_layer_range, tensor_num_per_layer
        job = self._granted_job(
            grant, src_cache, src_blocks, layers, GrantPlace(at, seal, writer), transfer_id, timeout_s, priority
        )
        return self._start(job, job.give_up)

    def _granted_job(
        self,
        grant: Grant,
        src_cache: Cache,
        src_blocks: BlockArgument,
        layers: tuple[range | None, range | None, int],
        place: GrantPlace,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
        after: Mark | None = None,
    ) -> GrantedJob:
        self._check_open()
        grant = as_grant(grant)
        use = GrantUse(grant, writer_index(grant, place.writer, self.endpoint.cluster_id), place.at, place.seals)
        return self._requests.push_granted(use, src_cache, src_blocks, *layers, transfer_id, timeout_s, priority, after)

    def open_granted(self, grant: Grant, timeout_s: float | None = None) -> None:
        """Opens what the first push under this grant would open: a question to the directory, a mapping.

        Raises NotLinked, PeerLost, LinkFailed, StaleIncarnation, TransferTimeout.
        """
        self._check_open()
        grant = as_grant(grant)
        deadline = self._control_deadline() if timeout_s is None else Deadline.after(timeout_s)
        way = self._links.any_way((grant.cluster_id, CacheName("id", grant.cache_id)), deadline)
        check_incarnation(grant, way.route.endpoint)

    def mark(self, cache: Cache) -> Mark | None:
        """What the calling thread's current stream still has to do, for a push of `cache` that another thread makes.

        None for HOST caches, and where nothing is left to do.
        """
        return self._requests.mark(cache)

    def fail_granted(
        self, grant: Grant, reason: str, *, writer: int | None = None, timeout_s: float | None = None
    ) -> None:
        """Tells the receiver that this writer will not bring the rest: its `wait` raises GrantFailed at once.

        No error for a grant that has ended already. Raises PeerLost, StaleIncarnation, TransferTimeout.
        """
        self._check_open()
        grant = as_grant(grant)
        use = GrantUse(grant, writer_index(grant, writer, self.endpoint.cluster_id), 0, False)
        deadline = self._control_deadline() if timeout_s is None else Deadline.after(timeout_s)
        way = self._links.any_way((grant.cluster_id, CacheName("id", grant.cache_id)), deadline)
        check_incarnation(grant, way.route.endpoint)
        way.link.fail_grant(use, int(LLMStatusCode.LLM_FAILED), reason, deadline)


def as_grant(grant: object) -> Grant:
    """Also of an IssuedGrant, for writers in the receiver's own process."""
    if type(grant) is Grant:
        return grant
    if isinstance(grant, IssuedGrant):
        return grant.grant
    return check_type(grant, Grant, "grant")


def _granted_tensors(info: CacheInfo, layers: range | None, per_layer: int) -> tuple[int, int, int]:
    """First tensor, how many, and how many a layer has. Raises ParamInvalid."""
    tensors = len(info.regions)
    if layers is None:
        return 0, tensors, min(max(per_layer, 1), tensors)
    layers = check_layer_range(layers, "layers")
    if per_layer < 1 or tensors % per_layer:
        raise ParamInvalid(f"tensor_num_per_layer {per_layer} does not divide the {tensors} tensors of the cache")
    if layers.stop > tensors // per_layer:
        raise ParamInvalid(f"layers {layers!r} end beyond the {tensors // per_layer} layers of cache {info.cache_id}")
    return layers.start * per_layer, len(layers) * per_layer, per_layer
