"""The hooks in the order and with the arguments in which vllm-ascend calls them, recorded from its source; no NPU.

a layer's cache   a tuple: K and V apart, or MLA's two parts of unequal sizes
save_kv_layer     a list of tensors; ("", []) from layers that have no such cache
on_kv_cache_written   before the attention, with the layer's name or without
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

from ray_kvfabric.integrations.vllm.connector import KVFabricConnector
from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params

BLOCKS, BLOCK_TOKENS, CHUNK, PROMPT = 12, 16, 64, 150
LAYERS = tuple(f"model.layers.{index}.self_attn.attn" for index in range(3))
NUM_BLOCKS = -(-PROMPT // BLOCK_TOKENS)

SHAPES = {
    "K and V apart": ((BLOCKS, BLOCK_TOKENS, 2, 32), (BLOCKS, BLOCK_TOKENS, 2, 32)),
    "MLA's unequal parts": ((BLOCKS, BLOCK_TOKENS, 1, 512), (BLOCKS, BLOCK_TOKENS, 1, 64)),
    "kernel blocks half as long": ((2 * BLOCKS, BLOCK_TOKENS // 2, 2, 32), (2 * BLOCKS, BLOCK_TOKENS // 2, 2, 32)),
}


def specification(shapes: Any) -> Any:
    if shapes == SHAPES["MLA's unequal parts"]:
        return MLAAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
    return FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)


class Side:
    """Both connectors of one engine, and what its model runner has."""

    def __init__(self, role: str, name: str, shapes: Any, fabric: str, address: str) -> None:
        transfer = SimpleNamespace(
            kv_role=role,
            engine_id=name,
            is_kv_producer=role == "kv_producer",
            is_kv_consumer=role == "kv_consumer",
            kv_connector_extra_config={"fabric": fabric, "address": address, "transfer_timeout_s": 20},
        )
        config = SimpleNamespace(
            kv_transfer_config=transfer,
            parallel_config=SimpleNamespace(rank=0, tensor_parallel_size=1, pipeline_parallel_size=1),
            device_config=SimpleNamespace(device_type="npu"),
            cache_config=SimpleNamespace(cache_dtype="auto"),
            compilation_config=SimpleNamespace(static_forward_context={}),
            speculative_config=None,
            model_config=SimpleNamespace(
                model="m",
                revision=None,
                dtype=torch.bfloat16,
                get_num_kv_heads=lambda _: 2,
                get_head_size=lambda: 32,
                get_num_layers=lambda _: len(LAYERS),
            ),
        )
        group = SimpleNamespace(kv_cache_spec=specification(shapes), layer_names=list(LAYERS))
        caches = SimpleNamespace(kv_cache_groups=[group], num_blocks=BLOCKS, kv_cache_tensors=[])
        self.worker = KVFabricConnector(config, KVConnectorRole.WORKER, caches)
        self.kv = {layer: tuple(torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes) for layer in LAYERS}
        self.worker.register_kv_caches(self.kv)
        self.scheduler = KVFabricConnector(config, KVConnectorRole.SCHEDULER, caches)

    def step(self, output: Any, writes: list[tuple[int, ...]] = (), *, named: bool = True) -> tuple[Any, Any]:  # type: ignore[assignment]
        """One step: `writes[i]` are the blocks that it computes; returns what finished sending and receiving."""
        metadata = self.scheduler.build_connector_meta(output)
        self.worker.handle_preemptions(metadata)
        self.worker.bind_connector_metadata(metadata)
        self.worker.start_load_kv(None)
        for index, layer in enumerate(LAYERS if writes else ()):
            self.worker.wait_for_layer_load(layer)
            for part in self.kv[layer]:
                rows = part.view(BLOCKS, -1)
                for block in writes:
                    rows[list(block)] = torch.randn(len(block), rows.shape[1]).to(part.dtype)
            self.worker.on_kv_cache_written(layer if named else "")
            self.worker.save_kv_layer(layer, list(self.kv[layer]), object())
            if index == 1:
                self.worker.save_kv_layer("", [], object())
        self.worker.wait_for_save()
        finished = self.worker.get_finished(set())
        self.worker.clear_connector_metadata()
        return finished


def scheduled(
    new: dict[str, tuple[tuple[list[int]], int, int]], cached: dict[str, tuple[Any, int, int]] | None = None
) -> Any:
    """By request: its blocks, or those that were added; tokens computed before; tokens of this step."""
    cached = cached or {}
    return SimpleNamespace(
        preempted_req_ids=None,
        num_scheduled_tokens={name: each[2] for name, each in {**new, **cached}.items()},
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=each[0], num_computed_tokens=each[1]) for name, each in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            new_block_ids=[each[0] for each in cached.values()],
            num_computed_tokens=[each[1] for each in cached.values()],
            resumed_req_ids=set(),
        ),
    )


def request(name: str, params: dict[str, Any]) -> Any:
    tokens = list(range(PROMPT))
    return SimpleNamespace(
        request_id=name, kv_transfer_params=params, num_prompt_tokens=PROMPT, prompt_token_ids=tokens,
        prompt_embeds=None, lora_request=None, mm_features=[],
    )  # fmt: skip


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def sides(request: pytest.FixtureRequest, address: str) -> Iterator[tuple[Side, Side]]:
    names = [f"{role}-{time.monotonic_ns()}" for role in ("prefill", "decode")]
    made = [
        Side(role, name, request.param, "ascend", address)
        for role, name in zip(("kv_producer", "kv_consumer"), names, strict=True)
    ]
    yield made[0], made[1]
    for side in made:
        side.worker.shutdown()


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_a_prompt_in_chunks_lands_block_by_block_in_the_other_engines_tensors(
    sides: tuple[Side, Side], named: bool
) -> None:
    prefill, decode = sides
    engines = [side.worker._engine_id for side in sides]
    sent, theirs = list(range(1, 1 + NUM_BLOCKS)), list(range(11, 11 - NUM_BLOCKS, -1))

    asked = request("d", consumer_params("t", engines[0]))
    decode.scheduler.on_new_request(asked)
    assert decode.scheduler.get_num_new_matched_tokens(asked, 0) == (PROMPT - 1, True), (
        "it computes the last one itself"
    )
    blocks = SimpleNamespace(get_block_ids=lambda: (theirs,))
    decode.scheduler.update_state_after_alloc(asked, blocks, PROMPT - 1)
    decode.step(scheduled({}))

    given = request("p", producer_params("t", engines[1]))
    prefill.scheduler.on_new_request(given)
    assert prefill.scheduler.get_num_new_matched_tokens(given, 0) == (0, False)
    chunks = [tuple(sent[:4]), tuple(sent[4:8]), tuple(sent[8:])]
    prefill.step(scheduled({"p": ((list(chunks[0]),), 0, CHUNK)}), [chunks[0]], named=named)
    prefill.step(scheduled({}, {"p": ((list(chunks[1]),), 64, CHUNK)}), [chunks[1]], named=named)
    prefill.step(scheduled({}, {"p": ((list(chunks[2]),), 128, PROMPT - 128)}), [chunks[2]], named=named)
    held, params = prefill.scheduler.request_finished(given, sent)
    assert held
    assert params == consumer_params("t", engines[0])

    ends: dict[str, set[str]] = {"sent": set(), "received": set()}
    end = time.monotonic() + 10
    while not all(ends.values()):
        assert time.monotonic() < end, ends
        ends["sent"] |= prefill.step(scheduled({}))[0] or set()
        ends["received"] |= decode.step(scheduled({}))[1] or set()
        time.sleep(0.01)
    assert ends == {"sent": {"p"}, "received": {"d"}}
    for layer in LAYERS:
        for mine, other in zip(prefill.kv[layer], decode.kv[layer], strict=True):
            assert torch.equal(mine.view(BLOCKS, -1)[sent], other.view(BLOCKS, -1)[theirs])
    assert not any(part.view(BLOCKS, -1)[0].any() for parts in decode.kv.values() for part in parts)
