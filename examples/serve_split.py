"""A model split in two under plain Ray Serve: vLLM engines in actors of one's own, answers streamed over HTTP.

    cd examples && serve run serve_split:build
    curl -N http://localhost:8000 -d '{"prompt": "The default value is", "max_tokens": 40}'

It is the way for engines that Ray Serve LLM does not start, vllm-ascend among them: `configs/serve_npus.yaml` gives
each engine an NPU. A replica has a fabric, engines and room for them of its own; all of it ends with the replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import ray
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from ray_kvfabric import Fabric
from ray_kvfabric.integrations.vllm import CONNECTOR, MODULE
from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params

logger = logging.getLogger(__name__)

START_S = 600.0
END_S = 20.0
RETRY_S = 1.0
IDLE_STEP_S = 0.001
ON_CPUS = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "max_num_batched_tokens": 256,
    "kv_cache_memory_bytes": 32 << 20,
    "block_size": 32,
}


class Settings(BaseModel, extra="forbid"):
    """`bundle` is what each engine is pinned to, `engine` goes to vLLM's EngineArgs, `env_vars` to its process."""

    model: str = str(files("ray_kvfabric") / "demo" / "model")
    prefills: int = Field(1, ge=1)
    decodes: int = Field(1, ge=1)
    bundle: dict[str, float] = {"CPU": 0.5}
    placement: str = "pack"
    engine: dict[str, Any] = ON_CPUS
    env_vars: dict[str, str] = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


class Engine:
    """A vLLM engine in this actor's process: one thread makes it, steps it, and sleeps while there is nothing to do."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._jobs: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._answers: dict[str, Answer] = {}
        self._is_up = threading.Event()
        self.num_unfinished = 0
        self._is_successor = ray.get_runtime_context().was_current_actor_reconstructed
        self._thread = threading.Thread(target=self._run, args=(options,))
        self._thread.start()

    async def ready(self) -> bool:
        while not self._is_up.is_set():
            if not self._thread.is_alive():
                raise RuntimeError("the engine did not start; its log says why")
            await asyncio.sleep(0.1)
        return True

    async def unfinished(self) -> int:
        """Requests that the engine computes or still sends."""
        return self.num_unfinished

    async def answer(self, request_id: str, prompt: str, max_tokens: int, params: dict[str, Any]) -> AsyncIterator[str]:
        """The text as it is written, piece by piece. Raises ValueError for a request that the engine refuses.

        Who stops reading it ends the request. That must be said here: Serve cancels what a request of its own has
        begun, also a call of `abort` at its end.
        """
        answer = self._answers[request_id] = Answer(asyncio.get_running_loop(), asyncio.Queue())
        self._jobs.put(("add", (request_id, prompt, max_tokens, params)))
        try:
            await self.ready()
            while (piece := await answer.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise ValueError(str(piece))
                yield piece
        finally:
            del self._answers[request_id]
            self._jobs.put(("abort", (request_id,)))

    async def abort(self, request_id: str) -> None:
        """Nothing for a request that has ended."""
        self._jobs.put(("abort", (request_id,)))

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, END_S)

    # ---- the engine's thread -----------------------------------------------------------------------

    def _run(self, options: dict[str, Any]) -> None:
        try:
            self._step_all(options)
        except BaseException:
            logger.exception("the engine failed")
            if self._is_up.is_set() or self._is_successor:
                time.sleep(RETRY_S)
                os._exit(1)  # Ray starts it anew; nobody waits for an engine that does not step
            raise

    def _step_all(self, options: dict[str, Any]) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        engine = LLMEngine.from_engine_args(EngineArgs(**options))
        scheduler = engine.engine_core.engine_core.scheduler  # the engine itself does not count what it still sends
        self._is_up.set()
        wait_s: float | None = None
        while True:
            with suppress(queue.Empty):
                while True:
                    job = self._jobs.get(timeout=wait_s)
                    if job is None:
                        engine.engine_core.shutdown()
                        return
                    self._do(engine, *job)
                    wait_s = 0
            outputs = engine.step() if scheduler.has_requests() else []
            for output in outputs:
                self._tell(output)
            self.num_unfinished = len(scheduler.requests)
            wait_s = 0 if outputs else IDLE_STEP_S if scheduler.has_requests() else None

    def _do(self, engine: Any, job: str, arguments: tuple[Any, ...]) -> None:
        request_id, *rest = arguments
        if job == "abort":
            engine.abort_request([request_id])
            self._put(request_id, None)
            return
        try:
            engine.add_request(request_id, rest[0], sampling(*rest[1:]))
        except Exception as error:  # a prompt that is too long, for instance
            self._put(request_id, error)

    def _tell(self, output: Any) -> None:
        self._put(output.request_id, output.outputs[0].text)
        if output.finished:
            self._put(output.request_id, None)

    def _put(self, request_id: str, piece: str | Exception | None) -> None:
        answer = self._answers.get(request_id)
        if answer is not None:
            answer.loop.call_soon_threadsafe(answer.pieces.put_nowait, piece)


@dataclass
class Answer:
    """Ends with None, or with why the engine refuses it."""

    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[str | Exception | None]


def sampling(max_tokens: int, params: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"kv_transfer_params": params},
    )


class Asked(BaseModel, extra="forbid"):
    prompt: str = Field(min_length=1)
    max_tokens: int = Field(64, ge=1)


@dataclass
class Seated:
    """An engine, and how many requests it has open."""

    name: str
    actor: ActorHandle[Any]
    num_open: int = 0


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
class Split:
    def __init__(self, settings: Settings) -> None:
        self._fabric = Fabric.connect(f"split-{uuid.uuid4().hex[:8]}")
        try:
            self._seat_engines(settings)
        except BaseException:
            self._fabric.close()
            raise

    def _seat_engines(self, settings: Settings) -> None:
        count = settings.prefills + settings.decodes
        places = self._fabric.reserve(*[settings.bundle] * count, placement=settings.placement)
        engines = [self._seat(settings, index, place) for index, place in enumerate(places)]
        ray.get([each.actor.ready.remote() for each in engines], timeout=START_S)
        self._prefills, self._decodes = engines[: settings.prefills], engines[settings.prefills :]

    def _seat(self, settings: Settings, index: int, place: Any) -> Seated:
        is_prefill = index < settings.prefills
        name = f"prefill-{index}" if is_prefill else f"decode-{index - settings.prefills}"
        transfer = {
            "kv_connector": CONNECTOR,
            "kv_connector_module_path": MODULE,
            "kv_role": "kv_producer" if is_prefill else "kv_consumer",
            "engine_id": name,
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"fabric": self._fabric.name},
        }
        resources = dict(settings.bundle)
        options = {
            "name": f"{self._fabric.name}:{name}",
            "scheduling_strategy": place,
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            "max_restarts": -1,
            "runtime_env": {"env_vars": {**settings.env_vars, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}},
        }
        actor = ray.remote(Engine).options(**options)
        return Seated(name, actor.remote({"model": settings.model, **settings.engine, "kv_transfer_config": transfer}))

    async def __call__(self, request: Request) -> Response:
        try:
            asked = Asked.model_validate_json(await request.body())
        except ValidationError as error:
            return PlainTextResponse(f"{error}\n", status_code=422)
        pieces = self._answer(asked)
        try:
            first = await anext(pieces)
        except RayTaskError as error:
            return PlainTextResponse(f"{error.cause}\n", status_code=400)
        return StreamingResponse(resumed(first, pieces), media_type="text/plain")

    async def _answer(self, asked: Asked) -> AsyncIterator[str]:
        """Both engines begin at once: what the decode engine grants meets the prefill that computes."""
        request_id = uuid.uuid4().hex
        prefill, decode = (min(side, key=lambda each: each.num_open) for side in (self._prefills, self._decodes))
        wanted = consumer_params(request_id, prefill.name)
        promised = producer_params(request_id, decode.name)
        decode.num_open += 1
        pieces = decode.actor.answer.remote(request_id, asked.prompt, asked.max_tokens, wanted)
        filling = asyncio.create_task(fill(prefill, request_id, asked.prompt, promised))
        try:
            async for piece in pieces:
                yield await piece
        finally:  # also when the caller hangs up
            decode.num_open -= 1
            decode.actor.abort.remote(request_id)
            filling.cancel()

    def __del__(self) -> None:
        with suppress(RayError, AttributeError):
            ray.get([each.actor.close.remote() for each in (*self._prefills, *self._decodes)], timeout=END_S)
        self._fabric.close()


async def fill(prefill: Seated, request_id: str, prompt: str, promised: dict[str, Any]) -> None:
    """One that fails costs no answer: the decode engine computes what does not come."""
    prefill.num_open += 1
    try:
        async for piece in prefill.actor.answer.remote(request_id, prompt, 1, promised):
            await piece
    except RayError as error:
        logger.info("prefill %s failed: %s", prefill.name, error)
    finally:
        prefill.num_open -= 1
        prefill.actor.abort.remote(request_id)


async def resumed(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for piece in rest:
        yield piece


def build(args: dict[str, Any]) -> serve.Application:
    return Split.bind(Settings.model_validate(args))
