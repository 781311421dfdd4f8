"""What doctor and a worker say on chips that the documentation of push_blocks does not vouch for, and on those it does.

torch_npu tells the name of any chip, and opens those that it knows only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SUPPORTED = "Ascend910_9391"
A2_SUPPORT = "supported in the Atlas 800I A2 and the A200I A2 Box, not in the A2 training series"
DOCTOR = "from ray_kvfabric.cli.main import main; main()"
WORKER = """
import json, ray
from pathlib import Path
from ray_kvfabric import Fabric
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, namespace="kvfabric",
         logging_level="ERROR")
with Fabric.connect("chips") as fabric:
    [worker] = fabric.add_workers(7)
    chip = ray.get(worker.status.remote(), timeout=30)["chip"]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # Ray's copies to the driver come late, or never
    lines = [line for log in logs.glob("worker-*.err") for line in log.read_text().splitlines()]
    print(json.dumps({"chip": chip, "lines": lines}))
ray.shutdown()
"""


def run(code: str, *arguments: str, soc: str, npus: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KVFABRIC_EMULATED_SOC": soc, "KVFABRIC_EMULATED_NPUS": str(npus)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)


def doctor(soc: str, npus: int = 2) -> dict[str, Any]:
    done = run(DOCTOR, "doctor", "--json", soc=soc, npus=npus)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_doctor_vouches_for_a_supported_chip_and_pushes_by_each_device_transport() -> None:
    found = doctor(SUPPORTED)
    assert found["devices"]["chip"]["state"] == "ok"
    assert f"sees 2 x {SUPPORTED}" in found["devices"]["NPU"]["detail"]
    for name in ("device_ipc", "hccl"):
        assert found["transports"][name] == {"state": "ok", "detail": "works: from npu 0 to 1", "remedy": None}


def test_doctor_says_that_a_chip_is_stated_as_not_supported() -> None:
    found = doctor("Ascend310P3")
    chip = found["devices"]["chip"]
    assert chip["state"] == "note"
    assert chip["detail"] == "Ascend310P3 (Atlas inference series): push_blocks is stated as not supported"
    for name in ("device_ipc", "hccl"):  # tried all the same: what is stated and what works are two things
        assert found["transports"][name]["detail"].startswith(("works: ", "not available: the device does not open: "))


def test_a_chip_that_torch_does_not_know_is_named_and_its_device_does_not_open() -> None:
    found = doctor("Ascend999")
    assert found["devices"]["chip"]["state"] == "note"
    assert found["devices"]["chip"]["detail"].startswith("Ascend999 (unknown series)")
    for name in ("device_ipc", "hccl"):
        assert found["transports"][name]["state"] == "note"
        assert "does not open" in found["transports"][name]["detail"]
        assert "Unsupported soc version" in found["transports"][name]["detail"]


def test_with_one_npu_two_processes_share_it_and_hccl_is_not_tried() -> None:
    found = doctor("Ascend910B4", npus=1)
    assert found["devices"]["chip"]["state"] == "note"
    assert A2_SUPPORT in found["devices"]["chip"]["detail"]
    assert found["transports"]["device_ipc"]["detail"].startswith("works: two processes on npu 0")
    assert found["transports"]["hccl"]["state"] == "note"
    assert "it needs two NPUs" in found["transports"]["hccl"]["detail"]


@pytest.mark.parametrize(
    ("soc", "said"),
    [("Ascend310P3", "push_blocks is stated as not supported"), (SUPPORTED, "push_blocks is stated as supported")],
)
def test_a_worker_warns_at_its_start_and_its_status_says_it(soc: str, said: str) -> None:
    done = run(WORKER, soc=soc)
    assert done.returncode == 0, done.stderr
    [told] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"chip"')]
    assert told["chip"].startswith(f"{soc} (")
    assert told["chip"].endswith(said)
    warned = [line for line in told["lines"] if f"endpoint 7 runs on {soc}" in line]
    assert bool(warned) is (soc != SUPPORTED), told["lines"]
    assert all(said in line for line in warned)
