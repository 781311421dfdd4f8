"""The `kv_transfer_params` of a request: which transfer it takes part in, and with whom.

    to the consumer   {"do_remote_prefill": True, "transfer_id": ..., "remote_engine_id": the producer's}
    to the producer   {"do_remote_decode": True, "transfer_id": ..., "remote_engine_id": the consumer's, or absent}
A producer that is given no transfer_id makes one and gives it back with the answer, as proxies that pass the answer's
parameters on to the consumer expect. One transfer_id may stand for several prompts, as those of one call are: each
meets its like under a key of its own.
"""

from __future__ import annotations

import hashlib
import uuid
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PULLS, PUSHES = "do_remote_prefill", "do_remote_decode"
TRANSFER_ID, ENGINE_ID = "transfer_id", "remote_engine_id"


class Remote(NamedTuple):
    """The other side of a request; `engine` is None where a producer was not told who will want its KV."""

    transfer_id: str
    engine: str | None


class BadParams(ValueError):
    """The parameters ask for a transfer and do not say which, or with whom."""


def wanted_from(params: Mapping[str, Any] | None) -> Remote | None:
    """Whose KV the request waits for; None when it computes its own. Raises BadParams."""
    if not params or not params.get(PULLS):
        return None
    _check_one_side(params)
    return Remote(_text(params, TRANSFER_ID), _text(params, ENGINE_ID))


def promised_to(params: Mapping[str, Any] | None) -> Remote | None:
    """Who will want the request's KV; None when nobody. Raises BadParams."""
    if not params or not params.get(PUSHES):
        return None
    _check_one_side(params)
    transfer_id = _text(params, TRANSFER_ID) if params.get(TRANSFER_ID) is not None else uuid.uuid4().hex
    engine = _text(params, ENGINE_ID) if params.get(ENGINE_ID) is not None else None
    return Remote(transfer_id, engine)


def key_of(transfer_id: str, token_ids: Sequence[int], *makings: str) -> str:
    """Of one prompt of a transfer. `makings`: what else its KV is computed from, equal on both sides."""
    digest = hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=8)
    digest.update(repr(makings).encode())
    return f"{transfer_id}/{digest.hexdigest()}"


def transfer_id_of(key: str) -> str:
    return key.rpartition("/")[0]


def consumer_params(transfer_id: str, producer: str) -> dict[str, Any]:
    """Of the consumer's request; a producer's answer carries them, too."""
    return {PULLS: True, PUSHES: False, TRANSFER_ID: transfer_id, ENGINE_ID: producer}


def producer_params(transfer_id: str, consumer: str | None) -> dict[str, Any]:
    return {PULLS: False, PUSHES: True, TRANSFER_ID: transfer_id, ENGINE_ID: consumer}


def _check_one_side(params: Mapping[str, Any]) -> None:
    if params.get(PULLS) and params.get(PUSHES):
        raise BadParams(f"kv_transfer_params has both {PULLS!r} and {PUSHES!r}: a request is one side of its transfer")


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise BadParams(f"kv_transfer_params[{name!r}] must be a non-empty string, got {value!r}")
    return value
