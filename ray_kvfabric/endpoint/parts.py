"""EndpointParts: what an endpoint is made of, put together. It says nothing to anybody yet.

caches    `endpoint/caches.py`     what this endpoint holds
links     `endpoint/links.py`      how it reaches the others
gate      `endpoint/gate.py`       which transfers may move
transfers `endpoint/transfers.py`  those that were started and can be asked for
grants    `endpoint/grants.py`     what it lets others write
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.cache.types import LLMRole, Placement
from ray_kvfabric.config import EndpointSettings, PoolSettings, endpoint_settings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.caches import CacheTable, Pools
from ray_kvfabric.endpoint.carrier import Carrier
from ray_kvfabric.endpoint.gate import Gate, Log
from ray_kvfabric.endpoint.grant_watch import GrantWatch
from ray_kvfabric.endpoint.grants import GrantTable
from ray_kvfabric.endpoint.identity import Identity, allow_tracer
from ray_kvfabric.endpoint.jobs import Job
from ray_kvfabric.endpoint.links import LinkTable
from ray_kvfabric.endpoint.local_copier import LocalCopier
from ray_kvfabric.endpoint.mover import Mover
from ray_kvfabric.endpoint.reception import Reception
from ray_kvfabric.endpoint.requests import Requests, Stamp
from ray_kvfabric.endpoint.row_requests import RowRequests
from ray_kvfabric.endpoint.transfers import GiveUp, Transfer, TransferTable
from ray_kvfabric.endpoint.watch import Watch
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import load
from ray_kvfabric.memory.device import Devices
from ray_kvfabric.memory.device_pool import DevicePool
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.memory.staging import Staging
from ray_kvfabric.ports import Directory, PeerCalls
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.telemetry import Counters
from ray_kvfabric.transport.base import Answerer, LocalEnd, Serving, Transport
from ray_kvfabric.transport.delegation import CARRY_OUT
from ray_kvfabric.transport.process_vm import ADMIT_WRITER
from ray_kvfabric.transport.questions import FAIL_GRANT
from ray_kvfabric.transport.receipts import ReceiptReader
from ray_kvfabric.transport.registry import usable

NOTE_PULL = "note_pull"  # tells the owner of a row that tensors of it were pulled


class EndpointParts(ABC):
    """Threads may share it; a forked child must make its own."""

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
        device_index: int | None = None,
        wrap_transport: Callable[[Transport], Transport] | None = None,
        gate_log: Log | None = None,
    ) -> None:
        check_int(cluster_id, "uint64", "cluster_id")
        self.settings = settings or endpoint_settings()
        self.counters = Counters()
        self._directory = directory
        self._peers = peers
        self._shown: dict[str, Callable[[], object]] = {}  # what whoever embeds this endpoint has to say in its status
        self._answerers: dict[str, Answerer] = {ADMIT_WRITER: self._admit_writer, NOTE_PULL: self._note_pull_here}
        self._copier = load(self.settings.copy_kernel)
        if self.settings.copy_threads is not None:
            self._copier.set_copy_threads(self.settings.copy_threads)
        transports = usable(self.settings.transports)
        if wrap_transport is not None:
            transports = tuple(map(wrap_transport, transports))
        names = tuple(each.name for each in transports)
        has_device_pool = self.settings.device_pool is not None
        self._devices = Devices(self.settings.device, device_index)
        self._pools: Pools = {
            Placement.HOST: _host_pool("mem_pool", self.settings.mem_pool),
            Placement.DEVICE: self._make_device_pool(),
        }
        staging = self._staging = Staging(self._pools[Placement.DEVICE], self.settings.staging_size)
        self._identity = Identity(
            cluster_id, role, node, names, has_device_pool=has_device_pool, staging_nbytes=staging.buffer_nbytes
        )
        emulates_device = self._emulates_device
        self._caches = CacheTable(
            self._pools, self._identity.page, self._copier, self._devices, emulates_device=emulates_device
        )
        local = LocalEnd(self.endpoint, self._copier, self._devices, staging, self.settings.hccl_buffer_size >> 20)
        self._links = LinkTable(local, transports, directory, peers, self.counters)
        self._gate = Gate(self.settings.admission, self._copier.WayWord, gate_log)
        self._mover = mover = Mover(
            cluster_id, self.settings.transfer_mode, has_device_pool, self._caches, self._links, self.counters,
            self._copier, self._devices, self._tell_owner, self._gate, self.endpoint.host.boot_id,
        )  # fmt: skip
        self._grants = GrantTable(
            self._identity.page, self._copier, self.settings.grants, self.settings.control_timeout_s,
            self._caches.table_of,
        )  # fmt: skip
        self._grant_watch = GrantWatch(self._grants, self._identity.page)
        self._watch = Watch(self._look_after, self.settings.grants.watch_s)
        self._links.on_link = self._watch.begin
        self._local_copier = LocalCopier(self._copier, self._devices)
        stamp = Stamp(self.settings.sync_kv_timeout_ms / 1000)
        self._requests = Requests(mover, stamp)
        self._rows = RowRequests(mover, stamp)
        self._transfers = TransferTable(self._gate, self.settings.result_ttl_s)
        self._receipts = ReceiptReader(self._identity.page, cluster_id)
        reception = Reception(self._identity, self._grants, self._caches.visit)
        serving = Serving(local, self._caches.visit, reception.receive, self._receipts.keep, peers)
        for transport in transports:
            self._answerers |= transport.serve(serving)
        self._answerers[CARRY_OUT] = Carrier(serving, self._links).carry_out
        self._answerers[FAIL_GRANT] = reception.fail_grant
        self._telling = threading.RLock()
        self._is_closed = False
        if tracer_pid is not None:
            allow_tracer(tracer_pid)
        self._begin()

    def _make_device_pool(self) -> HostPool | DevicePool:
        settings = self.settings.device_pool
        if self._emulates_device or settings is None:
            return _host_pool("device_pool", settings)
        return DevicePool("device_pool", settings.memory_size, self._devices, page_shift=settings.page_shift)

    @property
    def endpoint(self) -> EndpointInfo:
        """What the others know of this endpoint."""
        return self._identity.endpoint

    @property
    def _emulates_device(self) -> bool:
        return self.settings.emulated_device == "host"

    def _start(self, job: Job, give_up: GiveUp | None = None) -> Transfer:
        """Lets it move without the caller; its transfer_id names it. Raises QueueFull.

        `give_up` is called with what ended it before its time: TransferTimeout, TransferCancelled.
        """
        stop = self._copier.StopWord()
        return self._transfers.start(job.transfer_id, job.move, stop, job.turn(stop), give_up)

    def _control_deadline(self) -> Deadline:
        return Deadline.after(self.settings.control_timeout_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} is closed")

    # ---- what the parts ask of the whole -------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """All parts are there: the others may know. Raises ClusterIdTaken."""

    @abstractmethod
    def _admit_writer(self, arguments: dict[str, Any]) -> bool:
        """A peer wants to write by process_vm."""

    @abstractmethod
    def _note_pull_here(self, arguments: dict[str, Any]) -> bool:
        """A peer has pulled tensors of a row of this endpoint."""

    @abstractmethod
    def _tell_owner(self, owner: EndpointInfo, cache_id: int, row: int, tensors: range) -> None:
        """Tensors of a row of a peer were pulled."""

    @abstractmethod
    def _look_after(self) -> None:
        """What the watch does now and then."""


def _host_pool(name: str, settings: PoolSettings | None) -> HostPool:
    if settings is None:
        return HostPool(name, None, huge_pages=False)
    huge_pages = settings.huge_pages == "auto"
    return HostPool(name, settings.memory_size, huge_pages=huge_pages, page_shift=settings.page_shift)
