"""GrantTable: the grants that this endpoint has given, and their boards in its page.

    issue     book, slot, board, then the slot's word is opened
    end       the word is taken away, writers inside are waited for, then the blocks are free (control/grants.py)
What nobody waits for is ended by `grant_watch.py`. A writer's failure is written on the board by whoever sees it first:
the writer, or this endpoint for a dead one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ray_kvfabric.config import GrantSettings
from ray_kvfabric.control.grants import Ending, GrantBook, Held, Phase
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.board_space import BoardSpace
from ray_kvfabric.endpoint.grant_users import LocalUsers
from ray_kvfabric.endpoint.issued import IssuedGrant, Outcome
from ray_kvfabric.endpoint.verdicts import (
    board_shape,
    ended_error,
    incomplete_error,
    outcome_name,
    receipt_of,
    share_of,
    told,
    writer_error,
)
from ray_kvfabric.endpoint.verify import check_digests
from ray_kvfabric.errors import LLMException, LLMStatusCode, TransferTimeout, TransferUnknown
from ray_kvfabric.grant import Grant, GrantReceipt, Share
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.transport import _shared_page as shared_page

KEPT = 4096  # ended grants that can still be asked for
_ENDINGS = {
    shared_page.OK: Ending.LANDED,
    shared_page.SPENT: Ending.FAILED,
    shared_page.PEER_DEAD: Ending.FAILED,
    shared_page.LACKING: Ending.FAILED,
    shared_page.TIMED_OUT: Ending.EXPIRED,
    shared_page.STALE: Ending.REVOKED,
}

FindTable = Callable[[int], RegionTable]  # a cache's regions, by its id; also while it is being removed


class GrantTable:
    """Threads may share it."""

    def __init__(
        self,
        page: shared_page.SharedPage,
        copier: Copier,
        settings: GrantSettings,
        control_timeout_s: float,
        find_table: FindTable,
    ) -> None:
        self._page = page
        self._copier = copier
        self._settings = settings
        self.control_timeout_s = control_timeout_s
        self._find_table = find_table
        self._lock = threading.RLock()
        self._book = GrantBook(settings.max_grants, settings.max_granted_size)
        self._space = BoardSpace(shared_page.BOARDS_NBYTES)
        self._issued: dict[str, IssuedGrant] = {}
        self._ended: OrderedDict[str, IssuedGrant] = OrderedDict()
        self.users = LocalUsers()

    # ---- giving ------------------------------------------------------------------------------------

    def issue(self, endpoint: EndpointInfo, wanted: Grant, nbytes: int, ttl_s: float | None) -> IssuedGrant:
        """`wanted` says what is granted; its identity, secret, deadline and place are set here.

        Raises ParamInvalid, CreditExhausted, EndpointDraining.
        """
        ttl_s = self._settings.ttl_s if ttl_s is None else ttl_s
        now_ns = time.monotonic_ns()
        grant_id = secrets.token_hex(16)
        held = Held(
            grant_id, wanted.request_id, wanted.cache_id, wanted.blocks, nbytes, now_ns / 1e9 + ttl_s, wanted.sources
        )
        with self._lock:
            self._book.issue(held)
            try:
                grant = self._place(endpoint, wanted, grant_id, now_ns + int(ttl_s * 1e9))
            except BaseException:
                self._book.end(grant_id, Ending.REVOKED)
                self._book.release(grant_id)
                raise
            issued = self._issued[grant_id] = IssuedGrant(self, grant, now_ns)
        return issued

    def _place(self, endpoint: EndpointInfo, wanted: Grant, grant_id: str, deadline_ns: int) -> Grant:
        shape = board_shape(wanted)
        board = self._space.take(shared_page.board_nbytes(*shape))
        reserved = self._page.reserve_slot()
        if reserved is None:
            self._space.give_back(board, shared_page.board_nbytes(*shape))
            raise LLMException(
                f"all {shared_page.SLOTS} slots of this endpoint's page are taken by caches and grants",
                status_code=LLMStatusCode.LLM_FAILED,
            )
        slot, fence = reserved
        try:
            grant = self._open(wanted, grant_id, endpoint, deadline_ns, (slot, fence, board))
        except BaseException:
            self._page.free_slot(slot)
            self._space.give_back(board, shared_page.board_nbytes(*shape))
            raise
        return grant

    def _open(
        self, wanted: Grant, grant_id: str, endpoint: EndpointInfo, deadline_ns: int, place: tuple[int, int, int]
    ) -> Grant:
        slot, fence, board = place
        grant = replace(
            wanted,
            grant_id=grant_id,
            boot_id=endpoint.host.boot_id,
            deadline_ns=deadline_ns,
            slot=slot,
            fence=fence,
            board=board,
            secret=secrets.token_bytes(16),
        )
        self._page.init_board(board, grant.seal(), deadline_ns, slot, fence, *board_shape(wanted))
        self._page.open_slot(slot, fence)
        return grant

    def refuse_new(self, reason: str) -> None:
        with self._lock:
            self._book.refuse_new(reason)

    # ---- waiting -----------------------------------------------------------------------------------

    def wait(self, issued: IssuedGrant, deadline: Deadline) -> GrantReceipt:
        while issued.outcome is None:
            status, writer = self.look(issued, deadline)
            if status == shared_page.TIMED_OUT and time.monotonic_ns() < issued.grant.deadline_ns:
                raise TransferTimeout(f"{issued.grant} is not complete yet: {self.progress_of(issued):.0%} was written")
            self.end(issued, status, writer, deadline)
        return told(issued.outcome)

    def wait_layer(self, issued: IssuedGrant, layer: int, deadline: Deadline) -> None:
        share = share_of(issued.grant, layer)
        if isinstance(issued.outcome, GrantReceipt):
            return
        until_ns = min(deadline.at_ns, issued.grant.deadline_ns)
        status, writer = self._page.await_board(issued.grant.board, issued.grant.fence, share, False, until_ns)
        if status == shared_page.OK:
            with self._ending(issued, deadline):  # meanwhile the board stays this grant's
                if issued.outcome is None:
                    self._verify(issued, share)
        elif status == shared_page.TIMED_OUT and time.monotonic_ns() < issued.grant.deadline_ns:
            raise TransferTimeout(f"layer {layer} of {issued.grant} is not complete yet")
        else:
            self.end(issued, status, writer, deadline)
        if issued.outcome is not None:  # also: the board may have been another's already
            told(issued.outcome)

    def has_news(self, issued: IssuedGrant) -> bool:
        if time.monotonic_ns() >= issued.grant.deadline_ns:
            return True
        status, _ = self._page.look(issued.grant.board, issued.grant.fence, share_of(issued.grant), True)
        return status != shared_page.NOT_YET

    def look(self, issued: IssuedGrant, deadline: Deadline) -> tuple[int, int]:
        until_ns = min(deadline.at_ns, issued.grant.deadline_ns)
        grant = issued.grant
        return self._page.await_board(grant.board, grant.fence, share_of(grant), True, until_ns)

    def _verify(self, issued: IssuedGrant, share: Share) -> None:
        """Raises DigestMismatch for a block whose bytes are not those that its writer read."""
        if issued.grant.verify is not None:
            check_digests(self._copier, self._page, issued.grant, self._find_table(issued.grant.cache_id), share)

    # ---- ending ------------------------------------------------------------------------------------

    def revoke(self, issued: IssuedGrant, timeout_s: float | None = None) -> None:
        deadline = Deadline.after(self.control_timeout_s if timeout_s is None else timeout_s)
        self._raise_fence(issued, shared_page.STALE)  # before anybody is waited for: writers stop now
        self.end(issued, shared_page.STALE, 0, deadline)

    def revoke_cache(self, cache_id: int, deadline: Deadline) -> None:
        """Every grant of a cache, the fences first. Raises TransferTimeout while a writer does not leave one."""
        with self._lock:
            mine = [self._issued[grant_id] for grant_id in self._book.of_cache(cache_id)]
        self._revoke_all(mine, deadline)

    def close(self, deadline: Deadline) -> None:
        self._revoke_all(self.standing(), deadline)

    def _revoke_all(self, mine: list[IssuedGrant], deadline: Deadline) -> None:
        """One that stays in quarantine does not keep the others. Raises its TransferTimeout when all were tried."""
        for issued in mine:
            self._raise_fence(issued, shared_page.STALE)
        with ExitStack() as ends:
            for issued in mine:
                ends.callback(self.end, issued, shared_page.STALE, 0, deadline)

    def end(self, issued: IssuedGrant, status: int, writer: int, deadline: Deadline) -> None:
        """Fence, drain, release; one thread does it. Raises TransferTimeout: the blocks are in quarantine."""
        ended = None
        with self._ending(issued, deadline):
            if issued.outcome is None:
                self._raise_fence(issued, status, writer)
                self._drain(issued, deadline)
                self._release(issued, self._judge(issued, *issued.cause))
                ended = issued.on_end
        if ended is not None:
            ended()

    @contextmanager
    def _ending(self, issued: IssuedGrant, deadline: Deadline) -> Iterator[None]:
        """One thread at a time ends a grant."""
        if not issued.ending.acquire(timeout=deadline.remaining_s):
            raise TransferTimeout(f"another thread is still ending {issued.grant}")
        try:
            yield
        finally:
            issued.ending.release()

    def _raise_fence(self, issued: IssuedGrant, status: int, writer: int = 0) -> None:
        """The first cause stays: what writers fail with after it is that they met the fence."""
        with self._lock:
            if self._book.end(issued.grant_id, _ENDINGS[status]):
                issued.cause = status, writer
                self._page.retire_slot(issued.grant.slot)
                self._page.ring_board(issued.grant.board)

    def _drain(self, issued: IssuedGrant, deadline: Deadline) -> None:
        slot = issued.grant.slot
        if self._page.drain_slot(slot, deadline.at_ns) and self.users.drain(issued.grant_id, deadline):
            return
        with self._lock:
            self._book.quarantine(issued.grant_id)
        raise TransferTimeout(
            f"a writer that lives is still inside {issued.grant}: its blocks stay in quarantine until it leaves or dies"
        )

    def _judge(self, issued: IssuedGrant, status: int, writer: int) -> Outcome:
        """What it came to. Nobody writes any more, and the board is still this grant's."""
        if status == shared_page.LACKING:  # of two pushes of a writer the one that seals may have ended first
            status = shared_page.OK if self.look(issued, Deadline(0))[0] == shared_page.OK else status
        if status == shared_page.OK:
            try:
                self._verify(issued, share_of(issued.grant))
            except LLMException as error:
                error.__traceback__ = error.__context__ = None  # it is kept, and must not hold frames and their memory
                return error
            return receipt_of(self._page, issued)
        if status in (shared_page.SPENT, shared_page.PEER_DEAD):
            return writer_error(self._page, issued, status, writer)
        if status == shared_page.LACKING:
            return incomplete_error(self._page, issued)
        return ended_error(self._page, issued, _ENDINGS[status])

    def _release(self, issued: IssuedGrant, outcome: Outcome) -> None:
        with self._lock:
            issued.outcome = outcome
            self._book.release(issued.grant_id)
            self._page.free_slot(issued.grant.slot)
            self._space.give_back(issued.grant.board, shared_page.board_nbytes(*board_shape(issued.grant)))
            self._ended[issued.grant_id] = self._issued.pop(issued.grant_id)
            while len(self._ended) > KEPT:
                self._ended.popitem(last=False)

    # ---- looking in ----------------------------------------------------------------------------------

    def find(self, grant_id: str) -> IssuedGrant:
        """Raises TransferUnknown for a grant that was never given here, or forgotten since."""
        issued = self._issued.get(grant_id) or self._ended.get(grant_id)
        if issued is None:
            raise TransferUnknown(f"this endpoint has given no grant {grant_id}, or has forgotten it")
        return issued

    @contextmanager
    def keeping(self, issued: IssuedGrant) -> Iterator[None]:
        """The board is not given to another grant meanwhile; nothing that takes long is done inside."""
        with self._lock:
            yield

    def has_given(self, grant: Grant) -> bool:
        """Whether it is one of this endpoint's, and nothing in it was changed."""
        issued = self._issued.get(grant.grant_id) or self._ended.get(grant.grant_id)
        return issued is not None and issued.grant == grant

    def holds_cache(self, cache_id: int) -> bool:
        """Whether a grant of the cache is not released."""
        with self._lock:
            return bool(self._book.of_cache(cache_id))

    def standing(self) -> list[IssuedGrant]:
        """Those that are not released."""
        with self._lock:
            return list(self._issued.values())

    def expected_from(self, cluster_id: int) -> set[str]:
        """The standing grants that name this endpoint as a writer."""
        with self._lock:
            return set(self._book.expected_from(cluster_id))

    def is_fenced(self, issued: IssuedGrant) -> bool:
        """Its blocks wait for a writer to leave."""
        held = self._book.find(issued.grant_id)
        return held is not None and held.phase is not Phase.STANDING

    def state_of(self, issued: IssuedGrant) -> str:
        held = self._book.find(issued.grant_id)
        return outcome_name(issued.outcome) if held is None else held.phase.value

    def progress_of(self, issued: IssuedGrant) -> float:
        if issued.outcome is not None:
            return float(isinstance(issued.outcome, GrantReceipt))
        share = share_of(issued.grant)
        return self._page.covered(issued.grant.board, share) / (share[1] * share[3])

    def describe(self) -> dict[str, object]:
        with self._lock:
            held = self._book.all()
            summary = self._book.describe()
        quarantined = [each.grant_id for each in held if each.phase is Phase.QUARANTINED]
        return {**summary, "quarantined_grants": quarantined}
