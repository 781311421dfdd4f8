"""examples/serve_split.py, deployed under plain Ray Serve: engines in actors of its own, answers streamed over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray import serve
from ray.util import list_named_actors, placement_group_table

from ray_kvfabric.fabric import Fabric
from tests.serve.deployment import free_port
from tests.serve.engine import ENVIRONMENT, Engine

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))  # as `serve run` does in that directory
import serve_split  # noqa: E402

TOKENS = 40
PROMPT = (files("ray_kvfabric") / "demo" / "default_prompt.txt").read_text()


@pytest.fixture(scope="module")
def right() -> str:
    """What an undivided engine writes."""
    engine = Engine({"model": serve_split.Settings().model, "disable_log_stats": True, **serve_split.ON_CPUS}).wait_up()
    text = engine.ask("complete", PROMPT, TOKENS)
    engine.close()
    return str(text)


@pytest.fixture(scope="module")
def port(address: str) -> Iterator[int]:
    """Of an application with one prefill and one decode engine; nothing of it may be left."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    variables = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("RAY_")}
    variables["VLLM_CACHE_ROOT"] = os.environ["VLLM_CACHE_ROOT"]
    serve.run(serve_split.build({"env_vars": variables}), name="plain", blocking=False)
    name = fabric_name()
    yield port
    serve.delete("plain")
    assert not [each for each in actors() if f":{name}:" in each]
    assert all(row["state"] == "REMOVED" for row in placement_group_table().values() if f":{name}:" in row["name"])
    serve.shutdown()


def actors() -> list[str]:
    return [str(each["name"]) for each in list_named_actors(all_namespaces=True)]


def fabric_name() -> str:
    (scheduler,) = [each for each in actors() if each.startswith("kvfabric:split-")]
    return scheduler.split(":")[1]


def ask(port: int, **fields: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    connection.request("POST", "/", json.dumps(fields))
    return connection.getresponse()


def pushed(fabric: Fabric) -> int:
    """Bytes, by engines that live."""
    status: Any = fabric.status()
    counters = [each.get("counters", {}) for each in status["endpoints"].values()]
    return sum(count for each in counters for name, count in each.items() if name.startswith("bytes_pushed"))


def unfinished() -> list[int]:
    """Requests that the engines have, by their own count."""
    engines = [each for each in list_named_actors(all_namespaces=True) if each["name"].startswith("split-")]
    assert len(engines) == 2
    handles = [ray.get_actor(each["name"], each["namespace"]) for each in engines]
    counts: list[int] = ray.get([each.unfinished.remote() for each in handles])
    return counts


def test_an_answer_is_streamed_and_is_the_undivided_engines(port: int, right: str) -> None:
    with Fabric.connect(fabric_name()) as fabric:
        before = pushed(fabric)
        with closing(ask(port, prompt=PROMPT, max_tokens=TOKENS)) as answer:
            pieces = []
            while piece := answer.read1():
                pieces.append(piece)
        assert b"".join(pieces).decode() == right
        assert len(pieces) > 5, "it comes as it is written"
        assert pushed(fabric) > before, "its KV came through the fabric"


def test_a_request_that_cannot_be_served_says_why(port: int) -> None:
    answer = ask(port, prompt=PROMPT, max_token=3)
    assert answer.status == 422
    assert b"max_token" in answer.read()
    answer = ask(port, prompt=PROMPT * 3, max_tokens=3)
    assert answer.status == 400
    assert b"maximum context length is 2048 tokens" in answer.read()


def test_callers_that_hang_up_keep_no_engine_busy(port: int, right: str) -> None:
    for after_s in (0.0, 0.05, *[0.2] * 25):  # the last while pieces are sent to them
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            body = json.dumps({"prompt": PROMPT[:600], "max_tokens": 1800}).encode()
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(after_s)
        end = time.monotonic() + 2.0
        while sum(unfinished()):
            assert time.monotonic() < end, "those who hung up asked for forty times as much"
    assert ask(port, prompt=PROMPT, max_tokens=TOKENS).read().decode() == right


def test_a_killed_prefill_engine_costs_no_answer_and_comes_back(port: int, right: str) -> None:
    with Fabric.connect(fabric_name()) as fabric:
        (prefill,) = [each.endpoint for each in fabric.members() if each.endpoint.role == "PROMPT"]
        psutil.Process(prefill.pid).kill()
        assert ask(port, prompt=PROMPT, max_tokens=TOKENS).read().decode() == right
        end = time.monotonic() + 60
        while prefill.pid in (found := [each.endpoint.pid for each in fabric.members()]) or len(found) < 2:
            assert time.monotonic() < end, found
            time.sleep(0.5)
        before = pushed(fabric)
        assert ask(port, prompt=PROMPT[5:], max_tokens=TOKENS).status == 200
        while pushed(fabric) == before:
            assert time.monotonic() < end
            time.sleep(0.5)


def test_the_shipped_settings_for_npus_are_ones_that_the_application_knows() -> None:
    (application,) = yaml.safe_load((ROOT / "configs" / "serve_npus.yaml").read_text())["applications"]
    module, builder = application["import_path"].split(":")
    assert (module, getattr(serve_split, builder)) == ("serve_split", serve_split.build)
    settings = serve_split.Settings.model_validate(application["args"])
    assert settings.bundle == {"NPU": 1}
