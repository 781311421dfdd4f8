"""Where a fabric's workers go, and actors beside it: packed on one node, or spread over many. One bundle each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_kvfabric.config import WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, LLMException, LLMStatusCode

_STRATEGIES = {"pack": "STRICT_PACK", "spread": "SPREAD"}
_NEXT_TO_NOTHING = {"CPU": 0.001}  # Ray refuses an empty bundle


class Reserved(NamedTuple):
    """Room, and where in it each bundle lies."""

    group: PlacementGroup
    places: list[PlacementGroupSchedulingStrategy]


def place(
    name: str,
    groups: tuple[WorkerGroup, ...],
    placement: str,
    lifetime: str,
    deadline: Deadline,
    made: list[PlacementGroup],
) -> dict[int, PlacementGroupSchedulingStrategy]:
    """A place for each cluster_id, none for the placement `any`; the group made is added to `made`. As `reserve`."""
    if placement == "any":
        return {}
    seats = [(group.first_cluster_id + index, group) for group in groups for index in range(group.count)]
    wanted = [{"CPU": group.num_cpus, **group.resources} for _, group in seats]
    labels = [dict(group.label_selector) for _, group in seats]
    ray_lifetime = "detached" if lifetime == "detached" else None
    reserved = reserve(name, wanted, placement, deadline, labels=labels, ray_lifetime=ray_lifetime)
    made.append(reserved.group)
    return {cluster_id: each for (cluster_id, _), each in zip(seats, reserved.places, strict=True)}


def reserve(
    name: str,
    wanted: Sequence[Mapping[str, float]],
    placement: str,
    deadline: Deadline,
    *,
    labels: list[dict[str, str]] | None = None,
    ray_lifetime: str | None = None,
) -> Reserved:
    """A bundle for each of `wanted`, `pack`ed or `spread`.

    Raises ConfigError, and LLMException (LLM_TIMEOUT) with the bundles and the cluster's resources when there is no
    room; then nothing of it stays.
    """
    if placement not in _STRATEGIES:
        raise ConfigError(f"placement must be one of {', '.join(_STRATEGIES)}, got {placement!r}")
    bundles = [_bundle(each) for each in wanted]
    group = placement_group(
        bundles,
        strategy=_STRATEGIES[placement],
        name=name,
        lifetime=ray_lifetime,
        bundle_label_selector=labels if labels and any(labels) else None,
    )
    with ExitStack() as undo:
        undo.callback(remove_placement_group, group)
        try:
            ray.get(group.ready(), timeout=deadline.remaining_s)
        except (GetTimeoutError, RayError):
            raise no_room(f"to {placement} {bundles}") from None
        undo.pop_all()
    places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=at) for at in range(len(bundles))]
    return Reserved(group, places)


def _bundle(wanted: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in wanted.items() if amount > 0} or _NEXT_TO_NOTHING


def no_room(wanted: str) -> LLMException:
    has = {name: amount for name, amount in _cluster_resources().items() if not name.startswith("node:")}
    return LLMException(f"no room {wanted}; the cluster has {has}", status_code=LLMStatusCode.LLM_TIMEOUT)


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
