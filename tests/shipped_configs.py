"""A configuration of configs/ comes up as it says, pushes, and goes down, whatever its caches lie in."""

from __future__ import annotations

from pathlib import Path

from ray_kvfabric import BlocksCacheKey
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.fabric import down, up
from ray_kvfabric.route import CacheRef

CONFIGS = Path(__file__).parents[1] / "configs"


def comes_up_pushes_and_goes_down(settings: FabricConfig) -> set[str]:
    """The transports that the pushes took."""
    fabric = up(settings)
    taken = set()
    try:
        members = fabric.members()
        wanted = {group.first_cluster_id + n: group for group in settings.groups for n in range(group.count)}
        assert [each.endpoint.cluster_id for each in members] == list(wanted)
        assert all(each.endpoint.role == wanted[each.endpoint.cluster_id].role for each in members)
        assert all(len(each.caches) == len(wanted[each.endpoint.cluster_id].caches) for each in members)
        nodes = {each.endpoint.node for each in members}
        assert settings.placement == "any" or len(nodes) == {"pack": 1, "spread": 2}[settings.placement]
        keyed = [cluster_id for cluster_id, group in wanted.items() if group.caches]
        for source, target in zip(keyed, reversed(keyed), strict=True):
            cache_id = next(iter(members[list(wanted).index(source)].caches))
            receipt = fabric.push_blocks(BlocksCacheKey(target), CacheRef(source, cache_id), [0], [1], timeout_s=30)
            taken.add(receipt.transport)
    finally:
        assert down(settings.name) == len(wanted) + 1
    return taken
