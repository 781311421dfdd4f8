"""configs/serve_one_host.yaml, deployed as a user deploys it, and asked over HTTP."""

from __future__ import annotations

import copy
import http.client
import json
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
from ray import serve
from ray.llm._internal.serve.utils.broadcast import broadcast

from ray_kvfabric.integrations.serve import build_kvfabric_pd_app
from tests.serve.probe import FOLDER

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "serve_one_host.yaml"
TOKENS = 24


def arguments(
    fabric: str, replicas: tuple[int, int], probes: Path, prefill_module: str = "tests.serve.probe"
) -> dict[str, Any]:
    """The YAML's, with a fabric, modules and numbers of replicas of the test's own."""
    args: dict[str, Any] = copy.deepcopy(yaml.safe_load(CONFIG.read_text())["applications"][0]["args"])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
    sides = ("prefill_config", "decode_config")
    for side, count, module in zip(sides, replicas, (prefill_module, "tests.serve.probe"), strict=True):
        config = args[side] = copy.deepcopy(args[side])
        config["deployment_config"]["num_replicas"] = count
        config["runtime_env"]["env_vars"].update({"PYTHONPATH": path, FOLDER: str(probes)})
        if "VLLM_CACHE_ROOT" in os.environ:
            config["runtime_env"]["env_vars"]["VLLM_CACHE_ROOT"] = os.environ["VLLM_CACHE_ROOT"]
        config["engine_kwargs"]["kv_transfer_config"] = {
            "kv_connector_module_path": module,
            "kv_connector_extra_config": {"fabric": fabric, "grant_wait_s": 20, "transfer_timeout_s": 60},
        }
    return args


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Told(NamedTuple):
    """Of one engine: its scheduler's process, free blocks, requests that wait for KV, those that promise it, and how
    often KV did not come.
    """

    pid: int
    free: int
    waiting: int
    promised: int
    failed: int


class Deployment:
    """One application under a route of its own."""

    def __init__(self, name: str, port: int, args: dict[str, Any], probes: Path) -> None:
        self.name = name
        self.port = port
        self._args = args
        self._probes = probes

    def start(self) -> None:
        serve.run(build_kvfabric_pd_app(self._args), name=self.name, route_prefix=f"/{self.name}", blocking=False)
        (self.blocks,) = {told.free for told in self.engines().values()}

    def complete(self, prompt: Sequence[int], tokens: int = TOKENS, timeout_s: float = 90.0) -> list[int]:
        """The tokens of the answer. Raises RuntimeError for an answer that is an error."""
        answer = self.post("completions", timeout_s, prompt=list(prompt), max_tokens=tokens)
        return list(answer["choices"][0]["token_ids"])

    def fingerprint(self, prompt: Sequence[int]) -> str:
        """What the answering engine says of itself."""
        return str(self.post("completions", prompt=list(prompt), max_tokens=1)["system_fingerprint"])

    def post(self, path: str, timeout_s: float = 90.0, **fields: Any) -> dict[str, Any]:
        """The answer to a request with any fields. Raises RuntimeError for an error."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/{self.name}/v1/{path}", self.body(**fields), headers)
            answer = connection.getresponse()
            found: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {found}")
        return found

    def body(self, **fields: Any) -> str:
        return json.dumps({"model": "demo", "temperature": 0, "ignore_eos": True, "return_token_ids": True, **fields})

    def complete_all(self, prompts: Sequence[Sequence[int]], tokens: int = TOKENS) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(lambda prompt: self.complete(prompt, tokens), prompts))

    def forget_prefixes(self, side: str) -> None:
        """`side` is Prefill or Decode."""
        broadcast(serve.get_deployment_handle(f"{side}:demo", self.name), method_name="reset_prefix_cache", args=[])

    def engines(self) -> dict[str, Told]:
        """What each engine that lives has told last."""
        found = {}
        for path in self._probes.iterdir():
            if path.suffix != ".new":
                told = Told(*(int(each) for each in path.read_text().split()))
                if psutil.pid_exists(told.pid):
                    found[path.name] = told
        return found

    def settle(self, within_s: float = 60.0) -> None:
        """Until every engine that lives is idle and has all its blocks."""
        end = time.monotonic() + within_s
        while any(told[1:4] != (self.blocks, 0, 0) for told in self.engines().values()):
            assert time.monotonic() < end, f"{self.engines()}, of {self.blocks} blocks"
            time.sleep(0.2)
