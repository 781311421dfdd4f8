"""Serve LLM's servers and backend, without a deployment: what is forgiven, what is drained, what is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.exceptions import ActorDiedError, RayTaskError
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.llm._internal.serve.core.configs.openai_api_models import CompletionRequest
from ray.llm._internal.serve.serving_patterns.prefill_decode.builder import PDServingArgs
from ray.serve.exceptions import ReplicaUnavailableError
from vllm.v1.engine.exceptions import EngineDeadError

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, PeerLost
from ray_kvfabric.integrations.serve import servers
from ray_kvfabric.integrations.serve.backend import KVFabricConnectorBackend
from ray_kvfabric.integrations.serve.builder import with_connectors

GPUS = Path(__file__).parents[2] / "configs" / "serve_gpus.yaml"
LOST = {
    "an actor": ActorDiedError,
    "a replica that was gone already": lambda: ReplicaUnavailableError("gone"),
    "an engine": lambda: RayTaskError("generate", "", EngineDeadError()),
}


async def failing(error: Exception) -> AsyncIterator[str]:
    yield "first"
    raise error


async def collected(error: Exception) -> list[str]:
    return [chunk async for chunk in servers._without_losses(failing(error))]


@pytest.mark.parametrize("make", LOST.values(), ids=LOST)
def test_a_lost_prefill_ends_its_stream_as_if_it_had_answered(make: Callable[[], Exception]) -> None:
    assert asyncio.run(collected(make())) == ["first"]


def test_an_error_of_a_prefill_that_lives_reaches_the_caller_at_once() -> None:
    with pytest.raises(RayTaskError):
        asyncio.run(collected(RayTaskError("generate", "", KeyError("template"))))


class FakeFabric:
    def __init__(self, promised: list[int]) -> None:
        self.promised = promised
        self.told: list[str] = []

    def look(self, worker: int) -> Any:
        self.told.append("look")
        return SimpleNamespace(status={"uses": {"vllm": {"sending": self.promised.pop(0), "receiving": 0}}})

    def drain(self, worker: int, timeout_s: float) -> None:
        self.told.append("drain")


def test_what_was_promised_is_sent_before_an_endpoint_drains() -> None:
    fabric = FakeFabric([2, 1, 0])
    servers._drain_worker(fabric, 7, Deadline.after(5))  # type: ignore[arg-type]
    assert fabric.told == ["look", "look", "look", "drain"]


def test_an_engine_is_ended_also_where_its_endpoint_cannot_be_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(name: str) -> None:
        raise PeerLost("the scheduler is gone")

    ended = []

    class Base:
        async def __del__(self) -> None:
            ended.append(True)

    class Server(servers._Drains, Base):
        def __init__(self) -> None:
            settings = SimpleNamespace(fabric="f")
            config = SimpleNamespace(engine_kwargs={})
            backend = SimpleNamespace(settings=settings, engine_id="e", llm_config=config)
            self._llm_config = SimpleNamespace(kv_connector_backend=backend)

    monkeypatch.setattr(servers.Fabric, "connect", cannot)
    server = Server()
    asyncio.run(server.__del__())
    assert ended == [True]
    Server.__del__ = Base.__del__ = lambda self: None  # type: ignore[method-assign,assignment]


def backend() -> KVFabricConnectorBackend:
    sides = with_connectors({side: {"model_loading_config": {"model_id": "m"}} for side in SIDES})
    config = sides["prefill_config"]
    config.engine_kwargs["kv_transfer_config"]["engine_id"] = "p"
    return KVFabricConnectorBackend(config)


SIDES = ("prefill_config", "decode_config")


def test_the_prefill_leg_computes_one_token_whatever_the_caller_wants_of_the_answer() -> None:
    asked = CompletionRequest(model="m", prompt="x", max_tokens=50, min_tokens=20, n=3, temperature=0.7)
    prefill = backend().prepare_prefill_request(request=asked, peer=None)
    assert (prefill.max_tokens, prefill.min_tokens, prefill.n) == (1, 0, 1)
    assert (asked.max_tokens, asked.min_tokens, asked.n) == (50, 20, 3)
    decode = backend().prepare_decode_request(request=asked, peer={"engine_id": "q"}, prefill_response=None)
    assert (decode.max_tokens, decode.n) == (50, 3)
    assert decode.kv_transfer_params["transfer_id"] == prefill.kv_transfer_params["transfer_id"]


def test_settings_that_are_explicitly_nothing_are_filled() -> None:
    nothing: dict[str, Any] = {"model_loading_config": {"model_id": "m"}, "engine_kwargs": {"kv_transfer_config": None}}
    filled: LLMConfig = with_connectors(dict.fromkeys(SIDES, nothing))["decode_config"]
    assert filled.engine_kwargs["kv_transfer_config"]["kv_role"] == "kv_consumer"


def test_the_shipped_yaml_for_gpus_is_one_that_serve_llm_takes() -> None:
    (application,) = yaml.safe_load(GPUS.read_text())["applications"]
    assert application["import_path"] == "ray_kvfabric.integrations.serve:build_kvfabric_pd_app"
    wanted = PDServingArgs.model_validate(with_connectors(application["args"]))
    for side, role in ((wanted.prefill_config, "kv_producer"), (wanted.decode_config, "kv_consumer")):
        assert side.engine_kwargs["kv_transfer_config"]["kv_role"] == role
        assert side.engine_kwargs["tensor_parallel_size"] == 2
    assert wanted.prefill_config.deployment_config["num_replicas"] == 2
    assert "num_replicas" not in wanted.decode_config.deployment_config


def test_another_connector_is_refused_by_name() -> None:
    other = {"model_loading_config": {"model_id": "m"}, "engine_kwargs": {"kv_transfer_config": {"kv_connector": "X"}}}
    with pytest.raises(ConfigError, match="kv_connector 'X'"):
        with_connectors(dict.fromkeys(SIDES, other))
