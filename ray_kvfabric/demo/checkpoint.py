"""A model directory in the Hugging Face layout (config.json, *.safetensors, tokenizer.json), in memory.

The directory that ships with the package was made by examples/train_demo_model.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ray_kvfabric.demo.llama_config import LlamaConfig, parse_config
from ray_kvfabric.demo.text import Text
from ray_kvfabric.demo.weights import Array, random_weights, read_weights
from ray_kvfabric.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a Llama needs: sizes, float32 tensors under the names of LlamaForCausalLM, and the tokenizer."""

    config: LlamaConfig
    weights: Mapping[str, Array]
    text: Text


def default_model_dir() -> Path:
    """The model that ships with the package."""
    return Path(str(resources.files("ray_kvfabric.demo"))) / "model"


def default_prompt() -> str:
    """A prompt of a little more than 1,000 tokens of the shipped tokenizer; it stops amid a sentence."""
    prompt = resources.files("ray_kvfabric.demo") / "default_prompt.txt"
    return prompt.read_text(encoding="utf-8").rstrip()


def load_checkpoint(directory: Path) -> Checkpoint:
    """Raises ConfigError, naming the field or tensor, for whatever the demo cannot compute."""
    config = _read_config(directory / "config.json")
    return Checkpoint(config, read_weights(directory, config), Text.from_file(directory / "tokenizer.json"))


def random_checkpoint(config: LlamaConfig, seed: int) -> Checkpoint:
    """Random weights of any size under the shipped tokenizer, whose vocabulary `config` must have."""
    text = Text.from_file(default_model_dir() / "tokenizer.json")
    if config.vocab_size != text.vocab_size:
        raise ConfigError(f"vocab_size must be {text.vocab_size} for random weights, got {config.vocab_size}")
    return Checkpoint(config, random_weights(config, seed), text)


def _read_config(path: Path) -> LlamaConfig:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold an object")
    return parse_config(raw)
