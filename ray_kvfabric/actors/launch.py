"""Starting and ending a fabric's actors. The only place that says ray.remote.

lifetime job        scheduler and workers belong to the process that started them and end with it
lifetime detached   they stay until `end_fabric`, or until `retire` finds no endpoint left
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorUnavailableError,
    RayActorError,
)
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_kvfabric.actors.edge import RETRY_S, fetch, once, peer_errors, repeated
from ray_kvfabric.actors.endpoint import Seat
from ray_kvfabric.actors.names import belongs, placement_name, scheduler_name, worker_name
from ray_kvfabric.actors.placement import no_room, place
from ray_kvfabric.actors.scheduler import SchedulerActor
from ray_kvfabric.actors.worker import CONCURRENCY_GROUPS, CacheWorker
from ray_kvfabric.config import NAMESPACE, SchedulerSettings, WorkerGroup
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ClusterIdTaken, LLMException, LLMStatusCode, NotLinked, TransferTimeout

PATIENCE_S = 5.0
SETTLE_S = 2.0
MAX_PARKED_CALLS = 10_000  # each endpoint parks one poll at the scheduler


@dataclass(slots=True)
class Started:
    """Actors that this process started, and has to keep a handle of while they shall live."""

    scheduler: ActorHandle[Any] | None = None
    workers: dict[int, ActorHandle[Any]] = field(default_factory=dict)
    placements: list[PlacementGroup] = field(default_factory=list)

    def end(self, deadline: Deadline) -> None:
        """Kills them; what they held is freed by their processes' end."""
        for actor in (*self.workers.values(), *([self.scheduler] if self.scheduler else [])):
            ray.kill(actor)
        for placement in self.placements:
            remove_placement_group(placement)
        _await_deaths([*self.workers.values()], deadline)
        self.scheduler = None
        self.workers.clear()
        self.placements.clear()


def scheduler_exists(fabric: str) -> bool:
    return _find(scheduler_name(fabric)) is not None


def _find(name: str) -> ActorHandle[Any] | None:
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def start_scheduler(
    fabric: str, settings: SchedulerSettings, lifetime: str, deadline: Deadline
) -> tuple[ActorHandle[Any] | None, str]:
    """The scheduler, if this call made it, and its lifetime; one that runs already stays as it is.

    One that is ending is waited for, and followed by another.
    """
    founder = uuid.uuid4().hex
    while True:
        found = _meet_scheduler(fabric, settings, lifetime, founder, deadline)
        if found is not None:
            scheduler, introduction = found
            return (scheduler if introduction["founder"] == founder else None), introduction["lifetime"]
        if deadline.passed:
            raise TransferTimeout(f"the ending fabric {fabric!r} was not gone in time")
        time.sleep(RETRY_S)


def _meet_scheduler(
    fabric: str, settings: SchedulerSettings, lifetime: str, founder: str, deadline: Deadline
) -> tuple[ActorHandle[Any], dict[str, Any]] | None:
    """The scheduler and its introduction; None for one that is ending, or on its way back."""
    scheduler_class: Any = ray.remote(SchedulerActor)
    options = scheduler_class.options(
        name=scheduler_name(fabric),
        namespace=NAMESPACE,
        lifetime=_ray_lifetime(lifetime),
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=MAX_PARKED_CALLS,
    )
    with peer_errors(f"the scheduler of fabric {fabric!r}"):
        try:
            scheduler: ActorHandle[Any] = options.remote(settings, lifetime, founder)
            introduction = fetch(once(scheduler.introduce).remote(), deadline, f"the start of fabric {fabric!r}")
        except ActorDiedError as error:
            if error.actor_init_failed:
                raise
            return None
        except ActorUnavailableError:
            return None
        except ValueError:  # its name was taken when it was to be made, and free when it was looked for
            return None
    return None if introduction["is_ending"] else (scheduler, introduction)


def retire(fabric: str, deadline: Deadline) -> bool:
    """Ends a fabric without endpoints; True when its name is free. False for one with endpoints, and for none."""
    if not ray.is_initialized():  # looking for it would start another Ray
        return False
    while (scheduler := _find(scheduler_name(fabric))) is not None:
        try:
            is_ending = bool(fetch(once(scheduler.retire).remote(), deadline, f"the end of fabric {fabric!r}"))
        except ActorDiedError:  # somebody else ended it
            return False
        except RayActorError:  # it is on its way back
            if deadline.passed:
                raise TransferTimeout(f"the scheduler of fabric {fabric!r} did not come back in time") from None
            time.sleep(RETRY_S)
            continue
        if is_ending:
            ray.kill(scheduler)
            _await_deaths([scheduler], deadline)
        return is_ending
    return False


def start_workers(
    fabric: str,
    groups: tuple[WorkerGroup, ...],
    *,
    placement: str,
    lifetime: str,
    deadline: Deadline,
    worker_class: type[CacheWorker] = CacheWorker,
    max_restarts: int = 0,
    arguments: dict[str, Any] | None = None,
) -> Started:
    """All workers of `groups`, announced; if one fails to start, none stays. Raises its error."""
    started = Started()
    try:
        name = placement_name(fabric, groups[0].first_cluster_id)
        strategies = place(name, groups, placement, lifetime, deadline, started.placements)
        for group in groups:
            for cluster_id in range(group.first_cluster_id, group.first_cluster_id + group.count):
                options = _worker_options(fabric, cluster_id, group, lifetime, max_restarts, strategies)
                seat = Seat(fabric, cluster_id, group.endpoint, group.role, group.caches)
                started.workers[cluster_id] = _start_worker(worker_class, options, seat, arguments or {}, deadline)
        _await_starts(fabric, started.workers, groups, deadline)
    except BaseException:
        try:
            _settle([*started.workers.values()], deadline)
        finally:
            started.end(Deadline.after(5.0))
        raise
    return started


def _ray_lifetime(lifetime: str) -> str:
    return "detached" if lifetime == "detached" else "non_detached"


def _worker_options(
    fabric: str,
    cluster_id: int,
    group: WorkerGroup,
    lifetime: str,
    max_restarts: int,
    strategies: dict[int, PlacementGroupSchedulingStrategy],
) -> dict[str, Any]:
    resources = dict(group.resources)
    options: dict[str, Any] = {
        "name": worker_name(fabric, cluster_id),
        "namespace": NAMESPACE,
        "lifetime": _ray_lifetime(lifetime),
        "num_cpus": group.num_cpus,
        "num_gpus": resources.pop("GPU", 0),  # the one resource that Ray wants by another argument
        "resources": resources,
        "max_restarts": max_restarts,
    }
    if cluster_id in strategies:
        options["scheduling_strategy"] = strategies[cluster_id]
    elif group.label_selector:
        options["label_selector"] = dict(group.label_selector)
    return options


def _start_worker(
    worker_class: type[CacheWorker],
    options: dict[str, Any],
    seat: Seat,
    arguments: dict[str, Any],
    deadline: Deadline,
) -> ActorHandle[Any]:
    """Takes the name of a dead worker over. Raises ClusterIdTaken for a living one."""
    wrap: Any = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)  # type: ignore[call-overload]
    remote_class = wrap(worker_class).options(**options)
    while True:
        handle = _create(remote_class, seat, arguments)
        if handle is not None:
            return handle
        if deadline.passed or _lives(options["name"]):
            raise ClusterIdTaken(f"fabric {seat.fabric!r} has a live worker {seat.cluster_id} already")
        time.sleep(RETRY_S)


def _create(remote_class: Any, seat: Seat, arguments: dict[str, Any]) -> ActorHandle[Any] | None:
    """None while another actor has the name."""
    try:
        handle: ActorHandle[Any] = remote_class.remote(seat, **arguments)
    except ActorAlreadyExistsError:
        return None
    return handle


def _lives(name: str) -> bool:
    """False only for an actor that is known to be dead; its name is then freed.

    Ray leaves the name with a dead actor for as long as its creator keeps a handle.
    """
    actor = _find(name)
    if actor is None:
        return False
    try:
        repeated(actor.ping.remote, Deadline.after(PATIENCE_S), name)
    except ActorDiedError:
        ray.kill(actor)
        return False
    except TransferTimeout:
        pass
    return True


def _await_starts(
    fabric: str, workers: dict[int, ActorHandle[Any]], groups: tuple[WorkerGroup, ...], deadline: Deadline
) -> None:
    for cluster_id, worker in workers.items():
        who = f"worker {cluster_id} of fabric {fabric!r}"
        try:
            with peer_errors(who):
                repeated(worker.ping.remote, deadline, who)
        except TransferTimeout:
            wanted = [f"{group.count} x CPU {group.num_cpus:g}, {group.resources}" for group in groups]
            raise no_room(f"for {who} of {wanted}") from None


def _settle(actors: list[ActorHandle[Any]], deadline: Deadline) -> None:
    """Until each has started or failed, SETTLE_S at most: Ray tells the user of one that is killed while it starts."""
    calls = [once(actor.__ray_ready__).remote() for actor in actors]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=min(SETTLE_S, deadline.remaining_s))


def find_worker(fabric: str, cluster_id: int) -> ActorHandle[Any]:
    """The actor of an endpoint. Raises NotLinked when it has none."""
    worker = _find(worker_name(fabric, cluster_id))
    if worker is None:
        raise NotLinked(f"fabric {fabric!r} has no worker {cluster_id}")
    return worker


def end_fabric(fabric: str, deadline: Deadline) -> int:
    """Kills all actors of the fabric, whoever started them, and frees its placements. Returns how many."""
    named = [each["name"] for each in list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE]
    found = [_find(name) for name in named if belongs(name, fabric)]
    actors = [actor for actor in found if actor is not None]
    for actor in actors:
        ray.kill(actor)
    for placement_id, row in placement_group_table().items():
        if belongs(row["name"], fabric) and row["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement_id))))
    _await_deaths(actors, deadline)
    return len(actors)


def _await_deaths(actors: list[ActorHandle[Any]], deadline: Deadline) -> None:
    """Until calls to all of them fail: then their names and processes are gone."""
    calls = [once(actor.__ray_ready__).remote() for actor in actors]
    if not calls:
        return
    _, alive = ray.wait(calls, num_returns=len(calls), timeout=deadline.remaining_s)
    if alive:
        text = f"{len(alive)} of {len(calls)} actors did not end in time"
        raise LLMException(text, status_code=LLMStatusCode.LLM_TIMEOUT)
