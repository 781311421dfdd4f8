"""Who ends with whom: job fabrics with their driver, detached ones when they are told to; the shipped configs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import ray
from ray.util import list_named_actors, placement_group_table

from ray_kvfabric.actors.names import belongs
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.errors import ConfigError, LLMException, NotLinked
from ray_kvfabric.fabric import Fabric, down
from tests.integration.conftest import config, eventually
from tests.shipped_configs import CONFIGS, comes_up_pushes_and_goes_down

pytestmark = pytest.mark.ray

DRIVER = """
import json, sys, time
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.fabric import Fabric
address, settings = sys.argv[1:]
fabric = Fabric.start(FabricConfig.model_validate_json(settings), address=address)
pids = [member.endpoint.pid for member in fabric.members()] + [fabric.status()["scheduler"]["pid"]]
print(json.dumps(pids), flush=True)
time.sleep(600)
"""


def without_devices(settings: FabricConfig) -> FabricConfig:
    """The same with DEVICE caches in host memory; tests/emulator runs them as they are."""
    groups = [
        group.model_copy(update={"endpoint": group.endpoint.model_copy(update={"emulated_device": "host"})})
        for group in settings.groups
    ]
    return settings.model_copy(update={"groups": tuple(groups)})


def start_and_kill_a_driver(address: str, settings: FabricConfig) -> list[int]:
    """The processes of the fabric that a driver of its own started before it was killed."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, settings.model_dump_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with driver:
        lines = iter(driver.stdout.readline, "")
        pids = json.loads(next(line for line in lines if line.startswith("[")))
        os.kill(driver.pid, signal.SIGKILL)
    return pids


def actors_of(fabric: str) -> list[str]:
    named = list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if belongs(each["name"], fabric))


def placements_of(fabric: str) -> list[dict[str, object]]:
    rows = placement_group_table().values()
    return [row for row in rows if belongs(row["name"], fabric) and row["state"] != "REMOVED"]


def two_workers(lifetime: str) -> FabricConfig:
    group = {"name": "all", "first_cluster_id": 1, "count": 2, "num_cpus": 0}
    return config(lifetime=lifetime, groups=[group])


def test_a_job_fabric_is_gone_after_its_driver_was_killed(ray_cluster) -> None:
    settings = two_workers("job")
    pids = start_and_kill_a_driver(ray_cluster, settings)
    eventually(lambda: not actors_of(settings.name), 20, "no actor has its name")
    eventually(lambda: not any(map(psutil.pid_exists, pids)), 20, "no process of it lives")


def test_a_detached_fabric_outlives_its_driver_until_it_is_taken_down(ray_cluster) -> None:
    settings = two_workers("detached")
    pids = start_and_kill_a_driver(ray_cluster, settings)
    with Fabric.connect(settings.name) as visitor:
        assert visitor.lifetime == "detached"
        assert [each.endpoint.cluster_id for each in visitor.members()] == [1, 2]
    assert all(map(psutil.pid_exists, pids))
    assert down(settings.name) == 3
    eventually(lambda: not any(map(psutil.pid_exists, pids)), 20, "no process of it lives")
    assert not actors_of(settings.name)
    with pytest.raises(NotLinked, match=settings.name):
        down(settings.name)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[!s]*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_config_comes_up_as_it_says_and_goes_down(ray_cluster, file) -> None:
    settings = without_devices(FabricConfig.from_file(file))
    comes_up_pushes_and_goes_down(settings)
    assert not placements_of(settings.name)
    npus = sum(group.count * group.resources.get("NPU", 0) for group in settings.groups)
    eventually(lambda: ray.available_resources()["NPU"] == 16, 10, f"{npus} NPUs are free again")


def test_workers_that_find_no_room_say_what_they_wanted_and_leave_nothing(fabric) -> None:
    packed = config(groups=[{"name": "big", "first_cluster_id": 1, "count": 2, "num_cpus": 7}]).groups
    with pytest.raises(LLMException, match=r"no room to pack .*'CPU': 7.0.*; the cluster has"):
        fabric.add_workers(*packed, placement="pack", timeout_s=1.0)
    lunar = config(groups=[{"name": "moon", "first_cluster_id": 1, "resources": {"moon": 1}}]).groups
    with pytest.raises(LLMException, match=r"no room for worker 1 .*'moon': 1"):
        fabric.add_workers(*lunar, timeout_s=1.0)
    assert fabric.members() == []
    assert actors_of(fabric.name) == [f"kvfabric:{fabric.name}:scheduler"]
    eventually(lambda: not placements_of(fabric.name), 5, "the placement is free")


@ray.remote(num_cpus=1)
class Engine:
    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def test_room_for_actors_of_any_class_is_given_back_with_the_fabric_that_reserved_it(ray_cluster) -> None:
    free = ray.available_resources()["CPU"]
    with Fabric.connect("with-room") as fabric:
        with pytest.raises(ConfigError, match="placement must be one of pack, spread, got 'anywhere'"):
            fabric.reserve({"CPU": 1}, placement="anywhere")
        with pytest.raises(LLMException, match=r"no room to pack .*'CPU': 99"):
            fabric.reserve({"CPU": 1}, {"CPU": 99}, timeout_s=1.0)
        engines = [
            Engine.options(scheduling_strategy=place).remote() for place in fabric.reserve({"CPU": 1}, {"CPU": 1})
        ]
        assert len({ray.get(each.node.remote()) for each in engines}) == 1
        assert len(placements_of("with-room")) == 1
    eventually(lambda: not placements_of("with-room"), 5, "the placement is free")
    eventually(lambda: ray.available_resources()["CPU"] == free, 10, "its CPUs are free again")
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(engines[0].node.remote())
