"""status, up, down, explain and doctor against a real Ray; each command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CONFIG = """
name: {name}
groups:
  - {{name: prefill, first_cluster_id: 0, num_cpus: 0, caches: [{{num_tensors: 2, shape: [8, 64]}}]}}
  - {{name: decode, first_cluster_id: 1, num_cpus: 0, caches: [{{num_tensors: 2, shape: [8, 64]}}]}}
"""


def kvfabric(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from ray_kvfabric.cli.main import main; main(prog_name='kvfabric')"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def running(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A fabric that `kvfabric up` started: its name and Ray's address."""
    name = f"cli-{os.getpid()}"
    file = tmp_path_factory.mktemp("cli") / "fabric.yaml"
    file.write_text(CONFIG.format(name=name))
    started = kvfabric("up", str(file), "--json", "--address", ray_cluster)
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout) == {"fabric": name, "lifetime": "detached", "endpoints": [0, 1]}
    yield name, ray_cluster
    ended = kvfabric("down", name, "--address", ray_cluster)
    assert ended.stdout == f"fabric {name}: down, 3 actors ended\n", ended.stderr


def test_status_of_a_running_fabric(running: tuple[str, str]) -> None:
    name, address = running
    answer = kvfabric("status", "--name", name, "--address", address, "--json")
    seen = json.loads(answer.stdout)
    assert seen["fabric"] == name
    assert set(seen["endpoints"]) == {"0", "1"}
    assert seen["endpoints"]["0"]["caches"][0]["bytes"] == 2 * 8 * 64 * 2


def test_status_as_tables(running: tuple[str, str]) -> None:
    name, address = running
    answer = kvfabric("status", "--name", name, "--address", address)
    assert answer.returncode == 0, answer.stderr
    assert f"fabric {name}: 2 endpoints" in answer.stdout
    assert "8x64" in answer.stdout


def test_explain_chooses_shared_memory(running: tuple[str, str]) -> None:
    name, address = running
    answer = kvfabric("explain", "1", "--from", "0", "--name", name, "--address", address, "--json")
    (choice,) = json.loads(answer.stdout)
    assert (choice["from"], choice["to"], choice["transport"]) == (0, 1, "shared_memory")
    refusals = {each["transport"]: each["refusal"] for each in choice["verdicts"]}
    assert refusals["loopback"].startswith("another process")
    assert refusals["process_vm"] is None


def test_explain_of_an_unknown_endpoint(running: tuple[str, str]) -> None:
    name, address = running
    answer = kvfabric("explain", "9", "--name", name, "--address", address)
    assert (answer.returncode, answer.stderr) == (
        1,
        "kvfabric: no endpoint has cluster_id 9; known: 0, 1\n",
    )


def test_a_second_up_and_a_wrong_down_are_refused(running: tuple[str, str], tmp_path: Path) -> None:
    name, address = running
    file = tmp_path / "again.yaml"
    file.write_text(CONFIG.format(name=name))
    again = kvfabric("up", str(file), "--address", address)
    assert again.returncode == 1
    assert again.stderr.startswith(f"kvfabric: a fabric '{name}' runs already")
    other = kvfabric("down", "nobody", "--address", address)
    assert (other.returncode, other.stderr) == (1, "kvfabric: no fabric 'nobody' runs in this Ray cluster\n")


def test_status_of_no_fabric(ray_cluster: str) -> None:
    answer = kvfabric("status", "--name", "nobody", "--address", ray_cluster)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("kvfabric: no fabric 'nobody' runs in this Ray cluster")


def test_doctor_finds_the_running_cluster(ray_cluster: str) -> None:
    answer = kvfabric("doctor", "--json", RAY_ADDRESS=ray_cluster)
    assert answer.returncode == 0, answer.stdout
    assert "nodes, CPU" in json.loads(answer.stdout)["ray"]["cluster"]["detail"]
