"""What an engine's KV cache looks like to the fabric: pure, from numbers that the connector reads off its tensors.

A layer is a list of tensors: one that holds K and V (vLLM), K and V apart, or parts of unequal sizes (Ascend). A lane
is what one cache of the endpoint can carry: the equal tensors of all layers of one KV group that have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ray_kvfabric.errors import ConfigError, LLMStatusCode, ParamInvalid


class TensorForm(NamedTuple):
    num_blocks: int
    block_nbytes: int


class Lane(NamedTuple):
    """Layer `layers[i]` is tensors [i * per_layer, (i + 1) * per_layer) of the lane's cache."""

    group: int
    layers: tuple[str, ...]
    per_layer: int
    form: TensorForm


class Place(NamedTuple):
    """Where a layer lies: in which lane, as which layer of it."""

    lane: int
    layer: int


class KVLayout(NamedTuple):
    lanes: tuple[Lane, ...]
    places: dict[str, tuple[Place, ...]]  # by layer
    tensors: tuple[tuple[tuple[str, int], ...], ...]  # by lane, which tensor of which layer each of its tensors is


def lay_out(groups: Sequence[Sequence[str]], forms: Mapping[str, Sequence[TensorForm]]) -> KVLayout:
    """The lanes of an engine whose KV group g has the layers `groups[g]`; `forms` are each layer's tensors.

    Raises ConfigError for a layer without tensors.
    """
    found: dict[tuple[int, TensorForm, int], list[tuple[str, list[int]]]] = {}
    for group, layers in enumerate(groups):
        for layer in layers:
            if not forms.get(layer):
                raise ConfigError(f"layer {layer!r} of KV group {group} has no KV cache tensor")
            for form in dict.fromkeys(forms[layer]):
                mine = [index for index, each in enumerate(forms[layer]) if each == form]
                found.setdefault((group, form, len(mine)), []).append((layer, mine))
    lanes, tensors = [], []
    places: dict[str, list[Place]] = {}
    for index, ((group, form, per_layer), members) in enumerate(found.items()):
        lanes.append(Lane(group, tuple(layer for layer, _ in members), per_layer, form))
        tensors.append(tuple((layer, tensor) for layer, mine in members for tensor in mine))
        for position, (layer, _) in enumerate(members):
            places.setdefault(layer, []).append(Place(index, position))
    return KVLayout(tuple(lanes), {layer: tuple(each) for layer, each in places.items()}, tuple(tensors))


class LayoutMismatch(ConfigError, ParamInvalid):
    """Two engines would take each other's KV for something else; the text names the field and both sides."""

    default_code = LLMStatusCode.LLM_PARAM_INVALID


class Terms(NamedTuple):
    """What two engines must agree on. `fields` in a fixed order, each a name and its value as text."""

    engine_id: str
    fields: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        return hashlib.blake2b(repr(self.fields).encode(), digest_size=16).hexdigest()

    def check(self, other: Terms) -> None:
        """Raises LayoutMismatch."""
        mine, theirs = dict(self.fields), dict(other.fields)
        differences = [
            f"{name} is {mine.get(name, 'unknown')} here and {theirs.get(name, 'unknown')} there"
            for name in dict.fromkeys((*mine, *theirs))
            if mine.get(name) != theirs.get(name)
        ]
        if differences:
            raise LayoutMismatch(
                f"engine {self.engine_id} cannot share KV with {other.engine_id}: {'; '.join(differences)}"
            )


def describe_lanes(lanes: Sequence[Lane]) -> str:
    """Without the number of blocks, which may differ between two engines."""
    return "; ".join(
        f"group {lane.group}: {len(lane.layers)} layers of {lane.per_layer} x {lane.form.block_nbytes} bytes a block"
        for lane in lanes
    )
