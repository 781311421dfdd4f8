"""Fabric: the front door for drivers, jobs and notebooks.

with Fabric.start(config) as fabric:
    source = fabric.allocate_blocks_cache(0, desc, BlocksCacheKey(0))
    fabric.push_blocks(BlocksCacheKey(1), source, [0, 1], [4, 5])
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_kvfabric.actors.clients import SchedulerClient
from ray_kvfabric.actors.edge import peer_errors, repeated, require_ray
from ray_kvfabric.actors.endpoint import Seat, open_endpoint
from ray_kvfabric.actors.granting import Granting
from ray_kvfabric.actors.launch import (
    Started,
    end_fabric,
    find_worker,
    retire,
    scheduler_exists,
    start_scheduler,
    start_workers,
)
from ray_kvfabric.actors.names import checked, placement_name
from ray_kvfabric.actors.placement import reserve
from ray_kvfabric.actors.shown import EndpointView, members_table
from ray_kvfabric.actors.transfer import FabricTransfer, PushOrder
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import NAMESPACE, EndpointSettings, FabricConfig, WorkerGroup, endpoint_settings
from ray_kvfabric.control.directory import Member
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, FabricError, NotLinked
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.route import CacheInfo, CacheRef, Receipt

START_S = 90.0
END_S = 20.0


class Fabric(Granting):
    """One fabric of a Ray cluster, by name. What this object started ends with it, unless it is detached."""

    def __init__(self, config: FabricConfig, *, timeout_s: float = 20.0) -> None:
        self.config = config
        self.name = checked(config.name)
        self.timeout_s = timeout_s
        self.lifetime: str = config.lifetime
        self._client = SchedulerClient(self.name)
        self._started: list[Started] = []
        self._joined: list[CacheManager] = []
        self._reserved: list[PlacementGroup] = []

    @classmethod
    def connect(
        cls, name: str = "default", *, config: FabricConfig | None = None, address: str | None = None
    ) -> Fabric:
        """The fabric of this name; started, without workers, if none runs. Initialises Ray if needed."""
        fabric = cls(config or FabricConfig(name=name))
        _ensure_ray(address)
        fabric._meet_scheduler()
        return fabric

    @classmethod
    def start(cls, config: FabricConfig, *, address: str | None = None) -> Fabric:
        """A new fabric with the workers of `config`. Raises ConfigError when one of this name runs."""
        fabric = cls(config)
        _ensure_ray(address)
        if scheduler_exists(fabric.name):
            raise ConfigError(f"a fabric {fabric.name!r} runs already; use Fabric.connect({fabric.name!r})")
        try:
            fabric._meet_scheduler()
            if config.groups:
                fabric.add_workers(*config.groups, placement=config.placement)
        except BaseException:
            fabric._end_started()
            raise
        return fabric

    def _meet_scheduler(self) -> None:
        scheduler, self.lifetime = start_scheduler(
            self.name, self.config.scheduler, self.config.lifetime, Deadline.after(START_S)
        )
        if scheduler is not None:
            self._started.append(Started(scheduler))

    # ---- endpoints ---------------------------------------------------------------------------------

    def add_workers(
        self,
        *groups: WorkerGroup | int,
        worker_class: type[CacheWorker] = CacheWorker,
        placement: str = "any",
        max_restarts: int = 0,
        num_cpus: float = 0,
        settings: EndpointSettings | None = None,
        timeout_s: float = START_S,
        **arguments: Any,
    ) -> list[ActorHandle[Any]]:
        """Starts workers: groups, or cluster_ids with `num_cpus` and `settings`; `arguments` go to the class.

        Raises ClusterIdTaken, ConfigError, and LLMException (LLM_TIMEOUT) where the cluster has no room.
        """
        wanted = tuple(
            each
            if isinstance(each, WorkerGroup)
            else WorkerGroup(
                name=f"worker-{each}",
                first_cluster_id=each,
                num_cpus=num_cpus,
                endpoint=settings or endpoint_settings(),
            )
            for each in groups
        )
        started = start_workers(
            self.name,
            wanted,
            placement=placement,
            lifetime=self.lifetime,
            deadline=Deadline.after(timeout_s),
            worker_class=worker_class,
            max_restarts=max_restarts,
            arguments=arguments,
        )
        self._started.append(started)
        return list(started.workers.values())

    def reserve(
        self, *bundles: Mapping[str, float], placement: str = "pack", timeout_s: float = START_S
    ) -> list[PlacementGroupSchedulingStrategy]:
        """Room for actors of any class, an engine's for instance: `{"NPU": 1}` each, on one node or `spread`.

        The i-th is the `scheduling_strategy` of the i-th actor, which must ask for no more than its bundle. The room is
        given back, and its actors end, with this object; if that is never closed, with the driver or the detached actor
        (a Serve replica is one) that reserved it, and with the job of any other. Raises ConfigError, and LLMException
        (LLM_TIMEOUT) where the cluster has no room.
        """
        name = placement_name(self.name, uuid.uuid4().hex)
        reserved = reserve(name, bundles, placement, Deadline.after(timeout_s))
        self._reserved.append(reserved.group)
        return reserved.places

    @property
    def workers(self) -> dict[int, ActorHandle[Any]]:
        """The actors of the fabric's endpoints by cluster_id, whoever started them."""
        with_actor = [member for member in self.members() if member.actor_id is not None]
        return {member.endpoint.cluster_id: self.worker(member.endpoint.cluster_id) for member in with_actor}

    def worker(self, cluster_id: int) -> ActorHandle[Any]:
        """The actor of one endpoint. Raises NotLinked when there is none."""
        return find_worker(self.name, cluster_id)

    def join(
        self,
        cluster_id: int,
        *,
        settings: EndpointSettings | None = None,
        role: str = "MIX",
        tracer_pid: int | None = None,
    ) -> CacheManager:
        """Makes this process an endpoint: a driver, a model server's subprocess, an actor of any class.

        Its manager leaves the fabric when it is closed, or with this object. Pushes that others launch here
        come by a long poll; subclass CacheWorker to take them as actor calls. Raises ClusterIdTaken.
        A detached fabric that was retired since this object met it is started again.
        """
        seat = Seat(self.name, cluster_id, settings or endpoint_settings(), role)
        manager = self._take(seat, tracer_pid, Deadline.after(START_S))
        self._joined.append(manager)
        return manager

    def _take(self, seat: Seat, tracer_pid: int | None, deadline: Deadline) -> CacheManager:
        """Opens the endpoint; a scheduler that just ended refuses it with NotLinked, and another is started."""
        while True:
            require_ray()
            try:
                return open_endpoint(seat, tracer_pid=tracer_pid)
            except NotLinked:
                if self.lifetime != "detached" or deadline.passed:
                    raise
            self._meet_scheduler()

    # ---- caches ------------------------------------------------------------------------------------

    def allocate_blocks_cache(
        self, cluster_id: int, cache_desc: CacheDesc, key: BlocksCacheKey | None = None, *, grants_only: bool = False
    ) -> CacheRef:
        """`CacheManager.allocate_blocks_cache` on a worker."""
        ref: CacheRef = self._on_worker(cluster_id, "allocate_blocks_cache", cache_desc, key, grants_only=grants_only)
        return ref

    def deallocate_blocks_cache(self, cache: CacheRef) -> None:
        """Raises StaleIncarnation for a handle of an incarnation that was replaced."""
        self._on_worker(cache.cluster_id, "deallocate_blocks_cache", cache.cache_id, incarnation=cache.incarnation)

    def _on_worker(self, cluster_id: int, method: str, *arguments: object, **named: object) -> Any:
        """Takes effect once, however often the call or its answer is lost until the deadline."""
        call_id = uuid.uuid4().hex
        with peer_errors(f"worker {cluster_id} of fabric {self.name!r}"):
            return repeated(
                lambda: getattr(self.worker(cluster_id), method).remote(*arguments, **named, call_id=call_id),
                self._deadline(),
                f"{method} of worker {cluster_id}",
            )

    def caches(self) -> dict[CacheRef, CacheInfo]:
        """Every cache that endpoints have published."""
        return {
            CacheRef(member.endpoint.cluster_id, cache_id, member.endpoint.incarnation): cache
            for member in self.members()
            for cache_id, cache in member.caches.items()
        }

    # ---- transfers ---------------------------------------------------------------------------------

    def push_blocks(
        self,
        dst_cache_key: BlocksCacheKey,
        src: CacheRef,
        src_blocks: tuple[int, ...] | list[int],
        dst_blocks: tuple[int, ...] | list[int],
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Pushes blocks of one endpoint's cache into another's; returns when they are there.

        `timeout_s` bounds the transfer, else the source's sync_kv_timeout_ms. Raises what the source's
        CacheManager.push_blocks raises, and StaleIncarnation for a `src` whose endpoint was replaced.
        """
        return self.start_push(
            dst_cache_key, src, src_blocks, dst_blocks,
            src_layer_range, dst_layer_range, tensor_num_per_layer, timeout_s=timeout_s,
        ).result()  # fmt: skip

    def start_push(
        self,
        dst_cache_key: BlocksCacheKey,
        src: CacheRef,
        src_blocks: tuple[int, ...] | list[int],
        dst_blocks: tuple[int, ...] | list[int],
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
    ) -> FabricTransfer:
        """`push_blocks` without the wait. `transfer_id`: 32 hexadecimal digits; the same is the same push."""
        check_type(dst_cache_key, BlocksCacheKey, "dst_cache_key")
        check_type(src, CacheRef, "src")
        transfer_id = transfer_id or uuid.uuid4().hex
        arguments: dict[str, object] = {
            "transfer_id": transfer_id,
            "cache_id": src.cache_id,
            "dst_cache_key": dst_cache_key,
            "src_blocks": src_blocks,
            "dst_blocks": dst_blocks,
            "src_layer_range": src_layer_range,
            "dst_layer_range": dst_layer_range,
            "tensor_num_per_layer": tensor_num_per_layer,
            "timeout_s": timeout_s,
            "incarnation": src.incarnation,
        }
        errand = Errand(transfer_id, "push_blocks", arguments)
        return FabricTransfer(
            self._client,
            PushOrder(src.cluster_id, errand, dst_cache_key, src.incarnation),
            self.timeout_s + (timeout_s or 0.0),
        )

    # ---- looking in, and the end -------------------------------------------------------------------

    def members(self) -> list[Member]:
        """The endpoints that the scheduler knows, with their caches, by cluster_id."""
        members: list[Member] = self._client.call("members", deadline=self._deadline())
        return members

    def look(self, cluster_id: int) -> EndpointView:
        """One endpoint, whoever started it, as it is now; a notebook shows it as tables. Raises NotLinked."""
        return EndpointView(self._at(cluster_id, "status"))

    def status(self) -> dict[str, object]:
        """Plain data: the scheduler's own, and each endpoint's, or why it did not answer."""
        scheduler = self._client.call("status", deadline=self._deadline())
        endpoints = {member.endpoint.cluster_id: self._status_of(member) for member in self.members()}
        return {"fabric": self.name, "scheduler": scheduler, "endpoints": endpoints}

    def _status_of(self, member: Member) -> dict[str, object]:
        endpoint = member.endpoint
        try:
            with peer_errors(str(endpoint)):
                status: dict[str, object] = self._client.errand(
                    endpoint.cluster_id, "status", self._deadline(), endpoint.incarnation
                )
        except FabricError as error:
            return {"error": str(error)}
        return status

    def _deadline(self) -> Deadline:
        return Deadline.after(self.timeout_s)

    def retire(self) -> bool:
        """Ends this fabric if no endpoint is left, whoever started it; then True, and its name is free.

        False when endpoints remain, or no scheduler. Who joins at the same moment is either one that remains, or
        starts the fabric anew. For detached fabrics that shall end with their last member.
        """
        is_ended = retire(self.name, self._deadline())
        if is_ended:
            self._started.clear()
        return is_ended

    def close(self) -> None:
        """Leaves with the endpoints that were joined here; ends what was started here, unless detached."""
        for manager in self._joined:
            manager.close()
        self._joined.clear()
        while self._reserved and ray.is_initialized():
            remove_placement_group(self._reserved.pop())
        if self.lifetime != "detached":
            self._end_started()

    def _end_started(self) -> None:
        while self._started and ray.is_initialized():
            self._started.pop().end(Deadline.after(END_S))

    def __enter__(self) -> Fabric:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            return f"<{self._described(self.members())}>"
        except FabricError as error:
            return f"<Fabric {self.name!r} {self.lifetime}: {error}>"

    def _repr_html_(self) -> str | None:
        """None where there is nothing to show: the notebook then takes `repr`, which says why."""
        try:
            members = self.members()
        except FabricError:
            return None
        return members_table(self._described(members), members)

    def _described(self, members: list[Member]) -> str:
        nbytes = sum(cache.nbytes for member in members for cache in member.caches.values())
        caches = sum(len(member.caches) for member in members)
        return (
            f"Fabric {self.name!r} {self.lifetime}: {len(members)} endpoints, {caches} caches, {nbytes / 2**20:.1f} MiB"
        )


def up(config: FabricConfig, *, address: str | None = None) -> Fabric:
    """Starts the fabric of a configuration so that it stays: detached, whatever `config.lifetime` says."""
    return Fabric.start(config.model_copy(update={"lifetime": "detached"}), address=address)


def down(name: str, *, address: str | None = None) -> int:
    """Ends a fabric, whoever started it. Returns how many actors ended. Raises NotLinked."""
    _ensure_ray(address)
    ended = end_fabric(checked(name), Deadline.after(END_S))
    if not ended:
        raise NotLinked(f"no fabric {name!r} runs in this Ray cluster")
    return ended


def _ensure_ray(address: str | None) -> None:
    if not ray.is_initialized():
        ray.init(address=address, namespace=NAMESPACE, include_dashboard=False, logging_level=logging.WARNING)
