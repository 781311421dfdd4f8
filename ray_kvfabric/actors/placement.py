"""Where a fabric's workers go, and actors beside it: packed on one node, or spread over many. One bundle each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_kvfabric.config import WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, LLMException, LLMStatusCode

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
    """A place for each cluster_id, none for the placement `any`. Raises as `reserve`."""
    if placement == "any":
        return {}
    seats = [(group.first_cluster_id + index, group) for group in groups for index in range(group.count)]
    bundles = [_bundle({"CPU": group.num_cpus, **group.resources}) for _, group in seats]
    labels = [dict(group.label_selector) for _, group in seats]
    ray_lifetime = "detached" if lifetime == "detached" else None
    places = reserve(name, bundles, placement, deadline, made, labels=labels, ray_lifetime=ray_lifetime)
    return {cluster_id: place for (cluster_id, _), place in zip(seats, places, strict=True)}


def reserve(
    name: str,
    bundles: list[dict[str, float]],
    placement: str,
    deadline: Deadline,
    made: list[PlacementGroup],
    *,
    labels: list[dict[str, str]] | None = None,
    ray_lifetime: str | None = None,
) -> list[PlacementGroupSchedulingStrategy]:
    """A place for each bundle, `pack`ed or `spread`; the placement group is added to `made`.

    Raises LLMException (LLM_TIMEOUT) with the bundles and the cluster's resources when there is no room.
    """
    reserved = placement_group(
        bundles,
        strategy=_STRATEGIES[placement],
        name=name,
        lifetime=ray_lifetime,
        bundle_label_selector=labels if labels and any(labels) else None,
    )
    made.append(reserved)
    try:
        ray.get(reserved.ready(), timeout=deadline.remaining_s)
    except (GetTimeoutError, RayError):
        raise no_room(f"to {placement} {bundles}") from None
    return [
        PlacementGroupSchedulingStrategy(reserved, placement_group_bundle_index=index) for index in range(len(bundles))
    ]


def _bundle(wanted: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in wanted.items() if amount > 0} or _NEXT_TO_NOTHING


def reserve_places(
    name: str, wanted: Sequence[Mapping[str, float]], placement: str, deadline: Deadline
) -> tuple[PlacementGroup, list[PlacementGroupSchedulingStrategy]]:
    """`reserve` for actors of any class; what was made ends when there is no room. Raises ConfigError as well."""
    if placement not in _STRATEGIES:
        raise ConfigError(f"placement must be one of {', '.join(_STRATEGIES)}, got {placement!r}")
    made: list[PlacementGroup] = []
    try:
        places = reserve(name, [_bundle(each) for each in wanted], placement, deadline, made)
    except BaseException:
        for each in made:
            remove_placement_group(each)
        raise
    return made[0], places


def no_room(wanted: str) -> LLMException:
    has = {name: amount for name, amount in _cluster_resources().items() if not name.startswith("node:")}
    return LLMException(f"no room {wanted}; the cluster has {has}", status_code=LLMStatusCode.LLM_TIMEOUT)


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
