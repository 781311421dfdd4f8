"""One in ten actor calls, and one in ten replies, is lost: every change takes effect exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integration import rpc_loss

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PERCENT = 10
LOSS = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": -1,
        "req_failure_prob": PERCENT,
        "resp_failure_prob": PERCENT,
    }
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the program counted in a Ray of its own."""
    environment = {
        **os.environ,
        "RAY_testing_rpc_failure": json.dumps(LOSS),
        "RAY_timeout_ms_task_wait_for_death_info": "50",  # each lost call would take 2 s, not 1 s
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", rpc_loss.__name__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    [line] = [each for each in done.stdout.splitlines() if each.startswith("{")]  # Ray prints there too
    counted: dict[str, Any] = json.loads(line)
    print(counted)
    return counted


def test_calls_were_lost(found: dict[str, Any]) -> None:
    """Of the about 100 calls of the program itself; those of its workers are not even counted."""
    assert found["lost"] > 5


def test_each_cache_is_allocated_and_deallocated_once(found: dict[str, Any]) -> None:
    assert found["allocated"] == found["handles"] == rpc_loss.CACHES
    assert found["left_as_asked"]
    assert found["published_as_asked"]


def test_the_directory_ends_as_the_endpoint_told_it_last(found: dict[str, Any]) -> None:
    assert found["alias_as_asked"]
    assert found["published_as_kept"]
    assert found["members"] == [1, 2]


def test_each_question_is_asked_once(found: dict[str, Any]) -> None:
    assert found["answers_in_order"]


def test_each_push_has_a_receipt_and_none_comes_back_late(found: dict[str, Any]) -> None:
    assert found["receipts"] == 2 * rpc_loss.PAIRS
    assert found["last_payloads_stay"]
