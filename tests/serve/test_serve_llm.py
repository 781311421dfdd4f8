"""Over HTTP through Ray Serve LLM, as a user deploys it, every engine in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve

from tests.serve.deployment import Deployment, arguments, free_port
from tests.serve.engine import Engine
from tests.serve.trio import MODEL, TOKENS, prompts

LENGTHS = (5, 40, 64, 150, 301, 500, 800, 1200)


@pytest.fixture(scope="module")
def port(address: str) -> Iterator[int]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    """Undivided, with the engine settings of the YAML."""
    args = arguments("unused", (1, 1), Path())["decode_config"]["engine_kwargs"]
    del args["kv_transfer_config"]
    engine = Engine({"model": str(MODEL), "disable_log_stats": True, **args})
    yield engine.wait_up()
    engine.close()


@pytest.fixture(scope="module")
def split(port: int, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    probes = tmp_path_factory.mktemp("split")
    deployment = Deployment("split", port, arguments("http", (1, 1), probes), probes)
    deployment.start()
    return deployment


def expected(plain: Engine, asked: list[list[int]]) -> list[list[int]]:
    for index, prompt in enumerate(asked):
        plain.add(f"{id(asked)}-{index}", prompt, TOKENS)
    return [plain.wait(f"{id(asked)}-{index}")["token_ids"] for index in range(len(asked))]


def test_the_answers_are_those_of_an_undivided_engine_whatever_each_side_has_cached(
    plain: Engine, split: Deployment
) -> None:
    asked = prompts(LENGTHS, seed=1)
    right = expected(plain, asked)
    assert split.complete_all(asked) == right, "nothing is cached"
    assert split.complete_all(asked) == right, "both sides have prefixes"
    split.forget_prefixes("Prefill")
    assert split.complete_all(asked) == right, "the decode side alone"
    split.forget_prefixes("Decode")
    assert split.complete_all(asked) == right, "the prefill side alone"
    split.settle(list(split.blocks))


def test_a_prefill_that_writes_nothing_gives_other_answers(plain: Engine, port: int, tmp_path: Path) -> None:
    """The negative control."""
    deployment = Deployment("broken", port, arguments("http-broken", (1, 1), tmp_path, "tests.serve.broken"), tmp_path)
    deployment.start()
    asked = prompts(LENGTHS[2:5], seed=2)
    got = deployment.complete_all(asked)
    assert all(mine != theirs for mine, theirs in zip(got, expected(plain, asked), strict=True))
    serve.delete("broken")
