"""The numbers of one run, as the table and `--json` show them."""

from __future__ import annotations

from dataclasses import dataclass

from ray_kvfabric.demo.generate import first_difference
from ray_kvfabric.demo.overlap import hidden_fraction, moving_seconds
from ray_kvfabric.demo.run import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A block is one row of every tensor of the cache, so its bytes are those of all layers."""

    tokens_match: bool
    first_difference: int | None
    prompt_tokens: int
    new_tokens: int
    layers: int
    blocks_pushed: int
    bytes_pushed: int
    transport: str
    prefill_memory: str
    decode_memory: str
    gbps: float
    moving_ms: float
    hidden_fraction: float
    hidden_limit: float
    prefill_ms: float
    decode_ms: float
    decode_tokens_per_s: float
    single_process_ms: float
    text: str


def summarize(outcome: Outcome, text: str) -> Summary:
    receipts, prefill = outcome.prefill.receipts, outcome.prefill
    nbytes, seconds = sum(receipt.nbytes for receipt in receipts), moving_seconds(receipts)
    decode_s = (outcome.written[-1].written_ns - outcome.received[-1].seen_ns) / 1e9
    prefill_memory, decode_memory = outcome.memories
    differs_at = first_difference(outcome.tokens, outcome.alone.tokens)
    return Summary(
        tokens_match=differs_at is None,
        first_difference=differs_at,
        prompt_tokens=len(outcome.request.tokens),
        new_tokens=len(outcome.written),
        layers=len(receipts),
        blocks_pushed=len(outcome.request.pushed),
        bytes_pushed=nbytes,
        transport=", ".join(sorted({receipt.transport for receipt in receipts})),
        prefill_memory=prefill_memory,
        decode_memory=decode_memory,
        gbps=round(nbytes / seconds / 1e9, 3),
        moving_ms=round(seconds * 1e3, 3),
        hidden_fraction=round(hidden_fraction(prefill.layers, receipts), 4),
        hidden_limit=round((len(receipts) - 1) / len(receipts), 4),
        prefill_ms=round(prefill.span.seconds * 1e3, 1),
        decode_ms=round(decode_s * 1e3, 1),
        decode_tokens_per_s=round(len(outcome.written) / decode_s, 1),
        single_process_ms=round(outcome.alone.span.seconds * 1e3, 1),
        text=text,
    )
