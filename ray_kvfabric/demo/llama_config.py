"""What the demo needs to know of a Llama's config.json, and the refusal of what it cannot compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_kvfabric.errors import ConfigError

_REFUSED_UNLESS: Mapping[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
}

_REQUIRED_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_DERIVED_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Sizes under the names of config.json, with the defaults that transformers gives them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    end_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _REQUIRED_SIZES + _DERIVED_SIZES:
            _check_size(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads must divide num_attention_heads, "
                f"got {self.num_key_value_heads} and {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, got {self.head_dim}")


def parse_config(raw: Mapping[str, object]) -> LlamaConfig:
    """What a config.json says; ConfigError names the field that cannot be honoured."""
    for name, supported in _REFUSED_UNLESS.items():
        _check_supported(name, raw.get(name, supported[0]), supported)
    sizes = {name: _size(raw, name) for name in _REQUIRED_SIZES}
    heads = sizes["num_attention_heads"]
    return LlamaConfig(
        **sizes,
        num_key_value_heads=_size(raw, "num_key_value_heads", heads),
        head_dim=_size(raw, "head_dim", sizes["hidden_size"] // heads),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(raw),
        max_position_embeddings=_size(raw, "max_position_embeddings", 2048),
        tie_word_embeddings=raw.get("tie_word_embeddings") is True,
        end_token_ids=_end_token_ids(raw.get("eos_token_id")),
    )


def _rope_theta(raw: Mapping[str, object]) -> float:
    """Old files say rope_theta and rope_scaling; new ones put both into rope_parameters."""
    theta = _number(raw, "rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = raw.get(name) or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{name} must be an object or null, got {rope!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        _check_supported(f"{name}.rope_type", kind, ("default",))
        theta = _number(rope, "rope_theta", theta)
    return theta


def _end_token_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) for token in tokens):
        raise ConfigError(f"eos_token_id must be an integer, a list of them or null, got {value!r}")
    return tuple(tokens)


def _size(raw: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = default if raw.get(name) is None else raw[name]
    if value is None:
        raise ConfigError(f"{name} is missing")
    return _check_size(name, value)


def _number(raw: Mapping[str, object], name: str, default: float) -> float:
    value = default if raw.get(name) is None else raw[name]
    if not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _check_size(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}")
    return value


def _check_supported(name: str, value: object, supported: tuple[object, ...]) -> None:
    if value not in supported:
        raise ConfigError(f"{name} {value!r} is not supported, only {supported[0]!r}")
