"""`kvfabric run`: programs started in several terminals share one Ray, which lives as long as any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import eventually

pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-c", "from ray_kvfabric.cli.main import main; main(prog_name='kvfabric')", "run"]
STORM = Path(__file__).parent / "keeper_storm.py"
ENDS_S = 30  # from the end of the last program to that of Ray's last process

PROGRAM = """
import sys, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
print(ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()), flush=True)
"""


class Terminal:
    """One `kvfabric run`: the program says its Ray's address, waits for a line, uses Ray, and ends."""

    def __init__(self, runtime_dir: Path, *options: str, **environment: str) -> None:
        script = runtime_dir / "program.py"
        script.write_text(PROGRAM)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        self.process = subprocess.Popen(
            [*COMMAND, *options, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "XDG_RUNTIME_DIR": str(runtime_dir), **environment},
        )

    def address(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line

    def end(self) -> None:
        output, error = self.process.communicate("\n", timeout=60)
        assert (output, self.process.returncode) == ("7\n", 0), error

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def runtime_dir(tmp_path: Path) -> Iterator[Path]:
    """Whatever a test did, no keeper of its folder is left after it."""
    yield tmp_path
    eventually(lambda: not keepers(tmp_path), ENDS_S, "the keeper has ended")


def keepers(runtime_dir: Path) -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if {"ray_kvfabric.cli.keeper", str(runtime_dir / "kvfabric")} <= set(each.info["cmdline"] or ())
    ]


def ray_of(keeper: psutil.Process) -> list[psutil.Process]:
    """The processes of the Ray that this keeper started."""
    found = keeper.children(recursive=True)
    names = {each.name() for each in found}
    assert {"gcs_server", "raylet"} <= names, names
    return found


def only_keeper(runtime_dir: Path) -> psutil.Process:
    [keeper] = keepers(runtime_dir)
    return keeper


def test_two_programs_started_at_once_meet_in_a_ray_that_ends_with_the_last(runtime_dir: Path) -> None:
    terminals = [Terminal(runtime_dir, "--address", "local") for _ in range(2)]
    addresses = {terminal.address() for terminal in terminals}
    assert len(addresses) == 1
    everything = [only_keeper(runtime_dir), *ray_of(only_keeper(runtime_dir))]
    terminals[0].kill()
    late = Terminal(runtime_dir, "--address", "local")
    assert {late.address()} == addresses
    late.end()
    terminals[1].end()
    eventually(lambda: not any(map(psutil.Process.is_running, everything)), ENDS_S, "keeper and Ray have ended")
    assert not (runtime_dir / "kvfabric" / "address").exists()


def test_a_program_killed_while_ray_starts_leaves_a_ray_that_the_next_one_takes(runtime_dir: Path) -> None:
    first = Terminal(runtime_dir, "--address", "local")
    eventually(lambda: bool(keepers(runtime_dir)), 20, "a keeper starts")
    first.kill()
    second = Terminal(runtime_dir, "--address", "local")
    keeper = only_keeper(runtime_dir)
    second.address()
    assert keepers(runtime_dir) == [keeper]
    second.kill()
    eventually(lambda: not keeper.is_running(), ENDS_S, "it ends though its last program was killed")


def test_after_a_killed_keeper_the_next_program_starts_another_ray(runtime_dir: Path) -> None:
    first = Terminal(runtime_dir, "--address", "local")
    address, keeper = first.address(), only_keeper(runtime_dir)
    processes = ray_of(keeper)
    os.kill(keeper.pid, signal.SIGKILL)
    second = Terminal(runtime_dir, "--address", "local")
    assert second.address() != address
    second.end()
    first.kill()
    eventually(lambda: not any(map(psutil.Process.is_running, processes)), ENDS_S, "the first Ray has ended")


def test_a_keeper_whose_ray_is_gone_ends_and_the_next_program_starts_another(runtime_dir: Path) -> None:
    first = Terminal(runtime_dir, "--address", "local")
    first.address()
    for process in ray_of(only_keeper(runtime_dir)):
        if process.name() == "gcs_server":
            process.kill()
    second = Terminal(runtime_dir, "--address", "local")
    second.address()
    first.kill()
    second.end()


def test_a_running_ray_is_joined_and_left_as_it_is(runtime_dir: Path, ray_cluster: str) -> None:
    terminal = Terminal(runtime_dir, RAY_ADDRESS=ray_cluster, RAY_AUTH_MODE=os.environ["RAY_AUTH_MODE"])
    assert terminal.address() == ray_cluster
    terminal.end()
    assert not (runtime_dir / "kvfabric").exists()


def test_a_ray_of_this_host_is_found(runtime_dir: Path, ray_cluster: str) -> None:
    terminal = Terminal(runtime_dir, RAY_AUTH_MODE=os.environ["RAY_AUTH_MODE"])
    address = terminal.address()
    told = json.loads((runtime_dir / "kvfabric" / "address").read_text())
    assert (told["address"], told["is_own"]) == (address, False)
    refused = Terminal(runtime_dir, "--address", "local")
    _, error = refused.process.communicate(timeout=60)
    assert (refused.process.returncode, error.count("\n")) == (1, 1)
    assert error.startswith(f"kvfabric: other runs use the Ray cluster at {address}")
    terminal.end()


def test_a_ray_that_does_not_start_is_one_line_with_the_end_of_the_log(runtime_dir: Path) -> None:
    terminal = Terminal(runtime_dir, "--address", "local", RAY_AUTH_MODE="nonsense")
    _, error = terminal.process.communicate(timeout=90)
    assert (terminal.process.returncode, error.count("\n")) == (1, 1), error
    assert error.startswith("kvfabric: no Ray cluster was started within 60 s: ")
    assert str(runtime_dir / "kvfabric" / "log") in error


def test_runs_and_keepers_never_miss_each_other(tmp_path: Path) -> None:
    storm = subprocess.run(
        [sys.executable, str(STORM), str(tmp_path), "200"], capture_output=True, text=True, timeout=120
    )
    assert (storm.stdout, storm.stderr) == ("", "")
