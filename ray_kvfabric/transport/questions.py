"""What transports ask a peer: how it is asked, and how a transfer is told to it in plain tuples.

told      regions, in the addresses of whoever owns them
inside    the same, checked by their owner: a peer may name no byte outside the cache
reached   the same, where another process has mapped the cache
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ray_kvfabric.cache.layout import Region
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed, NotLinked, ParamInvalid, PeerLost, StaleIncarnation
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.plan import LayerSpan, Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo
from ray_kvfabric.transport.base import RemoteCache

FAIL_GRANT = "fail_grant"  # a writer that has no page to write it into says why it will not bring the rest
LONG = frozenset({"carry_out", "hccl_take_part", "hccl_lead"})  # their answers wait for other answers of this kind


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


def tell_plan(plan: Plan) -> dict[str, object]:
    """A plan as fields of a question."""
    return {
        "span": tuple(plan.span),
        "source_blocks": list(plan.source_blocks),
        "target_blocks": list(plan.target_blocks),
    }


def told_plan(copier: Copier, arguments: dict[str, Any]) -> Plan:
    """The plan that a question tells."""
    return Plan(
        LayerSpan(*arguments["span"]),
        copier.BlockList(arguments["source_blocks"], "src_blocks"),
        copier.BlockList(arguments["target_blocks"], "dst_blocks"),
    )


def told(table: RegionTable) -> list[tuple[int, int, int, int]]:
    return [table[index] for index in range(len(table))]


def inside(cache: CacheInfo, regions: Iterable[Sequence[int]]) -> list[Region]:
    """Regions that a peer has named, which must lie in tensors of this cache. Raises ParamInvalid."""
    named = [Region(*region) for region in regions]
    for region in named:
        _holder(cache, region)
    return named


def reached(remote: RemoteCache, regions: Iterable[Sequence[int]]) -> list[Region]:
    """Regions in the owner's addresses, in those at which the opened cache is reached here. Raises ParamInvalid."""
    moved = []
    for region in (Region(*each) for each in regions):
        index = _holder(remote.info, region)
        shift = remote.table[index][0] - remote.info.regions[index].base
        moved.append(region._replace(base=region.base + shift))
    return moved


def _holder(cache: CacheInfo, region: Region) -> int:
    """Which tensor of the cache the region lies in."""
    for index, whole in enumerate(cache.regions):
        if whole.base <= region.base and region.base + region.extent <= whole.base + whole.extent:
            return index
    raise ParamInvalid(f"bytes at {region.base:#x} are named, which lie in no tensor of cache {cache.cache_id}")
