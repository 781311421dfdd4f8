"""Tiny random models of other shapes, made in a moment; the tokenizer is the demo model's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.serve.trio import MODEL

COMMON: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}


def _save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    return folder


def sliding_window(folder: Path) -> Path:
    """Two KV groups that overlay each other: two layers see 64 tokens back, two see everything."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        **COMMON, num_hidden_layers=4, num_key_value_heads=2, head_dim=32, sliding_window=64, layer_types=kinds,
        initializer_range=0.3, query_pre_attn_scalar=32,
    )  # fmt: skip
    return _save(Gemma3ForCausalLM(config).float(), folder)


def latent_attention(folder: Path) -> Path:
    """DeepSeek's multi-head latent attention: one tensor a layer, no heads."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV2Config(
        **COMMON, num_hidden_layers=3, num_key_value_heads=4, kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64,
        qk_nope_head_dim=32, v_head_dim=32, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        moe_intermediate_size=64, first_k_dense_replace=3, initializer_range=0.1, topk_method="greedy",
    )  # fmt: skip
    return _save(DeepseekV2ForCausalLM(config).float(), folder)
