"""GrantWatch: ends grants that nobody waits for: expired ones, and those whose writer failed, died or left.

So blocks are free again at once, whoever forgot them; the outcome stays with the IssuedGrant for who asks later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.grants import GrantTable
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.errors import LLMStatusCode, TransferTimeout
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.granted import TEXT_NBYTES

logger = logging.getLogger(__name__)

NOW = Deadline(0)  # one look, no sleep
OVER = (shared_page.SPENT, shared_page.PEER_DEAD, shared_page.LACKING, shared_page.STALE)
LOST = int(LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR)


class GrantWatch:
    """Over the grants of one endpoint."""

    def __init__(self, grants: GrantTable, page: shared_page.SharedPage) -> None:
        self._grants = grants
        self._page = page

    def tick(self, *, ends_complete: bool = False) -> None:
        """`ends_complete`: also the grants that are complete, which else wait for whoever waits for them."""
        for issued in self._grants.standing():
            self._look_at(issued, ends_complete)

    def _look_at(self, issued: IssuedGrant, ends_complete: bool) -> None:
        try:
            self._end_if_over(issued, ends_complete)
        except Exception:  # one grant's trouble is not the others'
            logger.exception("%s could not be ended", issued.grant)

    def _end_if_over(self, issued: IssuedGrant, ends_complete: bool) -> None:
        status, writer = self._grants.look(issued, NOW)
        is_late = time.monotonic_ns() >= issued.grant.deadline_ns
        is_fenced = self._grants.is_fenced(issued)  # a quarantined one waits for nobody, complete or not
        if status in OVER or is_late or is_fenced or (ends_complete and status == shared_page.OK):
            with suppress(TransferTimeout):  # in quarantine, or another thread is at it: the next tick looks again
                self._grants.end(issued, status, writer, NOW)

    def peer_ended(self, cluster_id: int, incarnation: int, reason: str, is_followed: Callable[[], bool]) -> None:
        """Fails its part of every grant that it was writing, or was named to write.

        `is_followed` says whether another incarnation lives: then grants that only name the cluster_id are its.
        """
        text = f"endpoint {cluster_id} (incarnation {incarnation:016x}) {reason}".encode()[:TEXT_NBYTES]
        named = self._grants.expected_from(cluster_id)
        if named and is_followed():
            named = set()
        for issued in self._grants.standing():
            with self._grants.keeping(issued):  # the board stays this grant's
                for index in self._lost_writers(issued, cluster_id, incarnation, is_named=issued.grant_id in named):
                    self._page.fail_writer(issued.grant.board, index, LOST, text)
        self.tick()

    def _lost_writers(self, issued: IssuedGrant, cluster_id: int, incarnation: int, *, is_named: bool) -> list[int]:
        """Those that it was, or was to be; none of a grant that has ended."""
        grant = issued.grant
        if issued.outcome is not None:
            return []
        owners = [self._page.writer(grant.board, index)[1] for index in range(grant.writers)]
        absent = [index for index, owner in enumerate(owners) if owner == 0]
        expected = [index for index in absent if is_named and grant.sources[index] == cluster_id]
        return [index for index, owner in enumerate(owners) if owner == incarnation] + expected

    def writers(self) -> set[tuple[int, int]]:
        """(cluster_id, incarnation) of those that have begun and not ended."""
        found = set()
        for issued in self._grants.standing():
            for index in range(issued.grant.writers):
                state, incarnation, _, cluster_id = self._page.writer(issued.grant.board, index)[:4]
                if state == shared_page.MOVING:
                    found.add((cluster_id, incarnation))
        return found
