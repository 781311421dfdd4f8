"""kvfabric demo through real workers: the text, the numbers, the negative control, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ray.util import list_named_actors

from ray_kvfabric.cli.main import main
from ray_kvfabric.demo.checkpoint import default_model_dir, default_prompt
from ray_kvfabric.demo.request import ModelChoice
from tests.integration.conftest import eventually, shm_names

pytestmark = pytest.mark.ray

PROMISED = {"tokens_match", "blocks_pushed", "bytes_pushed", "transport", "gbps", "hidden_fraction"}


def demo(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["demo", *arguments])


def answer(result: Result) -> dict[str, object]:
    """The one JSON object on stdout."""
    summary: dict[str, object] = json.loads(result.stdout)
    return summary


def demo_actors() -> list[str]:
    return [each["name"] for each in list_named_actors(all_namespaces=True) if ":demo-" in each["name"]]


@pytest.fixture
def four_blocks(tmp_path: Path) -> str:
    """A file with the beginning of the default prompt, four blocks long."""
    text = ModelChoice.shipped().text()
    path = tmp_path / "prompt.txt"
    path.write_text(text.decode(text.encode(default_prompt())[:64]))
    return str(path)


@pytest.mark.slow
def test_demo_as_a_user_runs_it(tmp_path: Path) -> None:
    """A process and a Ray of its own; stdout is the JSON and nothing else."""
    before = shm_names()
    code = "from ray_kvfabric.cli.main import main; main()"
    arguments = ["demo", "--json", "--address", "local", "--plot", str(tmp_path / "timeline.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary.keys() >= PROMISED
    assert summary["tokens_match"] is True
    assert summary["transport"] == "shared_memory"
    assert summary["prompt_tokens"] >= 1000
    assert 0.5 < summary["hidden_fraction"] <= 0.75
    assert summary["blocks_pushed"] == -(-(summary["prompt_tokens"] - 1) // 16)
    assert summary["bytes_pushed"] == summary["blocks_pushed"] * 4 * 2 * 16 * 2 * 32 * 4
    assert summary["text"] in done.stderr
    assert (tmp_path / "timeline.png").stat().st_size > 10_000
    assert shm_names() == before


def test_the_cluster_is_used_and_left_as_it_was(ray_cluster: str) -> None:
    result = demo("--json", "--max-new-tokens", "20", "--block-tokens", "7", "Return the name of the file.")
    assert result.exit_code == 0, result.output
    assert answer(result)["tokens_match"] is True
    assert answer(result)["new_tokens"] == 20
    eventually(lambda: not demo_actors(), 20, "the demo's actors are gone")


def test_the_transport_asked_for_is_used(ray_cluster: str) -> None:
    result = demo("--json", "--transport", "process_vm", "--max-new-tokens", "8", "Return the name of the file.")
    assert result.exit_code == 0, result.output
    assert (answer(result)["tokens_match"], answer(result)["transport"]) == (True, "process_vm")
    assert answer(result)["prefill_memory"] == answer(result)["decode_memory"] == "host memory"


def test_leaving_out_a_block_changes_the_text_and_the_exit_code(ray_cluster: str, four_blocks: str) -> None:
    common = ("--json", "--random-weights", "--max-new-tokens", "24", "--prompt-file", four_blocks)
    whole = demo(*common)
    assert (whole.exit_code, answer(whole)["tokens_match"]) == (0, True)
    assert answer(whole)["blocks_pushed"] == 4
    less = demo(*common, "--leave-out-block", "1")
    assert (less.exit_code, answer(less)["tokens_match"]) == (1, False)
    assert answer(less)["blocks_pushed"] == 3
    assert "differs from the single process at new token" in less.stderr


def test_the_table_and_the_text_are_shown(ray_cluster: str) -> None:
    result = demo("--max-new-tokens", "8", "--random-weights", "--layers", "2", "--hidden", "64", "Return the name")
    assert result.exit_code == 0, result.output
    for part in ("hidden behind compute", "shared_memory", "host memory", "each of 2 layers", "All 8 tokens equal"):
        assert part in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--leave-out-block", "4", "a b"), "leave_out_block must be in [0, 1)"),
        (("",), "at least 2 tokens"),
        (("--temperature", "-1"), "temperature must not be negative"),
        (("--max-new-tokens", "4000"), "max_position_embeddings is 4096"),
        (("--device", "cuda", "a b"), "--device cuda needs 2 GPUs, one for each worker, and this Ray cluster has 0"),
        (("--device", "npu", "a b"), "needs a device, and torch_npu is not installed"),
        (("--transport", "hccl", "a b"), "hccl does not move host to host memory"),
    ],
)
def test_refusals_are_one_line_and_exit_1(ray_cluster: str, arguments: tuple[str, ...], text: str) -> None:
    result = demo(*arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1
    eventually(lambda: not demo_actors(), 20, "the demo's actors are gone")


def test_a_model_that_cannot_be_loaded_ends_with_its_reason(ray_cluster: str, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((default_model_dir() / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    begin = time.monotonic()
    result = demo("--model", str(tmp_path))
    assert result.exit_code == 1
    assert "model.safetensors cannot be read" in result.stderr
    assert time.monotonic() - begin < 60
    eventually(lambda: not demo_actors(), 20, "the demo's actors are gone")


def test_a_wait_that_takes_too_long_ends(ray_cluster: str) -> None:
    result = demo("--timeout", "0.01", "Return the name of the file.")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    eventually(lambda: not demo_actors(), 20, "the demo's actors are gone")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--layers", "2"),
        ("--model", ".", "--random-weights"),
        ("--prompt-file", "pyproject.toml", "words"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_anything_starts(arguments: tuple[str, ...]) -> None:
    assert demo(*arguments).exit_code == 2
