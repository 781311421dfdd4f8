"""Passage: one transfer through the shared page of a peer of this host.

enter    a cell of the slot of the cache, or of the grant: dead peer? stale route? revoked?
land     dead peer? freed? -> record, what was written under the grant -> leave
abandon  the grant's writer has failed -> leave
leave    holds nothing of the peer's; it may enter again
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import (
    CacheNotFound,
    EndpointDraining,
    GrantExpired,
    GrantRevoked,
    LLMException,
    LLMStatusCode,
    PeerGone,
    PeerLost,
    StaleRoute,
    TransferCancelled,
    TransferTimeout,
)
from ray_kvfabric.memory.copy import COPY_FENCED, COPY_STOPPED, COPY_TIMED_OUT
from ray_kvfabric.plan import Plan
from ray_kvfabric.route import Receipt
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import Order, RemoteCache, Step
from ray_kvfabric.transport.granted import GrantedPush, refusal
from ray_kvfabric.transport.receipts import transport_number

if TYPE_CHECKING:
    from ray_kvfabric.transport.host_link import HostLink

BUSY_NAP_NS = 1_000_000  # a cell that is left just before the sleep rings no bell


class Passage:
    """`granted` is None for a pull and for a push without a grant."""

    __slots__ = ("_cell", "_granted", "_index", "_is_push", "_link", "_order", "_plan", "_remote", "_started_ns")

    def __init__(
        self,
        link: HostLink,
        remote: RemoteCache,
        plan: Plan,
        order: Order,
        granted: GrantedPush | None,
        *,
        is_push: bool,
    ) -> None:
        self._started_ns = time.monotonic_ns()
        self._link = link
        self._remote = remote
        self._plan = plan
        self._order = order
        self._granted = granted
        self._is_push = is_push
        self._index = self._cell = -1

    @property
    def step(self) -> Step:
        """The whole copy."""
        granted = self._granted
        return self._remote.step if granted is None else Step(0, granted.fence, None, granted.digests)

    @property
    def wants_digests(self) -> bool:
        return self._granted is not None and self._granted.digests is not None

    def note_digests(self, found: NDArray[np.uint32], regions: slice, pairs: slice) -> None:
        """Those of a part of the plan, [region][pair]."""
        if self._granted is not None and self._granted.digests is not None:
            whole = self._granted.digests.reshape(self._plan.span.num_regions, -1)
            whole[regions, pairs] = found.reshape(whole[regions, pairs].shape)

    # ---- in and out --------------------------------------------------------------------------------

    def enter(self) -> None:
        """A cell that keeps the peer from freeing the cache, or its granted blocks, under the copy."""
        link, info = self._link, self._remote.info
        page, pidfd, index = link.page, link.pidfd, link.index  # `close` takes the index from those who come later
        while True:
            if self._granted is None:
                cell = page.begin(index, info.slot, info.generation, pidfd, self._is_push)
            else:
                cell = self._granted.enter(page, index, pidfd)
            if cell >= 0:
                break
            if cell != shared_page.BUSY:
                raise self._refused(cell)
            self._await_cell()
        self._index, self._cell = index, cell

    def _await_cell(self) -> None:
        now = time.monotonic_ns()
        if now >= self._order.deadline_ns:
            raise TransferTimeout(f"transfer {self._order.transfer_id}: every cell of {self._link!r} stayed in use")
        page = self._link.page
        page.sleep(page.bell, min(self._order.deadline_ns, now + BUSY_NAP_NS))

    def leave(self) -> None:
        self._link.page.leave(self._index, self._cell)

    def abandon(self, error: BaseException) -> None:
        """It failed inside."""
        self.fail_writer(error)
        self.leave()

    def fail_writer(self, error: BaseException) -> None:
        if self._granted is not None:
            self._granted.fail(self._link.page, error)

    def land(self, nbytes: int) -> Receipt:
        """A push is complete."""
        info, span, plan = self._remote.info, self._plan.span, self._plan
        granted = self._granted
        landed_ns = self._link.page.finish(
            self._index,
            self._cell,
            *((info.slot, info.generation) if granted is None else granted.place),
            self._link.pidfd,
            bytes.fromhex(self._order.transfer_id),
            self._link.local.endpoint.cluster_id,
            info.cache_id,
            span.first_layer,
            span.num_layers,
            len(plan.source_blocks),
            nbytes,
            self._started_ns,
            transport_number(self._link.transport),
            None if granted is None else granted.written(),
        )
        if landed_ns < 0:
            raise self._cut_short(landed_ns)
        return self.receipt(nbytes, landed_ns)

    def receipt(self, nbytes: int, landed_ns: int) -> Receipt:
        span = self._plan.span
        return Receipt(
            self._order.transfer_id,
            self._link.local.endpoint.cluster_id,
            self._link.peer.cluster_id,
            self._remote.info.cache_id,
            span.first_layer,
            span.num_layers,
            len(self._plan.source_blocks),
            nbytes,
            self._link.transport,
            self._started_ns,
            landed_ns,
        )

    # ---- what went wrong, said with both sides ---------------------------------------------------

    def _refused(self, status: int) -> LLMException:
        peer = self._link.peer
        if status == shared_page.PEER_DEAD:
            return PeerGone(f"{peer} has died")
        if status == shared_page.DRAINING:
            return EndpointDraining(f"{peer} is draining: it takes no pushes any more")
        if self._order.use is not None and self._link.index >= 0:
            refused = refusal(status, self._order.use)
            if refused is not None:
                return refused
        return StaleRoute(f"cache {self._remote.info.cache_id} of {peer} is not what it was when the link opened it")

    def _cut_short(self, status: int) -> LLMException:
        cache_id, peer = self._remote.info.cache_id, self._link.peer
        if status == shared_page.PEER_DEAD:
            return PeerLost(f"{peer} died while cache {cache_id} was being written")
        if self._order.use is not None and self._order.use.grant.has_expired:
            return GrantExpired(f"{self._order.use.grant} expired while it was being written")
        if self._order.use is not None:
            return GrantRevoked(f"{self._order.use.grant} was ended by its receiver while it was being written")
        return CacheNotFound(f"cache {cache_id} of {peer} was freed or re-keyed while it was in use")

    def copy_error(self, status: int, nbytes: int, problem: int = 0) -> LLMException:
        """Why a copy ended early, after `nbytes`. `problem` is its errno."""
        if status == COPY_FENCED:
            return self._cut_short(shared_page.STALE)
        where = (
            f"transfer {self._order.transfer_id} from endpoint {self._link.local.endpoint.cluster_id} to "
            f"{self._link.peer}"
        )
        if status == COPY_TIMED_OUT and self._order.use is not None and self._order.use.grant.has_expired:
            return GrantExpired(f"{self._order.use.grant} expired after {nbytes} bytes")
        if status == COPY_TIMED_OUT:
            return TransferTimeout(f"{where} passed its time limit after {nbytes} bytes")
        if status == COPY_STOPPED:
            return TransferCancelled(f"{where} was cancelled after {nbytes} bytes")
        if not self._link.is_alive:
            return PeerLost(f"{self._link.peer} died during transfer {self._order.transfer_id}")
        return LLMException(
            f"{where} failed after {nbytes} bytes: {os.strerror(problem)}", status_code=LLMStatusCode.LLM_FAILED
        )
