"""kvfabric demo on two emulated NPUs, and what the emulation's own log says of how the bytes travelled."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ray_kvfabric.demo.checkpoint import default_prompt
from ray_kvfabric.demo.request import ModelChoice

KVFABRIC = (sys.executable, "-c", "from ray_kvfabric.cli.main import main; main()")
NEW_TOKENS = 24
LAYERS, TENSORS_PER_LAYER = 4, 2
BLOCK_NBYTES = 16 * 2 * 32 * 4  # tokens, heads and head_dim of the shipped model, float32
TO_DEVICE, TO_HOST, BETWEEN_DEVICES = range(1, 4)


class Call(NamedTuple):
    """A line of the emulation's log: who called what, and with which numbers."""

    pid: int
    name: str
    fields: dict[str, int]


class Run(NamedTuple):
    exit_code: int
    summary: dict[str, Any]
    calls: list[Call]
    stderr: str

    def named(self, prefix: str, **fields: int) -> list[Call]:
        return [call for call in self.calls if call.name.startswith(prefix) and fields.items() <= call.fields.items()]

    def nbytes(self, prefix: str, **fields: int) -> int:
        return sum(call.fields["bytes"] for call in self.named(prefix, **fields))


def read_log(path: Path) -> Iterator[Call]:
    for line in path.read_text().splitlines():
        pid, name, *_ = line.split(" ")
        fields = {key: int(value) for key, value in re.findall(r" (\w+)=(-?\d+)(?= |$)", line)}
        yield Call(int(pid), name, fields)


def demo(log: Path, *arguments: str) -> Run:
    """A process, and a Ray that it starts and tells of its NPUs."""
    command = [*KVFABRIC, "demo", "--json", "--address", "local", "--device", "npu"]
    command += ["--max-new-tokens", str(NEW_TOKENS), *arguments]
    environment = {**os.environ, "KVFABRIC_EMULATED_NPUS": "2", "KVFABRIC_EMULATED_LOG": str(log)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.stdout, done.stderr
    return Run(done.returncode, json.loads(done.stdout), list(read_log(log)), done.stderr)


@pytest.fixture(scope="module", params=["device_ipc", "hccl"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The default prompt, pushed by one transport."""
    return demo(tmp_path_factory.mktemp(request.param) / "calls.log", "--transport", request.param)


def test_the_text_is_that_of_one_process_and_the_transport_the_one_asked_for(
    run: Run, request: pytest.FixtureRequest
) -> None:
    assert (run.exit_code, run.summary["tokens_match"], run.summary["new_tokens"]) == (0, True, NEW_TOKENS), run.stderr
    assert run.summary["transport"] == request.node.callspec.params["run"]
    assert run.summary["bytes_pushed"] == run.summary["blocks_pushed"] * LAYERS * TENSORS_PER_LAYER * BLOCK_NBYTES
    assert {run.summary["prefill_memory"], run.summary["decode_memory"]} == {
        "NPU 0 (Ascend910B3)",
        "NPU 1 (Ascend910B3)",
    }


def test_every_byte_went_from_device_to_device_by_that_transport_and_none_otherwise(run: Run) -> None:
    pushed = run.summary["bytes_pushed"]
    if run.summary["transport"] == "device_ipc":
        assert run.nbytes("aclrtMemcpy", kind=BETWEEN_DEVICES) == pushed
        assert run.named("Hccl") == []
        return
    sent = run.named("HcclBatchSendRecv", recvs=0)
    received = run.named("HcclBatchSendRecv", sends=0)
    assert sum(call.fields["bytes"] for call in sent) == pushed
    assert sum(call.fields["bytes"] for call in received) == pushed
    assert len(sent) == len(received) == LAYERS
    assert len({call.pid for call in sent}) == len({call.pid for call in received}) == 1
    assert {call.pid for call in sent} != {call.pid for call in received}
    assert run.named("aclrtMemcpy", kind=BETWEEN_DEVICES) == []


def test_each_side_copied_between_host_and_device_what_was_pushed_and_no_more(run: Run) -> None:
    """So nothing of the prompt came to the decode worker but through its device's memory."""
    pushed = run.summary["bytes_pushed"]
    up, down = run.named("aclrtMemcpy", kind=TO_DEVICE), run.named("aclrtMemcpy", kind=TO_HOST)
    assert [sum(call.fields["bytes"] for call in calls) for calls in (up, down)] == [pushed, pushed]
    assert len({call.pid for call in up}) == len({call.pid for call in down}) == 1
    assert {call.pid for call in up} != {call.pid for call in down}


def test_a_block_that_is_not_pushed_changes_the_text(tmp_path: Path) -> None:
    text = ModelChoice.shipped().text()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(text.decode(text.encode(default_prompt())[:64]))  # four blocks
    less = demo(tmp_path / "calls.log", "--random-weights", "--prompt-file", str(prompt), "--leave-out-block", "1")
    assert (less.exit_code, less.summary["tokens_match"]) == (1, False), less.stderr
    assert less.summary["blocks_pushed"] == 3
    assert less.summary["transport"] == "device_ipc"
    assert less.nbytes("aclrtMemcpy", kind=BETWEEN_DEVICES) == less.summary["bytes_pushed"]
