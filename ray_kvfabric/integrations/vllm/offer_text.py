"""An offer as a consumer shows it in its shared page: JSON, so that what a peer writes there is data and no more."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ray_kvfabric.integrations.vllm.pushes import Offer


class ShownOffer(NamedTuple):
    """`terms` is the digest of the consumer's."""

    terms: str
    offer: Offer


@cache
def _adapter() -> TypeAdapter[ShownOffer]:
    return TypeAdapter(ShownOffer, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


def prepare() -> None:
    """Makes what the first offer would wait for, 50 ms."""
    _adapter()


def text_of(shown: ShownOffer) -> bytes:
    return _adapter().dump_json(shown)


def shown_offer(text: bytes) -> ShownOffer | None:
    """None for what is none."""
    try:
        return _adapter().validate_json(text)
    except ValidationError:
        return None
