"""A push under a grant, as a link of one host makes it: through the board in the receiver's page (native_ext/board.h).

SealedGrant   what is worked out once a grant and link: its seal, the fence that the copy kernel watches
GrantedPush   one push: enter, then what it has written or why it failed; all of it inside a cell
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import (
    FeatureNotEnabled,
    GrantExpired,
    GrantFailed,
    GrantForged,
    GrantReplayed,
    GrantRevoked,
    LLMException,
    LLMStatusCode,
)
from ray_kvfabric.grant import Grant, GrantUse, Share
from ray_kvfabric.memory.copy import Fence
from ray_kvfabric.plan import Plan
from ray_kvfabric.transport import _shared_page as shared_page

KEPT = 256  # sealed grants of a link
TEXT_NBYTES = 400  # of a failure, on the board


class SealedGrant(NamedTuple):
    grant: Grant
    seal: bytes
    fence: Fence


class SealedGrants:
    """The newest ones that a link has used."""

    def __init__(self) -> None:
        self._kept: dict[str, SealedGrant] = {}
        self._lock = threading.Lock()

    def sealed(self, grant: Grant, make_fence: Callable[[int, int], Fence]) -> SealedGrant:
        """`make_fence` is given the grant's slot and generation."""
        known = self._kept.get(grant.grant_id)
        if known is None or (known.grant is not grant and known.grant != grant):
            fence = make_fence(grant.slot, grant.fence)
            known = SealedGrant(grant, grant.seal(), fence)
            with self._lock:
                self._kept[grant.grant_id] = known
                while len(self._kept) > KEPT:
                    del self._kept[next(iter(self._kept))]
        return known


class GrantedPush:
    """`plan` None: nothing is to be written, its writer has only something to say."""

    __slots__ = ("_cluster_id", "_sealed", "_share", "_transport", "_use", "digests", "fence")

    def __init__(self, sealed: SealedGrant, use: GrantUse, plan: Plan | None, cluster_id: int, transport: int) -> None:
        self._sealed = sealed
        self._use = use
        self._cluster_id = cluster_id
        self._transport = transport
        self._share = (0, 0, 0, 0) if plan is None else share_of(use, plan)
        self.fence = sealed.fence
        wants_digests = plan is not None and use.grant.verify is not None
        self.digests: NDArray[np.uint32] | None = (
            np.zeros(self._share[1] * self._share[3], np.uint32) if wants_digests else None
        )

    @property
    def place(self) -> tuple[int, int]:
        """Slot and generation of the grant."""
        return self._use.grant.slot, self._use.grant.fence

    def enter(self, page: shared_page.SharedPage, index: int, pidfd: int) -> int:
        grant = self._use.grant
        return page.begin_granted(
            index, grant.board, grant.slot, grant.fence, pidfd, self._sealed.seal, self._use.writer, self._cluster_id,
            self._transport,
        )  # fmt: skip

    def written(self) -> tuple[int, int, Share, object, bool]:
        """As `SharedPage.finish` takes it."""
        return self._use.grant.board, self._use.writer, self._share, self.digests, self._use.seals

    def fail(self, page: shared_page.SharedPage, error: BaseException) -> None:
        code = error.status_code if isinstance(error, LLMException) else LLMStatusCode.LLM_FAILED
        self.fail_as(page, int(code), f"{type(error).__name__}: {error}")

    def fail_as(self, page: shared_page.SharedPage, code: int, reason: str) -> None:
        page.fail_writer(self._use.grant.board, self._use.writer, code, reason.encode()[:TEXT_NBYTES])


def check_undigested(use: GrantUse | None, transport: str) -> None:
    """For a transport whose bytes pass through a device only. Raises FeatureNotEnabled."""
    if use is not None and use.grant.verify is not None:
        raise FeatureNotEnabled(f"{use.grant} wants {use.grant.verify} of each block: {transport} computes no digest")


def share_of(use: GrantUse, plan: Plan) -> Share:
    """What the plan writes, in tensors and positions of the grant."""
    first = plan.span.target_first - use.grant.first_tensor
    return first, plan.span.num_regions, use.at, len(plan.target_blocks)


def refusal(status: int, use: GrantUse) -> LLMException | None:
    """Why the board let nobody in; None for what is not about the grant."""
    grant = use.grant
    if status == shared_page.EXPIRED or (status == shared_page.STALE and grant.has_expired):
        return GrantExpired(f"{grant} has expired")
    if status == shared_page.STALE:
        return GrantRevoked(f"{grant} was revoked, or has landed: its blocks may belong to somebody else")
    if status == shared_page.FORGED:
        return GrantForged(f"{grant} is not what endpoint {grant.cluster_id} has granted")
    if status == shared_page.REPLAYED:
        return GrantReplayed(
            f"writer {use.writer} of {grant} has sealed its writes already, or another endpoint is that writer"
        )
    if status == shared_page.SPENT:
        return GrantFailed(f"writer {use.writer} of {grant} has failed before; the receiver was told")
    return None
