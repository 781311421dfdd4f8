"""`kvfabric run`: programs started in several terminals share one Ray, which lives as long as any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = [sys.executable, "-c", "from ray_kvfabric.cli.main import main; main(prog_name='kvfabric')", "run"]
STORM = Path(__file__).parent / "keeper_storm.py"
SERVERS = {"gcs_server", "raylet"}
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

    def refusal(self) -> str:
        """The one line that it says instead of running the program."""
        _, error = self.process.communicate(timeout=90)
        assert (self.process.returncode, error.count("\n")) == (1, 1), error
        return str(error)

    def kill(self) -> None:
        self.process.kill()
        with self.process:  # closes its pipes and waits
            pass


@pytest.fixture
def runtime_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def open_terminal(runtime_dir: Path) -> Iterator[Callable[..., Terminal]]:
    """Whatever a test did, no keeper of its folder is left after it."""
    opened: list[Terminal] = []

    def open_one(*options: str, **environment: str) -> Terminal:
        opened.append(Terminal(runtime_dir, *options, **environment))
        return opened[-1]

    yield open_one
    for each in opened:
        each.kill()
    eventually(lambda: not keepers(runtime_dir), ENDS_S, "the keeper has ended")


def keepers(runtime_dir: Path) -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if {"ray_kvfabric.cli.keeper", str(runtime_dir / "kvfabric")} <= set(each.info["cmdline"] or ())
    ]


def ray_of(keeper: psutil.Process) -> list[psutil.Process]:
    """The processes of the Ray that this keeper started."""
    assert names_of(keeper) >= SERVERS
    return keeper.children(recursive=True)


def names_of(keeper: psutil.Process) -> set[str]:
    try:
        return {each.name() for each in keeper.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def only_keeper(runtime_dir: Path) -> psutil.Process:
    [keeper] = keepers(runtime_dir)
    return keeper


def test_two_programs_started_at_once_meet_in_a_ray_that_ends_with_the_last(open_terminal, runtime_dir) -> None:
    terminals = [open_terminal("--address", "local") for _ in range(2)]
    addresses = {terminal.address() for terminal in terminals}
    assert len(addresses) == 1
    everything = [only_keeper(runtime_dir), *ray_of(only_keeper(runtime_dir))]
    terminals[0].kill()
    late = open_terminal("--address", "local")
    assert {late.address()} == addresses
    late.end()
    terminals[1].end()
    eventually(lambda: not any(map(psutil.Process.is_running, everything)), ENDS_S, "keeper and Ray have ended")
    assert not (runtime_dir / "kvfabric" / "address").exists()


def test_a_program_killed_while_ray_starts_leaves_a_ray_that_the_next_one_takes(open_terminal, runtime_dir) -> None:
    first = open_terminal("--address", "local")
    eventually(lambda: any("gcs_server" in names_of(each) for each in keepers(runtime_dir)), 20, "Ray is starting")
    first.kill()
    second = open_terminal("--address", "local")
    second.address()
    keeper = only_keeper(runtime_dir)
    assert keeper.create_time() < psutil.Process(second.process.pid).create_time()
    second.kill()
    eventually(lambda: not keeper.is_running(), ENDS_S, "it ends though its last program was killed")


def test_after_a_killed_keeper_the_next_program_starts_another_ray(open_terminal, runtime_dir) -> None:
    first = open_terminal("--address", "local")
    address, keeper = first.address(), only_keeper(runtime_dir)
    servers = [each for each in ray_of(keeper) if each.name() in SERVERS]  # its agents find out by themselves, later
    os.kill(keeper.pid, signal.SIGKILL)
    second = open_terminal("--address", "local")
    assert second.address() != address
    second.end()
    first.kill()
    eventually(lambda: not any(map(psutil.Process.is_running, servers)), ENDS_S, "the first Ray has ended")


def test_a_keeper_whose_ray_is_gone_ends_and_the_next_program_starts_another(open_terminal, runtime_dir) -> None:
    first = open_terminal("--address", "local")
    first.address()
    for process in ray_of(only_keeper(runtime_dir)):
        if process.name() == "gcs_server":
            process.kill()
    second = open_terminal("--address", "local")
    second.address()
    first.kill()
    second.end()


def test_a_running_ray_is_joined_and_left_as_it_is(open_terminal, runtime_dir, ray_cluster) -> None:
    terminal = open_terminal(RAY_ADDRESS=ray_cluster, RAY_AUTH_MODE=os.environ["RAY_AUTH_MODE"])
    assert terminal.address() == ray_cluster
    terminal.end()
    assert not (runtime_dir / "kvfabric").exists()


def test_a_ray_of_this_host_is_found(open_terminal, runtime_dir, ray_cluster) -> None:
    terminal = open_terminal(RAY_AUTH_MODE=os.environ["RAY_AUTH_MODE"])
    address = terminal.address()
    told = json.loads((runtime_dir / "kvfabric" / "address").read_text())
    assert (told["address"], told["is_own"]) == (address, False)
    refused = open_terminal("--address", "local")
    assert refused.refusal().startswith(f"kvfabric: other runs use the Ray cluster at {address}")
    terminal.end()


def test_a_ray_that_does_not_start_is_one_line_with_the_end_of_the_log(open_terminal, runtime_dir) -> None:
    (runtime_dir / "ray.py").write_text("raise RuntimeError('this Ray is broken')")
    error = open_terminal("--address", "local", PYTHONPATH=str(runtime_dir)).refusal()
    assert error.startswith("kvfabric: no Ray cluster could be started (it has 60 s): ")
    assert "RuntimeError: this Ray is broken" in error
    assert str(runtime_dir / "kvfabric" / "log") in error


def test_runs_and_keepers_never_miss_each_other(tmp_path: Path) -> None:
    storm = subprocess.run(
        [sys.executable, str(STORM), str(tmp_path), "200"], capture_output=True, text=True, timeout=120
    )
    assert (storm.stdout, storm.stderr) == ("", "")
