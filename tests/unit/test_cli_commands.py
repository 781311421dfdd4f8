"""The command line: exit codes, one-line errors, machine output."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from ray_kvfabric.cli import cluster
from ray_kvfabric.cli import main as cli
from ray_kvfabric.cli.explain import judge_from, serving
from ray_kvfabric.cli.status import render
from ray_kvfabric.errors import PeerLost
from ray_kvfabric.route import CacheInfo, EndpointInfo, HostId, Route

pytestmark = pytest.mark.native

BENCH_KEYS = [
    "contender", "transport", "case", "bytes", "gbps", "ratio_memcpy", "ratio_limit", "p50_us", "p99_us", "verified",
]  # fmt: skip


def kvfabric(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def test_help_names_every_command_and_imports_none() -> None:
    code = (
        "import sys; from ray_kvfabric.cli.main import main; main(['--help'], standalone_mode=False);"
        "assert not {'ray', 'numpy', 'rich'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in answer.stdout for name in cli.COMMANDS)


def test_an_error_of_the_fabric_is_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise PeerLost("endpoint 7\nhas died")

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    answer = kvfabric("demo")
    assert answer.exit_code == 1
    assert answer.stderr == "kvfabric: endpoint 7 has died\n"
    assert answer.stdout == ""


def test_a_command_that_cannot_be_imported_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "demo", ("ray_kvfabric.cli.no_such_module", "text"))
    answer = kvfabric("demo")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("kvfabric: the command 'demo' cannot be loaded:")
    assert kvfabric("--help").exit_code == 0


def test_an_unknown_command_is_a_usage_error() -> None:
    assert kvfabric("dance").exit_code == 2


def test_bench_prints_one_json_row_a_contender() -> None:
    answer = kvfabric("bench", "--quick", "--json", "--case", "small", "--case", "llama_rand")
    assert answer.exit_code == 0, answer.output
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert {row["case"] for row in found} == {"small", "llama_rand"}
    ours = {"kvfabric", "granted", "verified", "check", "one_to_many", "singles"}
    assert {row["contender"] for row in found} == {*ours, "bare_c", "limit", "memcpy"}
    for row in found:
        assert list(row)[: len(BENCH_KEYS)] == BENCH_KEYS
        assert row["verified"] is True
        assert 0 < row["p50_us"] <= row["p99_us"]


def test_bench_shows_a_table() -> None:
    answer = kvfabric("bench", "--quick", "--case", "small")
    assert answer.exit_code == 0
    assert "small: 65536 bytes a call" in answer.stdout
    assert "kvfabric shared_memory" in answer.stdout


def test_bench_measures_an_urgent_push_among_bulk() -> None:
    answer = kvfabric("bench", "--quick", "--json", "--case", "urgent")
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [row["detail"] for row in found] == ["idle link", "under bulk", "under bulk as urgent"]
    assert all(row["verified"] and 0 < row["p50_us"] <= row["p99_us"] for row in found)


def test_bench_lists_the_cases_it_knows() -> None:
    answer = kvfabric("bench", "--case", "huge")
    assert answer.exit_code == 1
    assert "kvfabric: no case 'huge'; the cases are small, llama_rand" in answer.stderr


def test_up_refuses_a_file_that_is_none(tmp_path: object) -> None:
    answer = kvfabric("up", f"{tmp_path}/none.yaml")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("kvfabric: ")
    assert "none.yaml" in answer.stderr


@pytest.mark.parametrize("command", [["status"], ["down", "x"], ["explain", "1"]], ids=lambda command: command[0])
def test_no_running_ray_is_said_and_none_is_started(monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    asked: list[object] = []

    def refuse(**options: object) -> None:
        asked.append(options["address"])
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", refuse)
    answer = kvfabric(*command)
    assert (answer.exit_code, answer.stdout, asked) == (1, "", ["auto"])
    assert answer.stderr.startswith("kvfabric: no Ray cluster runs on this machine; start one with `ray start --head`")


def test_nobody_at_an_address_is_said_at_once() -> None:
    with socket.socket() as bound:  # bound and not listening: nobody answers, and nobody else takes the port
        bound.bind(("127.0.0.1", 0))
        answer = kvfabric("status", "--address", f"127.0.0.1:{bound.getsockname()[1]}")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("kvfabric: no Ray cluster runs at 127.0.0.1:")


def _endpoint(cluster_id: int, *transports: str, pid: int = 10) -> EndpointInfo:
    return EndpointInfo(cluster_id, 1, pid, HostId("boot", 1, 0), 3, 4, transports)


def _foreign_cache() -> CacheInfo:
    return CacheInfo(1, 0, "DT_FLOAT", "HOST", (1, 1), (), 0, 1, True, "host")


def test_explain_says_why_each_other_transport_is_not_taken() -> None:
    route = Route(_endpoint(2, "loopback", "shared_memory", "process_vm", pid=20), _foreign_cache())
    verdicts = judge_from(_endpoint(1, "shared_memory", "process_vm"), route)
    refusals = {verdict.name: verdict.refusal for verdict in verdicts}
    assert refusals["loopback"] == "endpoint 1 does not offer it"
    assert "did not allocate" in str(refusals["shared_memory"])
    assert serving(verdicts) == "process_vm"


def test_status_shows_an_endpoint_that_does_not_answer() -> None:
    seen = {"fabric": "f", "endpoints": {7: {"error": "endpoint 7 has died"}}}
    screen = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with screen.file:
        screen.print(render(seen))
        assert "endpoint 7 has died" in screen.export_text()
