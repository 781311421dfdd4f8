"""What vLLM says about an engine that both sides of a split must agree on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    MambaSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

PROTOCOL = "1"  # of this package's messages; another number is another protocol


def is_attention(spec: Any) -> bool:
    """Whether blocks of the group are rows of tokens, each found by its position in the request."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return all(is_attention(each) for each in spec.kv_cache_specs.values())
    return isinstance(spec, AttentionSpec) and not isinstance(spec, MambaSpec)


def keeps_all(spec: Any) -> bool:
    """Whether every block of a request stays its own until it ends; those of a window, or a chunk, do not."""
    if isinstance(spec, UniformTypeKVCacheSpecs):
        return all(keeps_all(each) for each in spec.kv_cache_specs.values())
    return isinstance(spec, FullAttentionSpec)


def window_of(spec: Any) -> int | None:
    """Tokens; None where blocks are taken back by another rule."""
    return spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None


def refusal_of(parallel: Any) -> str | None:
    """What of an engine's parallel configuration cannot be served, and why."""
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} is {getattr(parallel, name)}: KVFabricConnector knows workers that hold whole blocks only"
    if getattr(parallel, "use_ubatching", False):
        return (
            "enable_dbo is set, or ubatch_size is above 1: KVFabricConnector pushes a layer once a step, and it is "
            "computed in several parts then"
        )
    return None


def terms_of(vllm_config: Any, kv_cache_config: Any) -> dict[str, str]:
    """The names are those under which a mismatch is reported."""
    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    speculative = vllm_config.speculative_config
    return {
        "protocol": PROTOCOL,
        "model": str(model.model),
        "revision": str(model.revision),
        "dtype": str(model.dtype),
        "cache_dtype": str(cache.cache_dtype),
        "kv_heads": str(model.get_num_kv_heads(parallel)),
        "head_size": str(model.get_head_size()),
        "layers": str(model.get_num_layers(parallel)),
        "tensor_parallel_size": str(parallel.tensor_parallel_size),
        "pipeline_parallel_size": str(parallel.pipeline_parallel_size),
        "block_size": ", ".join(str(group.kv_cache_spec.block_size) for group in kv_cache_config.kv_cache_groups),
        "kv_groups": "; ".join(_describe(group) for group in kv_cache_config.kv_cache_groups),
        "kv_layout": str(getattr(kv_cache_config, "kv_cache_layout", None)),
        "speculative": "none" if speculative is None else str(speculative.method),
    }


def _describe(group: Any) -> str:
    spec = group.kv_cache_spec
    window = getattr(spec, "sliding_window", None)
    return f"{type(spec).__name__} of {len(group.layer_names)} layers" + (f", window {window}" if window else "")


def backend_terms(vllm_config: Any, layers: Iterable[str]) -> dict[str, str]:
    """How the kernels of this process lay KV out: known once the engine has chosen them."""
    found = vllm_config.compilation_config.static_forward_context
    backends, sets = set(), set()
    for layer in layers:
        module = found.get(layer)
        backend = getattr(module, "attn_backend", None)
        if backend is not None:
            backends.add(str(backend.get_name()))
        if getattr(module, "isa", None):  # of CPU kernels, whose blocks are laid out for it
            sets.add(str(module.isa))
    return {"attention_backend": ", ".join(sorted(backends)), "instruction_set": ", ".join(sorted(sets))}
