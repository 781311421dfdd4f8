"""The demo's numpy Llama against transformers, its paged caches, and the directories it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.demo.checkpoint import (
    Checkpoint,
    default_model_dir,
    default_prompt,
    load_checkpoint,
    random_checkpoint,
)
from ray_kvfabric.demo.llama import Llama
from ray_kvfabric.demo.llama_config import LlamaConfig, parse_config
from ray_kvfabric.demo.paged_kv import PagedKV
from ray_kvfabric.demo.sampling import Sampler
from ray_kvfabric.demo.weights import Array, random_weights
from ray_kvfabric.errors import ConfigError

BLOCK_TOKENS = 16
PROMPT = "Return the name of the file. If the file does not exist, "

TINY: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load_checkpoint(default_model_dir())


@pytest.fixture(scope="module")
def llama(shipped: Checkpoint) -> Llama:
    return Llama(shipped)


@pytest.fixture(scope="module")
def prompt_tokens(shipped: Checkpoint) -> list[int]:
    return shipped.text.encode(default_prompt())


def make_cache(config: LlamaConfig, capacity_tokens: int, shuffle_seed: int | None = None) -> PagedKV:
    """A cache with a spare block; NaN wherever nothing was written."""
    blocks = -(-capacity_tokens // BLOCK_TOKENS) + 1
    shape = (blocks, BLOCK_TOKENS, config.num_key_value_heads, config.head_dim)
    tensors = [np.full(shape, np.nan, np.float32) for _ in range(2 * config.num_hidden_layers)]
    table = list(range(blocks))
    if shuffle_seed is not None:
        table = np.random.default_rng(shuffle_seed).permutation(blocks).tolist()
    return PagedKV(tensors[::2], tensors[1::2], table[:-1])


def generate(llama: Llama, tokens: Sequence[int], sampler: Sampler, cache: PagedKV, count: int) -> Iterator[int]:
    logits = llama.prefill(tokens, cache)
    for position in range(len(tokens), len(tokens) + count):
        token = sampler.pick(logits, position)
        yield token
        logits = llama.decode(token, position, cache)


def text_of(llama: Llama, tokens: Sequence[int], sampler: Sampler, shuffle_seed: int | None = None) -> list[int]:
    cache = make_cache(llama.config, len(tokens) + 24, shuffle_seed)
    return list(generate(llama, tokens, sampler, cache, 24))


# --- the shipped model


def test_shipped_directory_is_small() -> None:
    assert sum(path.stat().st_size for path in default_model_dir().iterdir()) <= 2 << 20


def test_default_prompt_is_a_little_over_a_thousand_tokens(prompt_tokens: list[int]) -> None:
    assert 1000 < len(prompt_tokens) < 1200


def test_logits_equal_those_of_transformers(llama: Llama, prompt_tokens: list[int]) -> None:
    import torch
    from transformers import LlamaForCausalLM

    reference = LlamaForCausalLM.from_pretrained(default_model_dir(), dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([prompt_tokens])).logits[0].numpy()
    for length in (1, 2, 15, 16, 17, 300, len(prompt_tokens)):
        logits = llama.prefill(prompt_tokens[:length], make_cache(llama.config, length))
        np.testing.assert_allclose(logits, expected[length - 1], atol=1e-3)
        assert logits.argmax() == expected[length - 1].argmax()


def test_tokens_equal_those_of_transformers(shipped: Checkpoint) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model_dir())
    tokens = shipped.text.encode(PROMPT)
    assert tokenizer(PROMPT)["input_ids"] == tokens
    assert tokens[0] == tokenizer.bos_token_id
    assert shipped.text.decode(tokens) == PROMPT


def test_stream_gives_the_same_text_and_whole_characters(shipped: Checkpoint) -> None:
    text = "Grüße, naïve 漢字 \N{GRINNING FACE} end"
    stream = shipped.text.stream()
    pieces = [stream.push(token) for token in shipped.text.encode(text)]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_stream_ends_with_what_never_became_a_character(shipped: Checkpoint) -> None:
    stream = shipped.text.stream()
    first_bytes = shipped.text.encode("\N{GRINNING FACE}")[1:-1]
    assert [stream.push(token) for token in first_bytes] == [""] * len(first_bytes)
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert stream.finish() == ""


# --- paged K and V


def test_paged_decode_equals_prefill(llama: Llama, prompt_tokens: list[int]) -> None:
    cache = make_cache(llama.config, 1020, shuffle_seed=1)
    llama.prefill(prompt_tokens[:1000], cache)
    for position in range(1000, 1020):
        logits = llama.decode(prompt_tokens[position], position, cache)
    whole = llama.prefill(prompt_tokens[:1020], make_cache(llama.config, 1020))
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_prefill_in_chunks_equals_prefill_at_once(
    llama: Llama, prompt_tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llama.prefill(prompt_tokens[:200], make_cache(llama.config, 200))
    monkeypatch.setattr("ray_kvfabric.demo.llama._SCORES_AT_ONCE", 4 * 200 * 7)
    chunked = llama.prefill(prompt_tokens[:200], make_cache(llama.config, 200))
    np.testing.assert_allclose(chunked, whole, atol=1e-4)


def test_text_does_not_depend_on_the_block_table(llama: Llama, prompt_tokens: list[int]) -> None:
    texts = [text_of(llama, prompt_tokens, Sampler(seed=3), shuffle) for shuffle in (None, 1, 2)]
    assert texts[0] == texts[1] == texts[2]


def test_decode_of_copied_blocks_is_bit_identical(llama: Llama, prompt_tokens: list[int]) -> None:
    here = make_cache(llama.config, 320, shuffle_seed=1)
    there = make_cache(llama.config, 320, shuffle_seed=2)
    llama.prefill(prompt_tokens[:300], here)
    for source, target in zip([*here.keys, *here.values], [*there.keys, *there.values], strict=True):
        target[there.block_table] = source[here.block_table]
    logits = [llama.decode(prompt_tokens[300], 300, cache) for cache in (here, there)]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_on_layer_follows_that_layers_write_and_precedes_the_next(llama: Llama) -> None:
    cache = make_cache(llama.config, 20)
    written: list[list[bool]] = []

    def look(layer: int) -> None:
        written.append([not np.isnan(v[cache.block_table[0]]).any() for v in cache.values])
        assert len(written) == layer + 1

    llama.prefill(range(20), cache, on_layer=look)
    layers = llama.config.num_hidden_layers
    assert written == [[i <= layer for i in range(layers)] for layer in range(layers)]


def test_writing_past_the_last_block_fails(llama: Llama) -> None:
    with pytest.raises(IndexError):
        llama.prefill(range(BLOCK_TOKENS + 1), make_cache(llama.config, BLOCK_TOKENS))


def test_sequence_longer_than_the_model_allows_fails(llama: Llama) -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        llama.decode(0, llama.config.max_position_embeddings, make_cache(llama.config, BLOCK_TOKENS))


# --- sampling


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_two_runs_write_the_same_tokens(llama: Llama, shipped: Checkpoint, temperature: float) -> None:
    sampler = Sampler(temperature=temperature, seed=5)
    tokens = shipped.text.encode(PROMPT)
    assert text_of(llama, tokens, sampler) == text_of(llama, tokens, sampler)


def test_seeds_write_different_tokens(llama: Llama, shipped: Checkpoint) -> None:
    tokens = shipped.text.encode(PROMPT)
    assert text_of(llama, tokens, Sampler(seed=1)) != text_of(llama, tokens, Sampler(seed=2))


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = np.array([0.0, 3.0, 1.0], np.float32)
    assert Sampler(temperature=0).pick(logits, 0) == 1
    assert Sampler(temperature=0, suppressed=(1,)).pick(logits, 0) == 2


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    sampler = Sampler(temperature=1.0, seed=7)
    drawn = np.bincount([sampler.pick(logits, position) for position in range(4000)], minlength=3)
    np.testing.assert_allclose(drawn / 4000, [0.2, 0.5, 0.3], atol=0.03)


def test_suppressed_tokens_are_never_drawn() -> None:
    sampler = Sampler(temperature=5.0, suppressed=(0, 3))
    drawn = {sampler.pick(np.array([9, 1, 1, 9], np.float32), position) for position in range(100)}
    assert drawn == {1, 2}


@pytest.mark.parametrize("field", ["temperature", "seed"])
def test_sampler_refuses_negative(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Sampler(**{field: -1})  # type: ignore[arg-type]


# --- random weights


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_write_another_text_for_each_prompt(tied: bool) -> None:
    config = parse_config(TINY | {"hidden_size": 64, "head_dim": 16, "tie_word_embeddings": tied})
    checkpoint = random_checkpoint(config, seed=0)
    prompts = ("Return the length", "Return the name", "Open a file", "Open a file.")
    texts = [
        tuple(text_of(Llama(checkpoint), checkpoint.text.encode(prompt), Sampler(temperature=0))) for prompt in prompts
    ]
    assert len(set(texts)) == len(prompts)
    assert all(len(set(text)) > 4 for text in texts)


def test_random_weights_follow_the_seed(shipped: Checkpoint) -> None:
    first, again, other = (random_weights(shipped.config, seed) for seed in (0, 0, 1))
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_random_weights_need_the_shipped_vocabulary(shipped: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        random_checkpoint(dataclasses.replace(shipped.config, vocab_size=7), seed=0)


# --- model directories


def write_directory(directory: Path, raw: dict[str, object], weights: dict[str, Any], shards: int = 1) -> Path:
    """Writes torch tensors over `shards` safetensors files, with an index if there is more than one."""
    from safetensors.torch import save_file

    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    shutil.copy(default_model_dir() / "tokenizer.json", directory)
    names = [f"model-{shard}.safetensors" for shard in range(shards)] if shards > 1 else ["model.safetensors"]
    weight_map = {tensor: names[index % shards] for index, tensor in enumerate(weights)}
    for name in names:
        save_file({t: weights[t] for t, file in weight_map.items() if file == name}, directory / name)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def tiny_tensors(dtype: str) -> dict[str, Any]:
    import torch

    weights = random_weights(parse_config(TINY), seed=0)
    return {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in weights.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_loader_reads_each_dtype(tmp_path: Path, dtype: str, shards: int) -> None:
    tensors = tiny_tensors(dtype)
    loaded = load_checkpoint(write_directory(tmp_path, TINY, tensors, shards))
    assert loaded.weights.keys() == tensors.keys()
    for name, array in loaded.weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].float().numpy())


def test_directory_written_by_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig as ReferenceConfig
    from transformers import LlamaForCausalLM

    raw = TINY | {"rope_theta": 500.0, "eos_token_id": [3, 4]}
    reference = LlamaForCausalLM(ReferenceConfig.from_dict(raw))
    reference.save_pretrained(tmp_path)
    shutil.copy(default_model_dir() / "tokenizer.json", tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config.end_token_ids == (3, 4)
    tokens = list(range(5, 45))
    logits = Llama(checkpoint).prefill(tokens, make_cache(checkpoint.config, len(tokens)))
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_config_defaults() -> None:
    config = parse_config({n: v for n, v in TINY.items() if n not in ("num_key_value_heads", "head_dim")})
    assert (config.num_key_value_heads, config.head_dim) == (4, 6)
    assert (config.rope_theta, config.rms_norm_eps) == (10000.0, 1e-6)
    assert (config.tie_word_embeddings, config.end_token_ids) == (False, ())


def test_config_reads_both_spellings_of_rope() -> None:
    old = parse_config(TINY | {"rope_theta": 5e5, "rope_scaling": {"type": "default"}})
    new = parse_config(TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    assert old == new
    assert new.rope_theta == 5e5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "mistral"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("quantization_config", {"bits": 4}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", "yarn"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("rope_theta", 0),
        ("rms_norm_eps", "small"),
        ("hidden_size", None),
        ("vocab_size", "1024"),
        ("num_hidden_layers", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 7),
        ("eos_token_id", "end"),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config(TINY | {field: value})


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def replace(name: str, text: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove("config.json"), "config.json"),
        (replace("config.json", "{"), "config.json"),
        (replace("config.json", "[]"), "config.json"),
        (remove("model.safetensors"), "model.safetensors"),
        (replace("model.safetensors", "short"), "model.safetensors"),
        (replace("model.safetensors.index.json", "{}"), "weight_map"),
        (remove("tokenizer.json"), "tokenizer.json"),
        (replace("tokenizer.json", "{}"), "tokenizer.json"),
    ],
)
def test_loader_names_the_file_it_cannot_read(tmp_path: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(write_directory(tmp_path, TINY, tiny_tensors("float16")))
    with pytest.raises(ConfigError, match=named):
        load_checkpoint(tmp_path)


def test_loader_names_a_missing_tensor(tmp_path: Path) -> None:
    tensors = tiny_tensors("float16")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ConfigError, match=r"layers\.1\.self_attn\.k_proj"):
        load_checkpoint(write_directory(tmp_path, TINY, tensors))


def test_loader_names_a_tensor_of_another_shape(tmp_path: Path) -> None:
    raw = TINY | {"intermediate_size": 48}
    with pytest.raises(ConfigError, match=r"mlp\.gate_proj.*\(40, 24\).*\(48, 24\)"):
        load_checkpoint(write_directory(tmp_path, raw, tiny_tensors("float16")))


def test_loader_names_a_tensor_of_another_dtype(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="F64"):
        load_checkpoint(write_directory(tmp_path, TINY, tiny_tensors("float64")))


def test_arrays_are_float32_views_of_the_callers_memory(llama: Llama) -> None:
    memory = bytearray(2 * 4 * BLOCK_TOKENS * 2 * 32 * 4)
    tensors: list[Array] = list(np.frombuffer(memory, np.float32).reshape(8, 1, BLOCK_TOKENS, 2, 32))
    llama.prefill(range(BLOCK_TOKENS), PagedKV(tensors[::2], tensors[1::2], [0]))
    assert np.count_nonzero(np.frombuffer(memory, np.float32)) > 0.99 * len(memory) // 4
