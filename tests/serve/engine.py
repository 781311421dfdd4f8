"""An engine in a process of its own, in-process vLLM, driven by messages: what the tests split in two.

add, abort, free_blocks, ...  ->  child: one thread steps the engine and answers between two steps
"""

from __future__ import annotations

import atexit
import hashlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil

from ray_kvfabric.integrations.vllm.params import PUSHES

START_S = 120.0
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class EngineFailed(RuntimeError):
    """The engine did not start, or died; the text is its traceback."""


class Engine:
    """`options` go to vllm's LLM."""

    def __init__(self, options: dict[str, Any], **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.serve.preload"])
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, options, environment))
        atexit.register(self.kill)  # workers of a parallel engine are children, which a daemon may not have
        with _environment(ENVIRONMENT):
            self.process.start()
        theirs.close()
        self.outputs: dict[str, dict[str, Any]] = {}
        self._is_up = False

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait_up(self) -> Engine:
        if not self._is_up:
            self._expect("up", START_S)
            self._is_up = True
        return self

    def add(self, request_id: str, prompt: list[int], max_tokens: int, params: dict[str, Any] | None = None) -> None:
        self._pipe.send(("add", (request_id, prompt, max_tokens, params)))

    def abort(self, request_id: str) -> None:
        self._pipe.send(("abort", (request_id,)))

    def ask(self, method: str, *arguments: Any, timeout_s: float = 30.0) -> Any:
        """What a method of `_Driver` returns."""
        self._pipe.send((method, arguments))
        return self._expect(method, timeout_s)

    def wait(self, request_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """The finished output: token_ids, params, finish_reason, first_s (time to its first token)."""
        end = time.monotonic() + timeout_s
        while request_id not in self.outputs:
            self._receive(end - time.monotonic(), f"the end of request {request_id}")
        return self.outputs.pop(request_id)

    def _expect(self, kind: str, timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s
        while True:
            got, value = self._receive(end - time.monotonic(), kind)
            if got == kind:
                return value

    def _receive(self, timeout_s: float, what: str) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(max(timeout_s, 0)):
                raise TimeoutError(f"no answer of the engine in time: {what}")
            kind, value = self._pipe.recv()
        except EOFError:
            raise EngineFailed(f"the engine's process ended with {self.process.exitcode}: {what}") from None
        if kind == "output":
            self.outputs[value["request_id"]] = value
        if kind == "error":
            raise EngineFailed(value)
        return kind, value

    def kill(self) -> None:
        if self.process.is_alive():
            family = psutil.Process(self.pid).children(recursive=True)
            self.process.kill()
            self.process.join(10)
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.kill()

    def close(self) -> None:
        if self.process.is_alive():
            self._pipe.send(("close", ()))
            self.process.join(20)
        if self.process.is_alive():
            self.kill()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _run(pipe: Connection, options: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        driver = _Driver(pipe, options)
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise
    pipe.send(("up", None))
    try:
        driver.run()
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
        raise
    sys.stdout.flush()


class _Driver:
    """In the child."""

    def __init__(self, pipe: Connection, options: dict[str, Any]) -> None:
        from vllm import LLM

        self._pipe = pipe
        self._llm = LLM(**options)
        self._engine = self._llm.llm_engine
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        self._begun: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._steps = 0
        self._preempted: dict[tuple[str, int], bool] = {}  # a request and how often, to whether its KV was promised
        self._is_open = True

    def run(self) -> None:
        while self._is_open:
            is_idle = not self._scheduler.has_requests()
            while self._pipe.poll(0.05 if is_idle else 0):
                self._obey(*self._pipe.recv())
                is_idle = False
            if self._scheduler.has_requests():
                self._step()

    def _obey(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method in ("add", "abort", "close"):
            getattr(self, "_" + method)(*arguments)
        else:
            self._pipe.send((method, getattr(self, method)(*arguments)))

    def _add(self, request_id: str, prompt: list[int], max_tokens: int, params: dict[str, Any] | None) -> None:
        from vllm import SamplingParams

        extra = {"kv_transfer_params": params} if params is not None else None
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, extra_args=extra)
        self._begun[request_id] = time.monotonic()
        self._engine.add_request(request_id, {"prompt_token_ids": prompt}, sampling)

    def _abort(self, request_id: str) -> None:
        self._engine.abort_request([request_id])

    def _close(self) -> None:
        self._is_open = False
        self._engine.engine_core.shutdown()

    def _step(self) -> None:
        self._steps += 1
        outputs = self._engine.step()
        self._preempted |= {
            (request.request_id, request.num_preemptions): bool((request.kv_transfer_params or {}).get(PUSHES))
            for request in self._scheduler.requests.values()
            if request.num_preemptions
        }
        now = time.monotonic()
        for output in outputs:
            tokens = output.outputs[0].token_ids
            if tokens and output.request_id not in self._first:
                self._first[output.request_id] = now - self._begun[output.request_id]
            if output.finished:
                self._pipe.send(("output", self._describe(output)))
        if not outputs:
            time.sleep(0.001)  # as the loop of an EngineCore process when a step had nothing to compute

    def _describe(self, output: Any) -> dict[str, Any]:
        return {
            "request_id": output.request_id,
            "token_ids": list(output.outputs[0].token_ids),
            "finish_reason": output.outputs[0].finish_reason,
            "params": output.kv_transfer_params,
            "cached": output.num_cached_tokens,
            "first_s": self._first.pop(output.request_id, None),
            "whole_s": time.monotonic() - self._begun.pop(output.request_id),
        }

    # ---- asked by tests ----------------------------------------------------------------------------

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The text that greedy decoding gives."""
        from vllm import SamplingParams

        (output,) = self._llm.generate([prompt], SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)
        return str(output.outputs[0].text)

    def free_blocks(self) -> int:
        return self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def num_requests(self) -> int:
        return len(self._scheduler.requests)

    def preemptions(self) -> int:
        return len(self._preempted)

    def preempted_promises(self) -> int:
        """Of requests whose KV was promised to a decode engine."""
        return sum(self._preempted.values())

    def steps(self) -> int:
        return self._steps

    def keep_kv_of_next(self) -> None:
        """Remembers the blocks of the next request that is scheduled."""
        self._kept: list[int] = []
        allocate, manager = self._scheduler.kv_cache_manager.allocate_slots, self._scheduler.kv_cache_manager

        def note(request: Any, *arguments: Any, **named: Any) -> Any:
            found = allocate(request, *arguments, **named)
            if found is not None:
                self._kept = list(manager.get_blocks(request.request_id).get_block_ids()[0])
            return found

        manager.allocate_slots = note

    def kept_kv(self, num_tokens: int) -> list[str]:
        """A digest of the KV of these first tokens, by layer; blocks are rows of tokens (latent attention)."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        worker = get_kv_transfer_group()._worker
        caches = [each.cache for each in worker._seat.manager._caches.all() if each.info.cache_id > 0]
        size = self._scheduler.block_size
        found = []
        for cache in caches:
            for tensor in range(cache.cache_desc.num_tensors):
                rows = cache.numpy(tensor)
                if rows.shape[0] < 2:  # the storage under all of them
                    continue
                of_token = rows.shape[1] // size
                flat = rows[self._kept].reshape(-1)[: num_tokens * of_token]
                found.append(hashlib.sha256(flat.tobytes()).hexdigest())
        return found

    def connector(self) -> dict[str, Any]:
        """The counts of both sides of the connector."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        worker = get_kv_transfer_group()._worker
        return {
            "sending": worker.producer.num_open if worker.producer else 0,
            "receiving": worker.consumer.num_open if worker.consumer else 0,
            "is_in_fabric_memory": worker._allocation is not None and worker._allocation.storage.is_used,
            "landed": sum(issued.progress for issued in worker._seat.manager._grants.standing()),
        }
