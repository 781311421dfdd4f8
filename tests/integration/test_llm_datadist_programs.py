"""Programs written for LLM-DataDist, one process a role, each started as in a terminal of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

PROGRAMS = Path(__file__).parents[2] / "examples" / "llm_datadist"
KVFABRIC = Path(sys.executable).with_name("kvfabric")
LIMIT_S = 120
PAIR = ("prompt", "decoder")


@pytest.fixture
def port() -> Iterator[int]:
    """The first of four neighbouring free ports, for the talk between the programs; the fabric opens none."""
    for first in range(26000, 60000, 4):
        if all(_is_free(each) for each in range(first, first + 4)):
            yield first
            return
    pytest.fail("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def start(address: str, *arguments: object) -> subprocess.Popen[str]:
    """`kvfabric run` with these arguments, on that Ray."""
    return subprocess.Popen(
        [KVFABRIC, "run", *map(str, arguments)],
        env={**os.environ, "RAY_ADDRESS": address},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(address: str, program: str, port: int, roles: tuple[str, ...]) -> str:
    """What all of them print; each must end well."""
    started = [start(address, "--emulated-device", "host", PROGRAMS / program, role, "--port", port) for role in roles]
    try:
        told = [process.communicate(timeout=LIMIT_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    ends = {role: process.returncode for role, process in zip(roles, started, strict=True)}
    assert not any(ends.values()), (ends, told)
    return "".join(out for out, _ in told)


@pytest.mark.parametrize(
    ("program", "roles", "lines"),
    [
        ("push_blocks.py", PAIR, ["push_blocks: 8 checksums equal"]),
        ("pull_blocks.py", PAIR, ["pull_blocks: 8 checksums equal"]),
        ("push_cache.py", PAIR, ["push_cache: 4 checksums equal", "the other rows: 4 checksums equal"]),
        ("pull_cache.py", PAIR, ["pull_cache: 4 checksums equal"]),
        ("cache_to_blocks.py", PAIR, ["cache to blocks: 4 checksums equal"]),
        (
            "layer_wise.py",
            PAIR,
            ["layers 2 and 3 to 0 and 1: 4 checksums equal", "the other layers: 4 checksums equal"],
        ),
        (
            "switch_role.py",
            PAIR,
            [
                "push before the switch: 4 checksums equal",
                "push from the end that accepted: 4 checksums equal",
                "push after the switch: 4 checksums equal",
            ],
        ),
        (
            "two_to_one.py",
            ("prompt", "second_prompt", "decoder"),
            ["pulled from prompt: 4 checksums equal", "pulled from second_prompt: 4 checksums equal"],
        ),
    ],
)
def test_bytes_that_one_program_sends_have_the_same_checksum_in_the_other(
    ray_cluster: str, port: int, program: str, roles: tuple[str, ...], lines: list[str]
) -> None:
    printed = run(ray_cluster, program, port, roles).splitlines()
    own = [line for line in printed if "(raylet)" not in line]  # Ray tells every driver of workers that ended
    assert sorted(own) == sorted(lines)


BESIDE_OTHERS = """
import sys
from llm_datadist import LLMDataDist, LLMRole

datadist = LLMDataDist(LLMRole.MIX, 41)
datadist.init({"llm.EnableCacheManager": "1", "llm.listenIpInfo": "127.0.0.1:26000"})
print("in", flush=True)
sys.stdin.read()
datadist.finalize()
"""


def test_programs_of_two_fabrics_do_not_meet_and_those_of_one_do(ray_cluster: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BESIDE_OTHERS)
    another = ("--fabric", "another", program)
    programs = [start(ray_cluster, program), start(ray_cluster, *another)]
    try:
        for each in programs:
            assert each.stdout is not None
            assert each.stdout.readline() == "in\n"
        third = start(ray_cluster, *another)
        programs.append(third)
        _, told = third.communicate("", timeout=LIMIT_S)
        assert third.returncode == 1
        assert "ClusterIdTaken: cluster_id 41 belongs to the live endpoint" in told
        assert [each.communicate("", timeout=LIMIT_S) for each in programs[:2]] == [("", ""), ("", "")]
    finally:
        for each in programs:
            each.kill()
            each.wait()
    assert [each.returncode for each in programs] == [0, 0, 1]


OUTLIVES_RAY = """
import ray
from ray_kvfabric.integrations.llm_datadist import LLMDataDist, LLMRole

datadist = LLMDataDist(LLMRole.MIX, 41)
datadist.init({"llm.EnableCacheManager": "1"})
ray.shutdown()
datadist.finalize()
print("finalized, Ray runs:", ray.is_initialized())
"""


def test_a_program_that_ends_its_ray_first_starts_no_other_one(ray_cluster: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUTLIVES_RAY],
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "finalized, Ray runs: False\n"), done.stderr
