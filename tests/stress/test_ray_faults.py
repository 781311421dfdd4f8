"""Many deaths under Ray: of the scheduler under load, and of a worker that comes back each time."""

from __future__ import annotations

import psutil
import pytest

from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import fabric, ray_cluster  # noqa: F401
from tests.integration.scheduler_load import BACK_S, Load
from tests.integration.test_restarts import (  # noqa: F401
    NEIGHBOUR,
    Footprint,
    Stage,
    check_footprint,
    restart_and_push,
    stage,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCHEDULER_DEATHS = 20
RESTARTS = 50
WARM_UP = 3


def test_no_outcome_is_lost_in_20_deaths_of_the_scheduler(fabric: Fabric) -> None:  # noqa: F811
    load = Load(fabric, pairs=4096)
    back = load.kill_scheduler(SCHEDULER_DEATHS)
    print(f"{load.acknowledged} pushes, back after {sorted(round(each, 2) for each in back)} s")
    load.check()
    assert max(back) < BACK_S


def test_a_neighbour_grows_nothing_in_50_restarts(stage: Stage) -> None:  # noqa: F811
    neighbour = next(each.endpoint for each in stage.fabric.members() if each.endpoint.cluster_id == NEIGHBOUR)
    for number in range(WARM_UP):
        restart_and_push(stage, number)
    before = Footprint.of(neighbour.pid)
    for number in range(RESTARTS):
        restart_and_push(stage, number)
    assert psutil.pid_exists(neighbour.pid)
    assert neighbour in [each.endpoint for each in stage.fabric.members()]
    check_footprint(neighbour.pid, before, RESTARTS)
