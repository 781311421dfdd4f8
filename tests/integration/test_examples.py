"""Each example is run as its reader would run it, in the cluster of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, address: str, *arguments: str) -> str:
    """Its stdout."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(ray_cluster: str) -> None:
    assert "24576 bytes by shared_memory, equal: True" in run("quickstart.py", ray_cluster)


def test_grants(ray_cluster: str) -> None:
    printed = run("grants.py", ray_cluster)
    assert "24576 bytes, crc32c right, equal: True" in printed
    assert "too late: GrantRevoked" in printed
    assert "request-3: 3 blocks" in printed


def test_disaggregated_prefill_decode(ray_cluster: str) -> None:
    prompt = "Return the name of the file."
    printed = run("disaggregated_prefill_decode.py", ray_cluster, prompt)
    assert "32768 bytes pushed" in printed
    assert prompt in printed
    assert len(printed.split(prompt)[1].strip()) > 20


def test_ray_job(ray_cluster: str) -> None:
    assert "3 pushes, all equal" in run("ray_job.py", ray_cluster, "--workers", "3")
