"""The real torch_npu wheel on the emulated libraries. KVFABRIC_TORCH_NPU names the folder that holds torch_npu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.rules.cann import folder

PROGRAMS = Path(__file__).with_name("torch_programs")


def _run(program: str, tmp_path: Path, **more: str) -> str:
    wheel = os.environ.get("KVFABRIC_TORCH_NPU")
    assert wheel, "KVFABRIC_TORCH_NPU must name the folder that holds torch_npu"
    environment = {
        **os.environ,
        "PYTHONPATH": wheel,
        "LD_LIBRARY_PATH": str(folder().resolve()),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "KVFABRIC_EMULATED_LOG": str(tmp_path / "calls"),
        **more,
    }
    command = [sys.executable, str(PROGRAMS / f"{program}.py")]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it" in done.stdout
    return (tmp_path / "calls").read_text()


def test_devices_tensors_streams_and_events(tmp_path):
    calls = _run("tensors", tmp_path)
    assert "unimplemented" not in calls
    assert "aclrtMemcpyAsync kind=3" in calls


def test_an_operator_is_an_exception(tmp_path):
    calls = _run("operators", tmp_path, TASK_QUEUE_ENABLE="0")
    assert "unimplemented aclopCompileAndExecute" in calls


@pytest.mark.slow
def test_a_tensor_of_one_process_is_read_and_written_by_another(tmp_path):
    calls = _run("shared_tensors", tmp_path)
    assert "aclrtIpcMemImportByKey flags=1 rc=0" in calls
    assert "unimplemented" not in calls


@pytest.mark.slow
@pytest.mark.parametrize("program", ["process_group", "raw_hccl"])
def test_two_processes_send_to_each_other_through_hccl(tmp_path, program):
    calls = _run(program, tmp_path)
    assert "HcclBatchSendRecv" in calls
    assert "unimplemented" not in calls
