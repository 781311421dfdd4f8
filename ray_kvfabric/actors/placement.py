"""Where a fabric's workers go: packed on one node, or spread over many. One bundle a worker."""

from __future__ import annotations

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_kvfabric.config import WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, LLMStatusCode

_STRATEGIES = {"pack": "STRICT_PACK", "spread": "SPREAD"}
_NEXT_TO_NOTHING = {"CPU": 0.001}  # Ray refuses an empty bundle


def place(
    name: str,
    groups: tuple[WorkerGroup, ...],
    placement: str,
    lifetime: str,
    deadline: Deadline,
    made: list[PlacementGroup],
) -> dict[int, PlacementGroupSchedulingStrategy]:
    """A bundle for each cluster_id, none for the placement `any`; the group made is added to `made`.

    Raises LLMException (LLM_TIMEOUT) with the bundles and the cluster's resources when there is no room.
    """
    if placement == "any":
        return {}
    seats = [(group.first_cluster_id + index, group) for group in groups for index in range(group.count)]
    bundles = [_bundle(group) for _, group in seats]
    labels = [dict(group.label_selector) for _, group in seats]
    reserved = placement_group(
        bundles,
        strategy=_STRATEGIES[placement],
        name=name,
        lifetime="detached" if lifetime == "detached" else None,
        bundle_label_selector=labels if any(labels) else None,
    )
    made.append(reserved)
    try:
        ray.get(reserved.ready(), timeout=deadline.remaining_s)
    except (GetTimeoutError, RayError):
        raise no_room(f"to {placement} {bundles}") from None
    return {
        cluster_id: PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=index)
        for index, (cluster_id, _) in enumerate(seats)
    }


def _bundle(group: WorkerGroup) -> dict[str, float]:
    wanted = {"CPU": group.num_cpus, **group.resources}
    return {name: amount for name, amount in wanted.items() if amount > 0} or _NEXT_TO_NOTHING


def no_room(wanted: str) -> LLMException:
    has = {name: amount for name, amount in _cluster_resources().items() if not name.startswith("node:")}
    return LLMException(f"no room {wanted}; the cluster has {has}", status_code=LLMStatusCode.LLM_TIMEOUT)


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
