"""The commands of README's "Serve a model split in two", as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve.engine import ENVIRONMENT
from tests.serve.trio import MODEL

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().split("## Serve a model split in two")[1].split("### In a notebook")[0]
BLOCKS = re.findall(r"```\n(.*?)```", SECTION, re.DOTALL)
ON_A_SMALL_CPU = (
    "--dtype float32 --enforce-eager --max-model-len 2048 --max-num-seqs 8 --block-size 32 "
    "--kv-cache-memory-bytes 33554432"
)
START_S = 240.0

pytestmark = pytest.mark.slow


@contextmanager
def running(command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own, ended with all its processes."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with log.open("w") as file:
        shell = subprocess.Popen(
            command, shell=True, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PATH": path, **environment},
        )  # fmt: skip
    try:
        yield shell
    finally:
        family = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            family = [psutil.Process(shell.pid), *psutil.Process(shell.pid).children(recursive=True)]
            os.killpg(shell.pid, signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=30)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        shell.wait(10)


def shell(command: str, **environment: str) -> str:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            assert time.monotonic() < end and process.poll() is None, log.read_text()[-3000:]  # noqa: PT018
            time.sleep(1)


def eventually(answer: Callable[[], str], log: Path) -> str:
    """The ingress answers before the engines behind it do."""
    end = time.monotonic() + START_S
    while True:
        try:
            return answer()
        except (AssertionError, LookupError, ValueError):
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(1)


def test_serve_run_answers_what_curl_asks(tmp_path: Path) -> None:
    serve_run, asking, *_ = BLOCKS
    curl, status = asking.rsplit("\n", 2)[0], asking.rstrip().splitlines()[-1]
    log = tmp_path / "log"
    with (
        tempfile.TemporaryDirectory(prefix="kvf", ignore_cleanup_errors=True) as folder,  # short: sockets lie in it
        running(serve_run.strip(), log, RAY_TMPDIR=folder) as process,
    ):
        wait_for("http://localhost:8000/v1/models", process, log)
        assert eventually(lambda: json.loads(shell(curl))["choices"][0]["text"], log)
        (ray,) = set(re.findall(r"--gcs-address[= ](\S+)", all_command_lines(folder)))
        assert "PROMPT" in shell(status, RAY_ADDRESS=ray)


def test_plain_ray_serve_answers_what_curl_asks(tmp_path: Path) -> None:
    serve_run, curl = BLOCKS[-2:]
    log = tmp_path / "log"
    with (
        tempfile.TemporaryDirectory(prefix="kvf", ignore_cleanup_errors=True) as folder,
        running(serve_run.strip(), log, RAY_TMPDIR=folder),
    ):
        assert eventually(lambda: shell(curl.replace("curl", "curl --fail")), log)


def all_command_lines(folder: str) -> str:
    lines = (" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"]))
    return "\n".join(line for line in lines if folder in line)


def test_two_vllm_serve_in_two_terminals_share_the_work(address: str, tmp_path: Path) -> None:
    prefill, decode = re.findall(r"vllm serve.*?}'", BLOCKS[2], re.DOTALL)
    commands = [f"{' '.join(each.split())} {ON_A_SMALL_CPU}".replace("MODEL", str(MODEL)) for each in (prefill, decode)]
    logs = [tmp_path / "prefill.log", tmp_path / "decode.log"]
    with (
        running(commands[0], logs[0], RAY_ADDRESS=address) as first,
        running(commands[1], logs[1], RAY_ADDRESS=address) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        for port, process, log in zip((8100, 8200), (first, second), logs, strict=True):
            wait_for(f"http://localhost:{port}/v1/models", process, log)
        right = ask(8100, "The default value is", 24, None)
        for name in ("at once", "again"):
            got = threads.submit(ask, 8200, "The default value is", 24, consumer_params(name, "prefill"))
            threads.submit(ask, 8100, "The default value is", 1, producer_params(name, "decode")).result(60)
            assert got.result(60) == right
        for port, counted in ((8100, "bytes_pushed"), (8200, "bytes_received")):
            assert metric(port, counted) > 0


def metric(port: int, name: str) -> float:
    """Of this vLLM's own Prometheus endpoint."""
    text = urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10).read().decode()
    return sum(map(float, re.findall(rf"^vllm:kvfabric_{name}_total{{.*}} (\S+)$", text, re.MULTILINE)))


def ask(port: int, prompt: str, tokens: int, params: dict[str, Any] | None) -> str:
    body = {"model": str(MODEL), "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    if params is not None:
        body["kv_transfer_params"] = params
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["text"])
