"""HostLink: what all links to a process of the same host share. The three host transports differ in the copy only.

    open     pidfd of the peer, then its shared page through /proc, proven by inode and incarnation; one of the
             page's links is claimed. No Ray call, no socket.
    push     enter the cache's slot (dead peer? stale route?) -> copy -> dead peer? freed? -> record -> leave
A write into a dead peer's memory succeeds silently, hence the look at the pidfd on both sides of the copy.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod

from ray_kvfabric.errors import (
    CacheNotFound,
    LinkFailed,
    LLMException,
    LLMStatusCode,
    PeerLost,
    StaleIncarnation,
    StaleRoute,
    StillMoving,
    TransferCancelled,
    TransferTimeout,
)
from ray_kvfabric.memory.copy import COPY_STOPPED, COPY_TIMED_OUT, RegionTable
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import EndpointInfo, Receipt
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import Link, LocalEnd, Order, RemoteCache
from ray_kvfabric.transport.receipts import transport_number


def same_host_refusal(local: EndpointInfo, peer: EndpointInfo) -> str | None:
    """Why two endpoints cannot share memory, from what they say of themselves."""
    if local.host.boot_id != peer.host.boot_id:
        return f"another host (boot id {peer.host.boot_id}, here {local.host.boot_id})"
    if local.host.pid_namespace != peer.host.pid_namespace:
        return f"another pid namespace ({peer.host.pid_namespace}, here {local.host.pid_namespace})"
    if local.host.uid != peer.host.uid:
        return f"another user (uid {peer.host.uid}, here {local.host.uid})"
    return None


BUSY_NAP_NS = 1_000_000  # a cell that is left just before the sleep rings no bell
CLOSE_PATIENCE_NS = 30 * 10**9


class HostLink(Link):
    """A link whose peer's shared page is mapped here."""

    def __init__(self, local: LocalEnd, peer: EndpointInfo) -> None:
        super().__init__(local, peer)
        self._pidfd = _open_pidfd(peer)
        self._index = -1
        self._is_stuck = False  # a copy did not come to rest: its cell stays while this process lives
        try:
            self._memory = HostMemory.open_peer(peer.pid, peer.page_fd, peer.page_inode, touch=False)
            self._page = shared_page.SharedPage(self._memory.view(self._memory.address, self._memory.nbytes))
            self._check_page()
            self._index = self._page.claim_link(local.endpoint.incarnation, os.getpid())
            if self._index < 0:
                raise LinkFailed(f"{peer} already has {shared_page.LINKS} links, as many as its page holds")
        except BaseException:
            self.close()
            raise

    def _check_page(self) -> None:
        if not self._page.is_valid:
            raise LinkFailed(f"the shared page of {self.peer} has another version than this library's")
        if self._page.incarnation != self.peer.incarnation:
            raise StaleIncarnation(
                f"{self.peer} was replaced: its process now runs incarnation {self._page.incarnation:016x}"
            )

    @abstractmethod
    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order) -> tuple[int, int, int]:
        """Local to peer. (status, nbytes, digest or errno) as the copy kernel gives it."""

    @abstractmethod
    def _read(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order) -> tuple[int, int, int]:
        """Peer to local."""

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        started_ns = time.monotonic_ns()
        index = self._index  # `close` takes it away from those who come later
        cell = self._enter(index, target, order)
        try:
            status, nbytes, extra = self._write(source, target.table, plan, order)
            if status:
                raise self._copy_error(status, nbytes, extra, order)
        except StillMoving:  # the cell stays: the cache must not be freed under the device
            self._is_stuck = True
            raise
        except BaseException:
            self._page.leave(index, cell)
            raise
        return self._land(target, plan, order, (index, cell), started_ns, nbytes, extra if order.digest else None)

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        started_ns = time.monotonic_ns()
        index = self._index
        cell = self._enter(index, source, order)
        try:
            status, nbytes, extra = self._read(source.table, target, plan, order)
            if status:
                raise self._copy_error(status, nbytes, extra, order)
            self._check_alive()
        except StillMoving:
            self._is_stuck = True
            raise
        except BaseException:
            self._page.leave(index, cell)
            raise
        self._page.leave(index, cell)
        self._page.count_pull(nbytes)
        digest = extra if order.digest else None
        return self._receipt(source, plan, order, started_ns, time.monotonic_ns(), nbytes, digest)

    def _enter(self, index: int, remote: RemoteCache, order: Order) -> int:
        """A cell that keeps the peer from freeing the cache under the copy."""
        info = remote.info
        while True:
            cell = self._page.begin(index, info.slot, info.generation, self._pidfd)
            if cell >= 0:
                if index == self._index:
                    return cell
                self._page.leave(index, cell)  # closed meanwhile: the link may be another's
                raise StaleRoute(f"{self!r} was closed")
            if cell != shared_page.BUSY:
                raise self._closed_error(cell, remote)
            now = time.monotonic_ns()
            if now >= order.deadline_ns:
                raise TransferTimeout(f"transfer {order.transfer_id}: every cell of {self!r} stayed in use")
            self._page.sleep(self._page.bell, min(order.deadline_ns, now + BUSY_NAP_NS))

    def _land(
        self,
        target: RemoteCache,
        plan: Plan,
        order: Order,
        seat: tuple[int, int],
        started_ns: int,
        nbytes: int,
        digest: int | None,
    ) -> Receipt:
        info, span = target.info, plan.span
        landed_ns = self._page.finish(
            *seat,
            info.slot,
            info.generation,
            self._pidfd,
            bytes.fromhex(order.transfer_id),
            self.local.endpoint.cluster_id,
            info.cache_id,
            span.first_layer,
            span.num_layers,
            len(plan.source_blocks),
            nbytes,
            started_ns,
            digest,
            transport_number(self.transport),
        )
        if landed_ns < 0:
            raise self._cut_short(landed_ns, target)
        return self._receipt(target, plan, order, started_ns, landed_ns, nbytes, digest)

    def _receipt(
        self,
        remote: RemoteCache,
        plan: Plan,
        order: Order,
        started_ns: int,
        landed_ns: int,
        nbytes: int,
        digest: int | None,
    ) -> Receipt:
        return Receipt(
            order.transfer_id,
            self.local.endpoint.cluster_id,
            self.peer.cluster_id,
            remote.info.cache_id,
            plan.span.first_layer,
            plan.span.num_layers,
            len(plan.source_blocks),
            nbytes,
            self.transport,
            started_ns,
            landed_ns,
            digest,
        )

    # ---- what went wrong, said with both sides ---------------------------------------------------

    def _closed_error(self, status: int, remote: RemoteCache) -> LLMException:
        if status == shared_page.PEER_DEAD:
            return PeerLost(f"{self.peer} has died; nothing was moved")
        return StaleRoute(f"cache {remote.info.cache_id} of {self.peer} is not what it was when the link opened it")

    def _cut_short(self, status: int, remote: RemoteCache) -> LLMException:
        if status == shared_page.PEER_DEAD:
            return PeerLost(f"{self.peer} died while cache {remote.info.cache_id} was being written")
        return CacheNotFound(f"cache {remote.info.cache_id} of {self.peer} was freed or re-keyed while being written")

    def _copy_error(self, status: int, nbytes: int, extra: int, order: Order) -> LLMException:
        where = f"transfer {order.transfer_id} from endpoint {self.local.endpoint.cluster_id} to {self.peer}"
        if status == COPY_TIMED_OUT:
            return TransferTimeout(f"{where} passed its time limit after {nbytes} bytes")
        if status == COPY_STOPPED:
            return TransferCancelled(f"{where} was cancelled after {nbytes} bytes")
        if not self.is_alive:
            return PeerLost(f"{self.peer} died during transfer {order.transfer_id}")
        return LLMException(
            f"{where} failed after {nbytes} bytes: {os.strerror(extra)}", status_code=LLMStatusCode.LLM_FAILED
        )

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise PeerLost(f"{self.peer} died while it was being read")

    @property
    def nbytes_pushed(self) -> int:
        return self._page.nbytes_pushed

    @property
    def nbytes_pulled(self) -> int:
        return self._page.nbytes_pulled

    @property
    def num_landed(self) -> int:
        return self._page.num_landed

    def is_current(self, remote: RemoteCache) -> bool:
        return self._page.is_current(remote.info.slot, remote.info.generation)

    @property
    def is_alive(self) -> bool:
        return not shared_page.has_ended(self._pidfd)

    def close(self) -> None:
        """Waits for the transfers that other threads have on this link; those that come later find it stale."""
        index, self._index = self._index, -1
        if index >= 0 and not self._is_stuck:
            self._await_idle(index)
            self._page.release_link(index, self.local.endpoint.incarnation)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _await_idle(self, index: int) -> None:
        give_up_ns = time.monotonic_ns() + CLOSE_PATIENCE_NS
        while not self._page.is_idle(index) and time.monotonic_ns() < give_up_ns:
            time.sleep(BUSY_NAP_NS / 1e9)


def _open_pidfd(peer: EndpointInfo) -> int:
    """A descriptor that says when the peer ends; -1 for this very process."""
    return -1 if peer.pid == os.getpid() else pidfd_of(peer.pid, str(peer))


def pidfd_of(pid: int, who: str) -> int:
    """A descriptor that says when the process ends. Raises PeerLost."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise PeerLost(f"{who} has died") from None
