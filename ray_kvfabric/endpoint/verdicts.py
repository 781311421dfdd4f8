"""What a board says of its grant, as a receipt or an error that names both sides' last state."""

from __future__ import annotations

import copy
import time

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.control.grants import Ending
from ray_kvfabric.endpoint.issued import IssuedGrant, Outcome
from ray_kvfabric.errors import (
    GrantExpired,
    GrantFailed,
    GrantIncomplete,
    GrantRevoked,
    LLMException,
    LLMStatusCode,
    ParamInvalid,
    PeerLost,
)
from ray_kvfabric.grant import Grant, GrantReceipt, Share
from ray_kvfabric.transport import _shared_page as shared_page

_STATES = ("has not come", "was writing", "has sealed", "has failed")


def board_shape(grant: Grant) -> tuple[int, int, int, bool]:
    """Writers, tensors, blocks, digests."""
    return grant.writers, grant.num_tensors, len(grant.blocks), grant.verify is not None


def share_of(grant: Grant, layer: int | None = None) -> Share:
    """All of the grant, or the tensors of one layer of it. Raises ParamInvalid."""
    if layer is None:
        return 0, grant.num_tensors, 0, len(grant.blocks)
    check_int(layer, "uint32", "layer")
    if layer not in grant.layers:
        raise ParamInvalid(f"layer is {layer}, {grant} has layers {grant.layers!r}")
    first = max(layer * grant.tensors_per_layer - grant.first_tensor, 0)
    return first, min(grant.tensors_per_layer, grant.num_tensors - first), 0, len(grant.blocks)


def receipt_of(page: shared_page.SharedPage, issued: IssuedGrant) -> GrantReceipt:
    grant = issued.grant
    writers = [page.writer(grant.board, index) for index in range(grant.writers)]
    return GrantReceipt(
        grant.grant_id,
        grant.request_id,
        grant.cache_id,
        tuple(writer[3] for writer in writers),
        len(grant.layers),
        len(grant.blocks),
        sum(writer[4] for writer in writers),
        sum(writer[5] for writer in writers),
        issued.granted_ns,
        max(writer[6] for writer in writers),
        grant.verify,
    )


def writer_error(page: shared_page.SharedPage, issued: IssuedGrant, status: int, index: int) -> LLMException:
    """Writer `index` has failed, or was found dead."""
    _, incarnation, pid, cluster_id, _, _, _, _, code, text = page.writer(issued.grant.board, index)
    if status == shared_page.PEER_DEAD:
        who = f"endpoint {cluster_id} (incarnation {incarnation:016x}, pid {pid})"
        return PeerLost(f"{issued.grant}: writer {index}, {who}, died; {_last_states(page, issued)}")
    what = f"{issued.grant}: writer {index} failed: {text}; {_last_states(page, issued)}"
    if code == LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR:
        return PeerLost(what)
    return GrantFailed(what, status_code=LLMStatusCode(code))


def incomplete_error(page: shared_page.SharedPage, issued: IssuedGrant) -> GrantIncomplete:
    """Every writer has sealed and something is missing; it names the first layer and block that is."""
    grant = issued.grant
    count = len(grant.blocks)
    tensor = next(i for i in range(grant.num_tensors) if page.covered(grant.board, (i, 1, 0, count)) < count)
    at = next(i for i in range(count) if not page.covered(grant.board, (tensor, 1, i, 1)))
    layer = (grant.first_tensor + tensor) // grant.tensors_per_layer
    return GrantIncomplete(
        f"{grant}: every writer has sealed, and block {grant.blocks[at]} (position {at}) of layer {layer} was not "
        f"written; {_last_states(page, issued)}"
    )


def ended_error(page: shared_page.SharedPage, issued: IssuedGrant, ending: Ending) -> LLMException:
    states = _last_states(page, issued)
    if ending is Ending.EXPIRED:
        return GrantExpired(f"{issued.grant} expired before it was complete; {states}")
    if ending is Ending.REVOKED:
        return GrantRevoked(f"{issued.grant} was revoked; {states}")
    return GrantFailed(f"{issued.grant} has {ending.value}; {states}")


def _last_states(page: shared_page.SharedPage, issued: IssuedGrant) -> str:
    grant = issued.grant
    here = page.covered(grant.board, share_of(grant)) / (grant.num_tensors * len(grant.blocks))
    told = "; ".join(_last_state(page, grant, index) for index in range(grant.writers))
    age = (time.monotonic_ns() - issued.granted_ns) / 1e9
    return f"here {here:.0%} has landed {age:.3f} s after the grant, {told}"


def _last_state(page: shared_page.SharedPage, grant: Grant, index: int) -> str:
    state, _, _, cluster_id, nbytes, transfers, seen_ns, _, _, _ = page.writer(grant.board, index)
    if state == shared_page.WAITED_FOR:
        named = f" (endpoint {grant.sources[index]})" if grant.sources else ""
        return f"writer {index}{named} {_STATES[state]}"
    ago = (time.monotonic_ns() - seen_ns) / 1e9
    return (
        f"writer {index} (endpoint {cluster_id}) {_STATES[state]}: {nbytes} bytes in {transfers} pushes, "
        f"last seen {ago:.3f} s ago"
    )


def outcome_name(outcome: Outcome | None) -> str:
    for kind, ending in (
        (GrantReceipt, Ending.LANDED),
        (GrantExpired, Ending.EXPIRED),
        (GrantRevoked, Ending.REVOKED),
    ):
        if isinstance(outcome, kind):
            return ending.value
    return Ending.FAILED.value


def told(outcome: Outcome | None) -> GrantReceipt:
    """The receipt; an error is raised as a copy, so that no caller's frames stay with it."""
    if isinstance(outcome, GrantReceipt):
        return outcome
    assert outcome is not None
    raise copy.copy(outcome)
