"""Over HTTP through Ray Serve LLM, as a user deploys it: the YAML in configs/, every replica in processes of its own."""

from __future__ import annotations

import json
import random
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve

from ray_kvfabric.demo.text import Tokenizer
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.integrations.serve import build_kvfabric_pd_app
from tests.serve.trio import MODEL, Setting, options, demo_block_nbytes
from tests.serve.engine import Engine

CONFIG = Path(__file__).parents[2] / "configs" / "serve_one_host.yaml"
LENGTHS = (5, 40, 64, 150, 301, 500, 800, 1200)


def application(**changes: Any) -> dict[str, Any]:
    app = yaml.safe_load(CONFIG.read_text())["applications"][0]
    return app["args"]


@pytest.fixture(scope="module")
def url(address: str) -> Iterator[str]:
    serve.start(http_options={"host": "127.0.0.1", "port": 8123})
    serve.run(build_kvfabric_pd_app(application()), name="pd", route_prefix="/")
    yield "http://127.0.0.1:8123"
    serve.shutdown()


def complete(url: str, prompt: list[int], tokens: int = 24) -> dict[str, Any]:
    body = {"model": "demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_x(url: str) -> None:
    rng = random.Random(1)
    print(complete(url, [rng.randrange(5, 1000) for _ in range(100)]))
    with Fabric.connect("default") as fabric:
        print(fabric)
    print(serve.status())
