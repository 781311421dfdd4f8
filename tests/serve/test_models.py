"""Models whose KV cache has another shape: several groups, latent attention, and heads that lie on two workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve.models import latent_attention, sliding_window
from tests.serve.trio import VERSION, Setting, Trio, prompts

LENGTHS = (1, 2, 20, 64, 127, 159, 200, 300, 777)  # 127 and 159: the window of 64 ends with a block


@contextmanager
def running(setting: Setting, address: str, fabric: str, block_nbytes: int | None = None) -> Iterator[Trio]:
    trio = Trio(setting, address, fabric, block_nbytes=block_nbytes)
    try:
        yield trio
    finally:
        trio.close()


@pytest.mark.skipif(VERSION == "0.29", reason="vLLM 0.29 cannot compute again what of several KV groups did not come")
def test_a_model_with_two_kv_groups_gives_the_undivided_engines_tokens(address: str, tmp_path: Path) -> None:
    setting = Setting(model=str(sliding_window(tmp_path / "model")), budget=128)
    with running(setting, address, "groups", 64 << 10) as trio:
        asked = prompts(LENGTHS, seed=61)
        for each in ("nothing", "prefixes"):
            assert [got["token_ids"] for got in trio.ask_split(asked)] == trio.ask_plain(asked), f"{each} cached"
        trio.settle()


@pytest.mark.slow
def test_latent_attention_arrives_byte_by_byte(address: str, tmp_path: Path) -> None:
    """Its CPU kernels give other tokens for another batch, so the KV itself is compared."""
    size = 32 if torch.cpu._is_amx_tile_supported() else 16  # what the kernels of this CPU take
    model = str(latent_attention(tmp_path / "model"))
    setting = Setting(model=model, block_size=size, budget=2560, dtype="bfloat16")
    with running(setting, address, "latent", 64 << 10) as trio:
        for index, prompt in enumerate(prompts(LENGTHS, seed=62)):
            trio.prefill.ask("keep_kv_of_next")
            trio.decode.ask("keep_kv_of_next")
            trio.decode.add(f"d{index}", prompt, 1, consumer_params(f"t{index}", "prefill"))
            trio.prefill.add(f"p{index}", prompt, 1, producer_params(f"t{index}", "decode"))
            trio.prefill.wait(f"p{index}")
            trio.decode.wait(f"d{index}")
            sent, got = trio.prefill.ask("kept_kv", len(prompt) - 1), trio.decode.ask("kept_kv", len(prompt) - 1)
            assert sent
            assert sent == got, f"a prompt of {len(prompt)} tokens"


@pytest.mark.slow
def test_heads_on_two_workers_of_each_side_give_the_undivided_engines_tokens(address: str) -> None:
    setting = replace(Setting(budget=128), tensor_parallel=2)
    with running(setting, address, "parallel") as trio:
        asked = prompts(LENGTHS, seed=63)
        assert [got["token_ids"] for got in trio.ask_split(asked)] == trio.ask_plain(asked)
        trio.settle()


@pytest.mark.slow
def test_an_engine_may_be_both_sides_at_once(address: str) -> None:
    setting = Setting(roles=("kv_both", "kv_both"))
    with running(setting, address, "both") as trio:
        asked = prompts(LENGTHS, seed=64)
        assert [got["token_ids"] for got in trio.ask_split(asked)] == trio.ask_plain(asked)
        trio.decode.add("back-p", asked[3], 1, producer_params("back", "prefill"))
        trio.prefill.add("back-d", asked[3], 24, consumer_params("back", "decode"))
        trio.decode.wait("back-p")
        assert trio.prefill.wait("back-d")["token_ids"] == trio.ask_plain([asked[3]])[0]
        trio.settle()
