"""A Llama's weights as float32 arrays: which there are, read from safetensors files or drawn at random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from ray_kvfabric.demo.llama_config import LlamaConfig
from ray_kvfabric.errors import ConfigError

Array = npt.NDArray[np.float32]

_INDEX = "model.safetensors.index.json"
_RANDOM_GAIN = 1.5


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The names of LlamaForCausalLM and their shapes; a matrix is [out, in]."""
    hidden, wide = config.hidden_size, config.intermediate_size
    query_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, query_size),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def read_weights(directory: Path, config: LlamaConfig) -> dict[str, Array]:
    """The tensors of `tensor_shapes`; others in the files are left alone."""
    shapes = tensor_shapes(config)
    weights: dict[str, Array] = {}
    for path in _weight_files(directory):
        weights |= _read_file(path, shapes)
    if missing := sorted(shapes.keys() - weights.keys()):
        raise ConfigError(f"tensor {missing[0]} is missing in {directory} ({len(missing)} are)")
    return weights


def random_weights(config: LlamaConfig, seed: int) -> dict[str, Array]:
    """Normal matrices, wide enough for each layer to change what the next token is; norms are ones."""
    generator = np.random.default_rng(seed)
    return {name: _random(generator, shape) for name, shape in tensor_shapes(config).items()}


def _random(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    scale = np.float32(_RANDOM_GAIN / shape[1] ** 0.5)
    return np.asarray(generator.standard_normal(shape, np.float32) * scale)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.exists():
        return [directory / "model.safetensors"]
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"weight_map of {index} cannot be read: {error!r}") from error
    return [directory / name for name in sorted(set(weight_map.values()))]


def _read_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name: _as_float32(name, entries[name], shapes[name]) for name in shapes if name in entries}


def _as_float32(name: str, entry: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    if tuple(entry["shape"]) != shape:
        raise ConfigError(f"tensor {name} has shape {tuple(entry['shape'])}, not {shape}")
    return _decode(name, entry["dtype"], entry["data"]).reshape(shape)


def _decode(name: str, dtype: str, data: bytes) -> Array:
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise ConfigError(f"tensor {name} has dtype {dtype}, only F32, F16 and BF16 are supported")
