"""A Llama decoder in numpy. It keeps no K and V: every call reads and writes the PagedKV it is given.

Shapes: n new tokens, m tokens in the cache with them, h query heads, g = kv_heads, d = head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ray_kvfabric.demo.checkpoint import Checkpoint
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.weights import Array
from ray_kvfabric.errors import ConfigError

_SCORES_AT_ONCE = 1 << 22  # 16 MiB of attention scores


class Llama:
    """Logits of the next token. The same cache bytes give the same logits, bit by bit."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self._weights = checkpoint.weights
        head = "model.embed_tokens" if self.config.tie_word_embeddings else "lm_head"
        self._head = self._weights[f"{head}.weight"]
        half = np.arange(0, self.config.head_dim, 2, dtype=np.float32) / self.config.head_dim
        self._frequencies = (self.config.rope_theta**-half).astype(np.float32)

    def prefill(self, tokens: Sequence[int], cache: PagedKV, *, on_layer: Callable[[int], None] | None = None) -> Array:
        """Logits [vocab_size] after `tokens`, the whole sequence so far.

        `on_layer(layer)` is called as soon as K and V of all tokens in that layer lie in the cache, before
        the layer's own attention, so that moving them overlaps with it and with the layers that follow.
        """
        return self._forward(tokens, 0, cache, on_layer)

    def decode(self, token: int, position: int, cache: PagedKV) -> Array:
        """Logits [vocab_size] after `token` at `position`; the cache holds all positions before it."""
        return self._forward([token], position, cache, None)

    def _forward(
        self, tokens: Sequence[int], start: int, cache: PagedKV, on_layer: Callable[[int], None] | None
    ) -> Array:
        self._check_length(start + len(tokens))
        rotation = self._rotation(start, len(tokens))
        x = self._weights["model.embed_tokens.weight"][list(tokens)]
        for layer in range(self.config.num_hidden_layers):
            q, k, v = self._project(layer, x, rotation)
            cache.write(layer, start, k, v)
            if on_layer is not None:
                on_layer(layer)
            mixed = _attend(q, *cache.gather(layer, start + len(tokens)))
            x = x + self._linear(layer, "self_attn.o_proj", mixed)
            x = x + self._mlp(layer, x)
        return np.asarray(self._head @ self._norm("model.norm", x[-1]))

    def _check_length(self, length: int) -> None:
        longest = self.config.max_position_embeddings
        if length > longest:
            raise ConfigError(f"max_position_embeddings is {longest}, got a sequence of {length} tokens")

    def _project(self, layer: int, x: Array, rotation: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """q [n, h, d] and k [n, g, d], both rotated, and v [n, g, d]."""
        normed = self._norm(f"model.layers.{layer}.input_layernorm", x)
        q, k, v = (
            self._linear(layer, f"self_attn.{name}_proj", normed).reshape(len(x), -1, self.config.head_dim)
            for name in "qkv"
        )
        return _rotate(q, *rotation), _rotate(k, *rotation), v

    def _mlp(self, layer: int, x: Array) -> Array:
        normed = self._norm(f"model.layers.{layer}.post_attention_layernorm", x)
        gate = self._linear(layer, "mlp.gate_proj", normed)
        wide = _silu(gate) * self._linear(layer, "mlp.up_proj", normed)
        return self._linear(layer, "mlp.down_proj", wide)

    def _linear(self, layer: int, name: str, x: Array) -> Array:
        return np.asarray(x @ self._weights[f"model.layers.{layer}.{name}.weight"].T)

    def _norm(self, name: str, x: Array) -> Array:
        mean_square = np.square(x).mean(-1, keepdims=True)
        scale = np.float32(1) / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps))
        return np.asarray(self._weights[f"{name}.weight"] * (x * scale))

    def _rotation(self, start: int, count: int) -> tuple[Array, Array]:
        """Cosines and sines [count, 1, d / 2] of the positions from `start` on."""
        positions = np.arange(start, start + count, dtype=np.float32)
        angles = np.outer(positions, self._frequencies)[:, None, :]
        return np.cos(angles), np.sin(angles)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """RoPE as Hugging Face stores it: entry i turns with entry i + d / 2."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _silu(x: Array) -> Array:
    """x * sigmoid(x), by tanh because exp(-x) overflows."""
    half = np.float32(0.5)
    return np.asarray(x * (half * np.tanh(half * x) + half))


def _attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention [n, h * d] of q [n, h, d], the last n of the m tokens of k and v [m, g, d]."""
    start = len(k) - len(q)
    mixed = np.empty_like(q)
    for rows in _row_chunks(len(q), q.shape[1] * len(k)):
        seen = start + rows.stop
        mixed[rows] = _attend_chunk(q[rows], k[:seen], v[:seen])
    return mixed.reshape(len(q), -1)


def _row_chunks(count: int, scores_per_row: int) -> Iterator[slice]:
    step = max(1, _SCORES_AT_ONCE // scores_per_row)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _attend_chunk(q: Array, k: Array, v: Array) -> Array:
    """As `_attend`, with all scores at once, [n, h, d]. Query head i reads KV head i // (h / g)."""
    (n, h, d), (m, g, _) = q.shape, k.shape
    grouped = q.reshape(n, g, h // g, d).transpose(1, 2, 0, 3).reshape(g, -1, d)
    scores = grouped @ k.transpose(1, 2, 0) * np.float32(d**-0.5)
    future = np.arange(m) > np.arange(m - n, m)[:, None]
    scores.reshape(g, h // g, n, m)[..., future] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v.transpose(1, 0, 2)
    return np.asarray(mixed.reshape(g, h // g, n, d).transpose(2, 0, 1, 3).reshape(n, h, d))
