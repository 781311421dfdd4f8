"""Reception: lets pushes of peers in that this process itself takes part in, and fails writers that cannot do it.

plain      the cache is not `grants_only`, and the endpoint does not drain
a grant    it is the one that was given, it stands, and the plan stays inside it; what became of the push is noted
Which bytes a one-sided writer moves is not seen here: it asks the shared page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ray_kvfabric.endpoint.grant_rules import check_told
from ray_kvfabric.endpoint.grants import GrantTable
from ray_kvfabric.endpoint.identity import Identity
from ray_kvfabric.errors import EndpointDraining, GrantForged, GrantNeeded, GrantRevoked, LLMException
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.plan import LayerSpan
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import LocalCache
from ray_kvfabric.transport.granted import TEXT_NBYTES, refusal
from ray_kvfabric.transport.receipts import transport_number

Visit = Callable[[int, int], AbstractContextManager[LocalCache]]


class Reception:
    """Of one endpoint; threads share it."""

    def __init__(self, identity: Identity, grants: GrantTable, visit: Visit) -> None:
        self._identity = identity
        self._page = identity.page
        self._grants = grants
        self._visit = visit

    @contextmanager
    def receive(self, question: dict[str, Any]) -> Iterator[LocalCache]:
        """As `Serving.receive`."""
        use: GrantUse | None = question["use"]
        with self._visit(question["cache_id"], question["generation"]) as cache:
            if use is None:
                self._check_plain(cache)
                yield cache
                return
            with self._inside(use, question):
                yield cache

    def _check_plain(self, cache: LocalCache) -> None:
        if cache.info.grants_only:
            raise GrantNeeded(f"cache {cache.info.cache_id} is written under grants only")
        if self._identity.endpoint.is_draining:
            raise EndpointDraining(f"{self._identity.endpoint} is draining: it takes no pushes any more")

    @contextmanager
    def _inside(self, use: GrantUse, question: dict[str, Any]) -> Iterator[None]:
        """The blocks stay this grant's inside."""
        span = LayerSpan(*question["span"])
        check_told(use.grant, use.at, span, question["target_blocks"])
        self._grants.users.enter(use.grant.grant_id)
        try:
            self._bind(use, question)
            try:
                yield
            except LLMException as error:
                self._fail(use, int(error.status_code), str(error))
                raise
            if not self._page.is_current(use.grant.slot, use.grant.fence):
                raise self._ended(use)
            first, blocks = span.target_first - use.grant.first_tensor, len(question["target_blocks"])
            share = (first, span.num_regions, use.at, blocks)
            self._page.cover(use.grant.board, use.writer, share, None, _nbytes(question, span), use.seals)
        finally:
            self._grants.users.leave(use.grant.grant_id)

    def _bind(self, use: GrantUse, question: dict[str, Any]) -> None:
        """After it has entered: who fences the grant off waits for it, or it sees the fence."""
        grant = use.grant
        if not self._grants.has_given(grant):
            raise GrantForged(f"{grant} is not what endpoint {self._identity.endpoint.cluster_id} has granted")
        if not self._page.is_current(grant.slot, grant.fence):
            raise self._ended(use)
        status = self._page.bind(
            grant.board, grant.seal(), use.writer, question["incarnation"], 0, question["from_cluster_id"],
            transport_number(question["transport"]),
        )  # fmt: skip
        if status != shared_page.OK:
            raise refusal(status, use) or GrantForged(str(grant))

    def _ended(self, use: GrantUse) -> LLMException:
        return refusal(shared_page.STALE, use) or GrantRevoked(str(use.grant))

    def _fail(self, use: GrantUse, code: int, reason: str) -> None:
        self._page.fail_writer(use.grant.board, use.writer, code, reason.encode()[:TEXT_NBYTES])

    def fail_grant(self, question: dict[str, Any]) -> bool:
        """A writer that has no page to write into will not bring the rest."""
        use: GrantUse = question["use"]
        self._grants.users.enter(use.grant.grant_id)
        try:
            self._bind(use, {**question, "incarnation": question["initiator"], "from_cluster_id": 0, "transport": ""})
            self._fail(use, question["code"], question["reason"])
        except LLMException:  # it has ended, or was never given: nobody waits to hear it
            return False
        finally:
            self._grants.users.leave(use.grant.grant_id)
        return True


def _nbytes(question: dict[str, Any], span: LayerSpan) -> int:
    sizes: list[int] = [region[2] for region in question["my_regions"]]
    return sum(sizes[span.source_first : span.source_first + span.num_regions]) * len(question["target_blocks"])
