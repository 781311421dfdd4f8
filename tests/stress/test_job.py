"""`examples/job` as its README submits it: from another folder, the wheel in its runtime environment, two Ray nodes.

The environment of the nodes holds the built wheel and what `.venv` holds, without the editable install: nothing here
can import the source tree. The worker is on the other node than the job's driver.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.integration.conftest import eventually

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "job"
WORKER, JOB = "100", "900"  # endpoints, as `kvfabric status --json` names them
LEASE_S = 5.0
START_S = 90.0
COMMAND_S = 60.0
FABRIC = f"""
name: jobs
scheduler: {{lease_s: {LEASE_S}, poll_s: 1}}
groups:
  - name: decode
    first_cluster_id: {WORKER}
    num_cpus: 0
    resources: {{second: 1}}
    caches: [{{num_tensors: 8, shape: [32, 16, 8, 128]}}]
"""
# A layer takes longer than a look at the status, so that whoever saw a grant stand finds the job in its middle.
ENDLESS = ("--pushes", "1000", "--layer-seconds", "3")

Status = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A cluster with a fabric, and the folder that is submitted; `python` is the one of its nodes."""

    python: Path
    folder: Path
    address: str
    dashboard: str
    jobs: JobSubmissionClient

    def run(self, *command: str) -> str:
        """Its stdout; run outside the source tree."""
        done = subprocess.run(
            [self.python, *command], cwd=self.folder, env=_environment(self.python),
            capture_output=True, text=True, timeout=COMMAND_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kvfabric(self, *arguments: str) -> str:
        code = "from ray_kvfabric.cli.main import main; main(prog_name='kvfabric')"
        return self.run("-c", code, *arguments, "--address", self.address, "--json")

    def status(self) -> Status:
        seen: Status = json.loads(self.kvfabric("status", "--name", "jobs"))
        return seen

    def submit(self, *arguments: str) -> str:
        """The submission's id."""
        submission = f"job-{time.monotonic_ns()}"
        self.run(
            "-m", "ray.scripts.scripts", "job", "submit", "--no-wait",
            f"--address={self.dashboard}", f"--submission-id={submission}",
            "--working-dir=.", "--runtime-env=runtime_env.yaml",
            "--", "python", "push_job.py", "--fabric", "jobs", *arguments,
        )  # fmt: skip
        return submission

    def ended(self, submission: str, within_s: float) -> JobStatus:
        eventually(lambda: self.jobs.get_job_status(submission).is_terminal(), within_s, "the job ends")
        return self.jobs.get_job_status(submission)

    def succeed(self) -> str:
        """What a job prints that pushes five times."""
        submission = self.submit("--pushes", "5")
        ended, log = self.ended(submission, START_S), self.jobs.get_job_logs(submission)
        assert ended is JobStatus.SUCCEEDED, log
        return log

    @contextmanager
    def pushing(self) -> Iterator[tuple[str, int]]:
        """A job in the middle of a push, the worker having pushed to it before: its id, and its driver's process."""
        submission = self.submit(*ENDLESS)
        seen: Status = {}

        def is_in_the_middle() -> bool:
            seen.update(self.status()["endpoints"])
            return bool(seen[WORKER]["links"]) and seen[WORKER]["grants"]["blocks"] == 32

        try:
            eventually(is_in_the_middle, START_S, "the job pushes")
            assert [link["to"] for link in seen[WORKER]["links"]] == [int(JOB)]
            assert len(seen[JOB]["caches"]) == 2
            assert seen[JOB]["node"] != seen[WORKER]["node"]
            yield submission, seen[JOB]["pid"]
        finally:
            self.jobs.stop_job(submission)
            self.ended(submission, COMMAND_S)


def held(seen: Status) -> Status:
    """What the endpoints hold, all that a job could leave; outcomes and counters are history. None: no answer."""
    kinds = ("incarnation", "caches", "links", "grants", "admission", "memory", "device_memory", "transport_state")
    return {cluster_id: {kind: each.get(kind) for kind in kinds} for cluster_id, each in seen["endpoints"].items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("job")
    for name in ("push_job.py", "runtime_env.yaml"):
        shutil.copy(EXAMPLE / name, folder)
    _pip("wheel", str(ROOT), "--no-build-isolation", "--wheel-dir", str(folder))
    python = _nodes_python(tmp_path_factory.mktemp("nodes"), next(folder.glob("*.whl")))
    gcs, dashboard, client, *agents = _free_ports(5)
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("RAY_AUTH_MODE", "disabled")
        head = ("--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}")
        second = (f"--address=127.0.0.1:{gcs}", '--resources={"second": 1}')
        stack.enter_context(_node(python, agents[0], *head))
        _await_answer(dashboard)
        stack.enter_context(_node(python, agents[1], *second))
        jobs = JobSubmissionClient(f"http://127.0.0.1:{dashboard}")
        there = Site(python, folder, f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", jobs)
        file = tmp_path_factory.mktemp("config") / "fabric.yaml"
        file.write_text(FABRIC)
        there.kvfabric("up", str(file))
        yield there


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _nodes_python(folder: Path, wheel: Path) -> Path:
    """Cloned in a second: what a `.pth` file names is on its path, but none of the `.pth` files that lie there.

    The nodes' own wheel is beside the environment: a clone has none but what the job brings.
    """
    environment, installed = folder / "environment", folder / "installed"
    venv.create(environment, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(environment)}))
    (packages / "shared.pth").write_text(f"{installed}\n{sysconfig.get_path('purelib')}\n")
    _pip("install", "--target", str(installed), str(wheel))
    return environment / "bin" / "python"


def _environment(python: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    path = f"{python.parent}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _node(python: Path, agent_port: int, *arguments: str) -> Iterator[None]:
    """A Ray node with a folder of its own, as on a machine of its own; its name is short enough for Ray's sockets."""
    folder = tempfile.mkdtemp(prefix="kvj-")
    starter = subprocess.Popen(
        [
            python, "-m", "ray.scripts.scripts", "start", "--block", f"--temp-dir={folder}", "--num-cpus=4",
            "--object-store-memory=100000000", f"--dashboard-agent-listen-port={agent_port}", *arguments,
        ],
        cwd=folder, env=_environment(python), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        started = psutil.Process(starter.pid).children(recursive=True)
        starter.kill()
        starter.wait(10)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def _await_answer(port: int) -> None:
    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    eventually(answers, START_S, "the job server answers")


def test_a_job_with_the_wheel_in_its_environment_joins_by_name_and_gets_back_what_it_pushed(site: Site) -> None:
    before = held(site.status())
    log = site.succeed()
    package = next(line for line in log.splitlines() if line.startswith("package: "))
    assert "/runtime_resources/pip/" in package
    assert str(ROOT) not in package
    assert f"5 pushes to endpoint {WORKER}, {5 * 8 * 2**20} bytes each way, all equal" in log
    assert held(site.status()) == before


def test_a_job_that_is_stopped_in_the_middle_of_a_push_leaves_at_once(site: Site) -> None:
    before = held(site.status())
    with site.pushing() as (submission, driver):
        site.jobs.stop_job(submission)
        assert site.ended(submission, COMMAND_S) is JobStatus.STOPPED
        assert held(site.status()) == before
    assert not psutil.pid_exists(driver)


def test_a_job_that_is_killed_in_the_middle_of_a_push_is_forgotten_within_its_lease(site: Site) -> None:
    before = held(site.status())
    with site.pushing() as (submission, driver):
        os.kill(driver, signal.SIGKILL)
        time.sleep(LEASE_S)
        assert held(site.status()) == before
        assert site.ended(submission, COMMAND_S) is JobStatus.FAILED
    assert "all equal" in site.succeed()
