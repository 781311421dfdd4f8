"""Asking a peer that a link is open to: what it answers, or that it is gone."""

from __future__ import annotations

from typing import Any

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed, NotLinked, PeerLost, StaleIncarnation
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import EndpointInfo


def ask(
    peers: PeerCalls | None, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline
) -> Any:
    """Raises what the peer raises, PeerLost, TransferTimeout, and LinkFailed without a control connection."""
    if peers is None:
        raise LinkFailed(f"this endpoint has no control connection to ask {peer}: {question}")
    try:
        return peers.ask(peer, question, arguments, deadline)
    except (NotLinked, StaleIncarnation) as error:
        raise PeerLost(f"{peer} is no longer in the fabric: {error}") from None
