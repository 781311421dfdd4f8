"""HostLink: what all links to a process of the same host share. The three host transports differ in the copy only.

    open     pidfd of the peer, then its shared page through /proc, proven by inode and incarnation; one of the
             page's links is claimed. No Ray call, no socket.
    push     enter the slot of the cache or of the grant (dead peer? stale? revoked?) -> copy, while the slot stands and
             nobody more urgent waits -> dead peer? freed? -> what was written, record -> leave
A write into a dead peer's memory succeeds silently, hence the look at the pidfd on both sides of the copy.
"""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import (
    LinkFailed,
    LLMException,
    PeerLost,
    StaleIncarnation,
    StaleRoute,
    StillMoving,
    TransferTimeout,
)
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import COPY_DONE, COPY_GAVE_WAY, Fence, RegionTable
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import Link, LocalEnd, Order, RemoteCache, Step
from ray_kvfabric.transport.granted import GrantedPush, SealedGrants, refusal
from ray_kvfabric.transport.notices import Lookout
from ray_kvfabric.transport.passage import BUSY_NAP_NS, Passage
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


Outcome = tuple[int, int, int]  # status, bytes moved, errno
Copy = Callable[[RegionTable, RegionTable, Plan, Order, Step], Outcome]


GOOD = (COPY_DONE, COPY_GAVE_WAY)
IDLE_NAP_S = 1e-3
TELL_S = 1.0  # for a receiver to learn that a push under its grant has failed
CLOSE_PATIENCE_NS = 30 * 10**9


class HostLink(Link):
    """A link whose peer's shared page is mapped here."""

    def __init__(self, local: LocalEnd, peer: EndpointInfo) -> None:
        super().__init__(local, peer)
        self.pidfd = _open_pidfd(peer)
        self.index = -1
        self._sealed = SealedGrants()
        self._closing = threading.Lock()  # several threads may find the peer dead at once
        self._is_stuck = False  # a copy did not come to rest: its cell stays while this process lives
        try:
            self._memory = HostMemory.open_peer(peer.pid, peer.page_fd, peer.page_inode, touch=False)
            if self._memory.nbytes < shared_page.PAGE_NBYTES:
                raise LinkFailed(f"the shared page of {peer} is that of an older version of this library")
            self.page = shared_page.SharedPage(self._memory.view(self._memory.address, self._memory.nbytes))
            self._check_page()
            self.index = self.page.claim_link(local.endpoint.incarnation, os.getpid())
            if self.index < 0:
                raise LinkFailed(f"{peer} already has {shared_page.LINKS} links, as many as its page holds")
            self._lookout = Lookout(self.page, self.index, local.endpoint.incarnation)
        except BaseException:
            self.close()
            raise

    def _check_page(self) -> None:
        if not self.page.is_valid:
            raise LinkFailed(f"the shared page of {self.peer} has another version than this library's")
        if self.page.incarnation != self.peer.incarnation:
            raise StaleIncarnation(
                f"{self.peer} was replaced: its process now runs incarnation {self.page.incarnation:016x}"
            )

    @abstractmethod
    def _write(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        """Local to peer, from byte `step.begin` of the plan on."""

    @abstractmethod
    def _read(self, source: RegionTable, target: RegionTable, plan: Plan, order: Order, step: Step) -> Outcome:
        """Peer to local."""

    reaches_memory: ClassVar[bool] = False  # whether this processor can write the peer's caches

    def passage(self, remote: RemoteCache, plan: Plan, order: Order) -> Passage:
        """Of one push that has not entered yet, for whoever copies himself."""
        granted = None if order.use is None else self._granted(order.use, plan)
        return Passage(self, remote, plan, order, granted, is_push=not order.is_asked)

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        passage = self.passage(target, plan, order)
        return passage.land(self._carry(passage, self._write, (source, target.table, plan, order)))

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        passage = Passage(self, source, plan, order, None, is_push=False)
        nbytes = self._carry(passage, self._read, (source.table, target, plan, order))
        passage.leave()
        self._check_alive()
        self.page.count_pull(nbytes)
        return passage.receipt(nbytes, time.monotonic_ns())

    def _carry(self, passage: Passage, copy: Copy, what: tuple[RegionTable, RegionTable, Plan, Order]) -> int:
        """Copies to the end, in pieces where more urgent transfers come between. Inside when it returns."""
        turn, moved, step = what[3].turn, 0, passage.step
        if turn is not None and turn.give_way is not None:
            step = step._replace(give_way=turn.give_way)
        while True:
            passage.enter()
            try:
                status, nbytes, problem = copy(*what, step)
                moved += nbytes
                if status not in GOOD:
                    raise passage.copy_error(status, moved, problem)
            except StillMoving as error:  # the cell stays: the cache must not be freed under the device
                passage.fail_writer(error)
                self._is_stuck = True
                raise
            except BaseException as error:
                passage.abandon(error)
                raise
            if status == COPY_DONE:
                return moved
            self._pause(passage, what[3])
            step = step._replace(begin=moved)

    def _pause(self, passage: Passage, order: Order) -> None:
        """More urgent transfers go first; meanwhile this one holds nothing of the peer's."""
        assert order.turn is not None
        passage.leave()
        try:
            order.turn.pause(Deadline(order.deadline_ns), order.stop)
        except LLMException as error:
            if order.use is not None:
                with suppress(LLMException):
                    self.fail_grant(order.use, error.status_code, str(error), Deadline.after(TELL_S))
            raise

    @property
    def lookout(self) -> Lookout:
        return self._lookout

    # ---- grants ------------------------------------------------------------------------------------

    def _granted(self, use: GrantUse, plan: Plan | None) -> GrantedPush:
        sealed = self._sealed.sealed(use.grant, self._fence_of)
        return GrantedPush(sealed, use, plan, self.local.endpoint.cluster_id, transport_number(self.transport))

    def _whole(self, cache: CacheInfo, table: RegionTable) -> RemoteCache:
        return RemoteCache(cache, table, Step(fence=self._fence_of(cache.slot, cache.generation)))

    def _fence_of(self, slot: int, generation: int) -> Fence:
        """Stands while the slot of the peer's page holds the generation."""
        return self.local.copier.Fence(self.page.slot_address(slot), generation, self.page)

    def fail_grant(self, use: GrantUse, code: int, reason: str, deadline: Deadline) -> None:
        granted, index = self._granted(use, None), self.index
        cell = granted.enter(self.page, index, self.pidfd)
        while cell == shared_page.BUSY and not deadline.passed:
            self.page.sleep(self.page.bell, min(deadline.at_ns, time.monotonic_ns() + BUSY_NAP_NS))
            cell = granted.enter(self.page, index, self.pidfd)
        if cell >= 0:
            granted.fail_as(self.page, code, reason)
            self.page.leave(index, cell)
        elif cell == shared_page.PEER_DEAD:
            raise PeerLost(f"{self.peer} has died")
        elif cell == shared_page.BUSY:
            raise TransferTimeout(f"every cell of {self!r} stayed in use: {use.grant} was not told that it fails")
        elif self.index < 0:
            raise StaleRoute(f"{self!r} was closed")
        elif cell not in (shared_page.STALE, shared_page.SPENT):
            raise refusal(cell, use) or StaleRoute(f"{self!r} refused {use.grant}")

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise PeerLost(f"{self.peer} died while it was being read")

    @property
    def nbytes_pushed(self) -> int:
        return self.page.nbytes_pushed

    @property
    def nbytes_pulled(self) -> int:
        return self.page.nbytes_pulled

    @property
    def num_landed(self) -> int:
        return self.page.num_landed

    def is_current(self, remote: RemoteCache) -> bool:
        return self.page.is_current(remote.info.slot, remote.info.generation)

    @property
    def is_alive(self) -> bool:
        return not shared_page.has_ended(self.pidfd)

    def close(self) -> None:
        """Waits for the transfers that other threads have on this link; those that come later find it stale."""
        with self._closing:
            index, self.index = self.index, -1
            if index >= 0:
                self.page.retract_link(index)
            if index >= 0 and not self._is_stuck:
                self._is_stuck = not self._await_idle(index)
            if index >= 0 and not self._is_stuck:  # else a copy goes on: who frees its target has to see it
                self.page.release_link(index, self.local.endpoint.incarnation)
            pidfd, self.pidfd = self.pidfd, -1
            if pidfd >= 0:
                os.close(pidfd)

    def _await_idle(self, index: int) -> bool:
        give_up_ns = time.monotonic_ns() + CLOSE_PATIENCE_NS
        while not (is_idle := self.page.is_idle(index)) and time.monotonic_ns() < give_up_ns:
            time.sleep(IDLE_NAP_S)
        return is_idle


def _open_pidfd(peer: EndpointInfo) -> int:
    """A descriptor that says when the peer ends; -1 for this very process."""
    return -1 if peer.pid == os.getpid() else pidfd_of(peer.pid, str(peer))


def pidfd_of(pid: int, who: str) -> int:
    """A descriptor that says when the process ends. Raises PeerLost."""
    try:
        return os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):  # the latter: the number is a thread's by now
        raise PeerLost(f"{who} has died") from None
