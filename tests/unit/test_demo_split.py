"""The split run without Ray: two caches, blocks copied between them, and what happens when one is missing."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest

from ray_kvfabric.demo.checkpoint import default_prompt
from ray_kvfabric.demo.generate import (
    blocks_for,
    continuation,
    first_difference,
    private_cache,
    scattered,
    write_alone,
)
from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.request import ModelChoice, Request
from ray_kvfabric.errors import ConfigError

NEW_TOKENS = 24
FOUR_BLOCKS = 64  # tokens; the last one is not prefilled, and still in the fourth block


def request_of(tokens: Sequence[int], **fields: object) -> Request:
    return Request(tokens=tuple(tokens), max_new_tokens=NEW_TOKENS, **fields)


def cache_of(llama: Llama, request: Request) -> PagedKV:
    """Random blocks of a cache twice as large."""
    spacious = private_cache(llama.config, 2 * request.capacity_tokens + 32, request.block_tokens)
    table = scattered(blocks_for(request.capacity_tokens, request.block_tokens), len(spacious.block_table))
    return PagedKV(spacious.keys, spacious.values, table)


def write_split(llama: Llama, request: Request) -> list[int]:
    """What the two workers do; the push is numpy's."""
    source, target = cache_of(llama, request), cache_of(llama, request)
    llama.prefill(request.tokens[:-1], source)
    sources, targets = ([each.block_table[index] for index in request.pushed] for each in (source, target))
    for mine, theirs in zip((*source.keys, *source.values), (*target.keys, *target.values), strict=True):
        theirs[targets] = mine[sources]
    sampler = request.sampler(llama.config)
    return list(continuation(llama, request.tokens, target, sampler, request.max_new_tokens))


def write_whole(llama: Llama, request: Request) -> list[int]:
    sampler = request.sampler(llama.config)
    return write_alone(llama, request.tokens, sampler, request.max_new_tokens, request.block_tokens)


def random_run(seed: int, **fields: object) -> tuple[Llama, Request]:
    model = ModelChoice.random(seed)
    tokens = model.text().encode(default_prompt())[:FOUR_BLOCKS]
    return Llama(model.load()), request_of(tokens, seed=seed, **fields)


def test_split_text_equals_the_single_process() -> None:
    model = ModelChoice.shipped()
    llama, tokens = Llama(model.load()), model.text().encode(default_prompt())[:300]
    for length in (2, 17, 18, 300):  # 16, 17: the last block is just full, just begun
        request = request_of(tokens[:length])
        assert write_split(llama, request) == write_whole(llama, request)


def test_leaving_out_a_block_changes_the_text_for_18_of_20_seeds() -> None:
    changed = 0
    for seed in range(20):
        llama, request = random_run(seed, left_out_block=seed % 4)
        assert request.prompt_blocks == 4
        changed += write_split(llama, request) != write_whole(llama, request)
    assert changed >= 18


def test_with_all_blocks_random_weights_agree_as_well() -> None:
    for seed in range(3):
        llama, request = random_run(seed)
        assert write_split(llama, request) == write_whole(llama, request)


def test_one_wrong_block_of_one_layer_changes_the_logits() -> None:
    llama, request = random_run(0)
    cache = cache_of(llama, request)
    llama.prefill(request.tokens[:-1], cache)
    before = llama.decode(request.tokens[-1], len(request.tokens) - 1, cache)
    cache.values[2][cache.block_table[1]] += 1
    assert not np.array_equal(before, llama.decode(request.tokens[-1], len(request.tokens) - 1, cache))


def test_each_token_follows_from_all_before_it() -> None:
    """Against prefills of the whole sequence so far, which know nothing of positions or a kept cache."""
    llama, request = random_run(0)
    sampler, sequence = request.sampler(llama.config), list(request.tokens)
    for _ in range(8):
        cache = private_cache(llama.config, len(sequence), request.block_tokens)
        sequence.append(sampler.pick(llama.prefill(sequence, cache), len(sequence)))
    assert write_whole(llama, request)[:8] == sequence[len(request.tokens) :]


def test_first_difference_is_a_position() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_scattered_blocks_are_distinct_and_out_of_order() -> None:
    tables = [scattered(50, 100) for _ in range(3)]
    assert all(len(set(table)) == 50 and set(table) <= set(range(100)) for table in tables)
    assert all(table != sorted(table) for table in tables)


# ---- requests


def test_the_last_prompt_token_is_left_to_the_decoder() -> None:
    assert [request_of(range(count)).prompt_blocks for count in (2, 17, 18)] == [1, 1, 2]


def test_a_left_out_block_is_not_pushed() -> None:
    assert request_of(range(64)).pushed == [0, 1, 2, 3]
    assert request_of(range(64), left_out_block=2).pushed == [0, 1, 3]


@pytest.mark.parametrize(
    ("tokens", "fields", "text"),
    [
        (1, {}, "prompt must have at least 2 tokens, got 1"),
        (64, {"left_out_block": 4}, r"leave_out_block must be in \[0, 4\)"),
        (64, {"left_out_block": -1}, "got -1"),
        (10, {"left_out_block": 0}, "nothing to push"),
        (64, {"temperature": -1.0}, "temperature"),
    ],
)
def test_refused_requests_say_why(tokens: int, fields: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        request_of(range(tokens), **fields)


def test_both_sides_derive_the_same_transfer_ids() -> None:
    request = request_of(range(64))
    copied = pickle.loads(pickle.dumps(request))
    ids = [request.transfer_id(layer) for layer in range(4)]
    assert ids == [copied.transfer_id(layer) for layer in range(4)]
    assert len({*ids, *(request_of(range(64)).transfer_id(layer) for layer in range(4))}) == 8
