"""EndpointCore: what all verbs of one endpoint stand on. It announces the endpoint, answers peers, and ends it.

caches    `endpoint/caches.py`     what this endpoint holds
links     `endpoint/links.py`      how it reaches the others
transfers `endpoint/transfers.py`  those that were started and can be asked for
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import Any

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.cache.types import LLMRole, Placement
from ray_kvfabric.config import EndpointSettings, PoolSettings, endpoint_settings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.caches import CacheTable, Pools
from ray_kvfabric.endpoint.carrier import Carrier
from ray_kvfabric.endpoint.identity import ANY_TRACER, Identity, allow_tracer
from ray_kvfabric.endpoint.links import Admit, LinkTable, as_named
from ray_kvfabric.endpoint.local_copier import LocalCopier
from ray_kvfabric.endpoint.mover import Mover, tell_nobody
from ray_kvfabric.endpoint.requests import Requests, Stamp
from ray_kvfabric.endpoint.row_requests import RowRequests
from ray_kvfabric.endpoint.status import describe_endpoint
from ray_kvfabric.endpoint.transfers import TransferTable
from ray_kvfabric.errors import FabricError, NotLinked, ParamInvalid
from ray_kvfabric.memory.copy import load
from ray_kvfabric.memory.device import Devices
from ray_kvfabric.memory.device_pool import DevicePool
from ray_kvfabric.memory.host_pool import HostPool
from ray_kvfabric.memory.staging import Staging
from ray_kvfabric.ports import Directory, PeerCalls
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.telemetry import Counters
from ray_kvfabric.transport.base import Answerer, LocalEnd, Serving
from ray_kvfabric.transport.delegation import CARRY_OUT
from ray_kvfabric.transport.process_vm import ADMIT_WRITER
from ray_kvfabric.transport.receipts import ReceiptReader
from ray_kvfabric.transport.registry import usable

logger = logging.getLogger(__name__)

NOTE_PULL = "note_pull"  # tells the owner of a row that tensors of it were pulled


class EndpointCore(ABC):
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
    ) -> None:
        check_int(cluster_id, "uint64", "cluster_id")
        self.settings = settings or endpoint_settings()
        self.counters = Counters()
        self._directory = directory
        self._peers = peers
        self._answerers: dict[str, Answerer] = {ADMIT_WRITER: self._admit_writer, NOTE_PULL: self._note_pull_here}
        self._copier = load(self.settings.copy_kernel)
        if self.settings.copy_threads is not None:
            self._copier.set_copy_threads(self.settings.copy_threads)
        transports = usable(self.settings.transports)
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
        self._mover = mover = Mover(
            cluster_id, self.settings.transfer_mode, has_device_pool, self._caches, self._links, self.counters,
            self._copier, self._devices, self._tell_owner,
        )  # fmt: skip
        self._local_copier = LocalCopier(self._copier, self._devices)
        stamp = Stamp(self.settings.sync_kv_timeout_ms / 1000)
        self._requests = Requests(mover, stamp)
        self._rows = RowRequests(mover, stamp)
        self._transfers = TransferTable(self.settings.transfer_threads, self.settings.result_ttl_s)
        self._receipts = ReceiptReader(self._identity.page, cluster_id)
        serving = Serving(local, self._caches.visit, self._receipts.keep, peers)
        for transport in transports:
            self._answerers |= transport.serve(serving)
        self._answerers[CARRY_OUT] = Carrier(serving, self._links).carry_out
        self._telling = threading.RLock()
        self._is_closed = False
        if tracer_pid is not None:
            allow_tracer(tracer_pid)
        self._announce_first()

    def _make_device_pool(self) -> HostPool | DevicePool:
        settings = self.settings.device_pool
        if self._emulates_device or settings is None:
            return _host_pool("device_pool", settings)
        return DevicePool("device_pool", settings.memory_size, self._devices, page_shift=settings.page_shift)

    def _announce_first(self) -> None:
        """Who was refused, or does not know whether it was taken, leaves nothing behind."""
        try:
            self._directory.announce(self.endpoint, self._control_deadline())
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self.close()
            raise

    @property
    def endpoint(self) -> EndpointInfo:
        """What the others know of this endpoint."""
        return self._identity.endpoint

    @property
    def _emulates_device(self) -> bool:
        return self.settings.emulated_device == "host"

    def _control_deadline(self) -> Deadline:
        return Deadline.after(self.settings.control_timeout_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} is closed")

    # ---- the fabric --------------------------------------------------------------------------------

    def listen(self, alias: str) -> None:
        """Lets others find this endpoint under "ip:port" also; "" ends that. No socket is opened.

        Raises AliasTaken when another live endpoint has the alias; then the old one stays.
        """
        self._check_open()
        before = self._identity.endpoint
        self._identity.rename(alias)
        try:
            self._directory.announce(self.endpoint, self._control_deadline())
        except BaseException:
            self._identity.rename(before.alias)
            raise

    def drop_dead_links(self) -> None:
        """Lets go of the memory of peers that died or freed it; who keeps an endpoint in the fabric calls it often."""
        self._links.sweep()
        self._links.tidy()

    def forget_ways(self, cluster_id: int) -> None:
        """The next transfer to this endpoint asks the directory again; what is under way goes on."""
        self._links.forget_cluster(cluster_id)

    def gate_links(self, admit: Admit) -> None:
        """`admit(cluster_id)` decides whom keys may reach and raises NotLinked else; by default everybody.

        It is asked when a way is opened: `forget_ways` makes a later refusal count.
        """
        self._links.gate(admit)

    def find_endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        """Who carries `cluster_id`. Raises NotLinked, TransferTimeout."""
        return self._directory.endpoint(cluster_id, deadline)

    def find_alias(self, alias: str, deadline: Deadline) -> EndpointInfo:
        """Who listens under "ip:port". Raises NotLinked, TransferTimeout."""
        return self._directory.endpoint_at(alias, deadline)

    # ---- questions of peers ------------------------------------------------------------------------

    def answers(self, question: str, answerer: Answerer) -> None:
        """Lets whoever embeds this endpoint answer a question of its own. Answers must be idempotent."""
        self._answerers[question] = answerer

    def answer(self, question: str, arguments: dict[str, Any]) -> object:
        """What a peer's `PeerCalls.ask` comes to."""
        if question not in self._answerers:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} does not know the question {question!r}")
        return self._answerers[question](arguments)

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """The answer of another endpoint, or of this one. Raises what it raises, PeerLost, TransferTimeout."""
        if peer.incarnation == self.endpoint.incarnation:
            return self.answer(question, arguments)
        if self._peers is None:
            raise NotLinked(f"endpoint {self.endpoint.cluster_id} has no control connection to ask {peer}")
        return self._peers.ask(peer, question, arguments, deadline)

    def _admit_writer(self, arguments: dict[str, Any]) -> bool:
        self.counters.warn_once(
            "admitted_any_tracer",
            f"process {arguments['pid']} may not trace this process yet: every process of this user is now allowed to",
        )
        allow_tracer(ANY_TRACER)
        return True

    def _tell_owner(self, owner: EndpointInfo, cache_id: int, row: int, tensors: range) -> None:
        """The bytes have landed already: an owner that cannot be told keeps its key, and the log says so."""
        arguments = {"cache_id": cache_id, "row": row, "first": tensors.start, "stop": tensors.stop}
        try:
            self.ask(owner, NOTE_PULL, arguments, self._control_deadline())
        except FabricError as error:
            self.counters.add("pulls_not_told")
            logger.warning("%s was not told that row %d of its cache %d was pulled: %s", owner, row, cache_id, error)

    @abstractmethod
    def _note_pull_here(self, arguments: dict[str, Any]) -> bool:
        """A peer has pulled tensors of a row of this endpoint."""

    # ---- the end -----------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Endpoint, caches, links, transfers, memory and counters, ready for JSON."""
        infos = [entry.info for entry in self._caches.all()]
        return describe_endpoint(self.endpoint, infos, self._links, self._transfers, self._pools, self._devices)

    def close(self) -> None:
        """Leaves the fabric: transfers are stopped, links closed, caches fenced off and freed. Idempotent.

        Every step is taken, whatever became of those before it; then the last error is raised, those before it in
        its context: TransferTimeout when a live peer does not leave a cache, or another thread does not come back from
        opening a link.
        """
        if self._is_closed:
            return
        self._is_closed = True
        with ExitStack() as steps:  # the last one first
            steps.callback(self._cut_cycles)
            steps.callback(self._identity.close)
            steps.callback(self._devices.close)
            steps.callback(self._links.close_transports)
            for pool in self._pools.values():
                steps.callback(pool.close)
            steps.callback(self._staging.close)
            for entry in self._caches.all():
                steps.callback(entry.end_cache)
                steps.callback(self._caches.remove, entry.info.cache_id, self._control_deadline())
            steps.callback(self._links.close, self._control_deadline())
            steps.callback(self._directory.leave, self.endpoint, self._control_deadline())
            steps.callback(self._transfers.close)

    def _cut_cycles(self) -> None:
        """What refers back to this object would keep its memory mapped until the garbage collector comes."""
        self._answerers.clear()
        self._mover.note_pull = tell_nobody
        self._links.gate(as_named)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<CacheManager {self.endpoint.cluster_id} {state}: {len(self._caches.all())} caches, "
            f"{len(self._links.links())} links>"
        )


def _host_pool(name: str, settings: PoolSettings | None) -> HostPool:
    if settings is None:
        return HostPool(name, None, huge_pages=False)
    huge_pages = settings.huge_pages == "auto"
    return HostPool(name, settings.memory_size, huge_pages=huge_pages, page_shift=settings.page_shift)
