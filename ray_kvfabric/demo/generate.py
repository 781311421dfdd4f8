"""Writing text with a Llama over paged K and V: the steps that the split run and the single process share.

The last token of a prompt is the first one to be decoded: a prefill fills the cache with K and V of all tokens
before it, and whoever decodes needs that cache and the prompt, nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.llama_config import LlamaConfig
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.sampling import Sampler


def blocks_for(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def scattered(count: int, num_blocks: int) -> list[int]:
    """A block table of `count` random blocks, as a busy server's would look."""
    return random.sample(range(num_blocks), count)


def tensor_shape(config: LlamaConfig, num_blocks: int, block_tokens: int) -> list[int]:
    """Of one K or V tensor of a paged cache; a cache has two such tensors a layer, K then V."""
    return [num_blocks, block_tokens, config.num_key_value_heads, config.head_dim]


def private_cache(config: LlamaConfig, tokens: int, block_tokens: int) -> PagedKV:
    """A cache in plain arrays that belong to no fabric."""
    count = blocks_for(tokens, block_tokens)
    shape = tensor_shape(config, count, block_tokens)
    tensors = [np.zeros(shape, np.float32) for _ in range(2 * config.num_hidden_layers)]
    return PagedKV(tensors[::2], tensors[1::2], range(count))


def continuation(llama: Llama, tokens: Sequence[int], cache: PagedKV, sampler: Sampler, count: int) -> Iterator[int]:
    """`count` new tokens; the cache holds all of `tokens` but the last."""
    token = tokens[-1]
    for position in range(len(tokens), len(tokens) + count):
        token = sampler.pick(llama.decode(token, position - 1, cache), position)
        yield token


def write_alone(llama: Llama, tokens: Sequence[int], sampler: Sampler, count: int, block_tokens: int) -> list[int]:
    """The whole run in one process and one private cache."""
    cache = private_cache(llama.config, len(tokens) + count, block_tokens)
    llama.prefill(tokens[:-1], cache)
    return list(continuation(llama, tokens, cache, sampler, count))


def first_difference(ours: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first position at which two continuations differ, None when they are equal."""
    for position, (mine, theirs) in enumerate(zip(ours, expected, strict=False)):
        if mine != theirs:
            return position
    return None if len(ours) == len(expected) else min(len(ours), len(expected))
