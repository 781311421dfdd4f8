"""What is tried: which blocks a request gets, in which pieces from whom, and what happens when one pauses."""

from __future__ import annotations

import random
from enum import Enum
from typing import NamedTuple

LAYERS, PER_LAYER, BLOCKS, NBYTES = 2, 2, 24, 72
TENSORS = LAYERS * PER_LAYER


class Action(Enum):
    """What a pause is used for."""

    NOTHING = "nothing"
    REVOKE = "revoke"  # the blocks are filled by somebody else the moment that the receiver has them again
    REVOKE_AND_LOOK = "revoke and look"  # no byte may change once the fence is up
    REGRANT = "regrant"  # revoked, and granted to another request, which another sender brings
    CANCEL = "cancel"
    TIMEOUT = "timeout"


class Unit(NamedTuple):
    """One push of a request: source blocks to the granted ones from position `at` on."""

    writer: int
    layers: range
    at: int
    blocks: tuple[int, ...]
    seals: bool

    @property
    def tensors(self) -> slice:
        return slice(self.layers.start * PER_LAYER, self.layers.stop * PER_LAYER)


class Request(NamedTuple):
    """`senders[i]` is writer i. `ttl_s` is given where it may pass before everything is there."""

    blocks: tuple[int, ...]
    layers: range
    senders: tuple[int, ...]
    units: tuple[Unit, ...]
    action: Action
    ttl_s: float | None
    is_awaited: bool
    is_named: bool
    asks_layers: bool

    @property
    def tensors(self) -> slice:
        return slice(self.layers.start * PER_LAYER, self.layers.stop * PER_LAYER)


def draw_request(rng: random.Random, num_senders: int) -> Request:
    blocks = tuple(rng.sample(range(BLOCKS), rng.randint(1, 6)))
    layers = rng.choice([range(LAYERS), range(1), range(1, LAYERS)])
    senders = tuple(rng.sample(range(num_senders), min(rng.choice([1, 1, 1, 2, 3]), len(blocks), num_senders)))
    units = _interleaved(rng, [_part(rng, index, each, layers) for index, each in _shares(rng, blocks, senders)])
    return Request(
        blocks, layers, senders, tuple(_forgetting(rng, units)), rng.choice(list(Action)),
        ttl_s=0.002 if rng.random() < 0.02 else None, is_awaited=rng.random() < 0.1, is_named=rng.random() < 0.5,
        asks_layers=rng.random() < 0.2,
    )  # fmt: skip


def _shares(rng: random.Random, blocks: tuple[int, ...], senders: tuple[int, ...]) -> list[tuple[int, range]]:
    """Each writer's positions."""
    cuts = [0, *sorted(rng.sample(range(1, len(blocks)), len(senders) - 1)), len(blocks)]
    return [(index, range(cuts[index], cuts[index + 1])) for index in range(len(senders))]


def _part(rng: random.Random, writer: int, positions: range, layers: range) -> list[Unit]:
    """In chunks, layer by layer, both or neither; the last push seals."""
    middle = rng.randrange(positions.start, positions.stop)
    chunks = [each for each in (range(positions.start, middle), range(middle, positions.stop)) if len(each)]
    by_layer = [range(layer, layer + 1) for layer in layers] if rng.random() < 0.5 else [layers]
    pieces = [(each, chunk) for each in by_layer for chunk in (chunks if rng.random() < 0.5 else [positions])]
    units = [Unit(writer, each, chunk.start, _drawn(rng, len(chunk)), False) for each, chunk in pieces]
    return [*units[:-1], units[-1]._replace(seals=True)]


def _drawn(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(BLOCKS) for _ in range(count))


def _interleaved(rng: random.Random, parts: list[list[Unit]]) -> list[Unit]:
    turns = [index for index, part in enumerate(parts) for _ in part]
    rng.shuffle(turns)
    return [parts[index].pop(0) for index in turns]


def _forgetting(rng: random.Random, units: list[Unit]) -> list[Unit]:
    """Now and then a writer leaves out a piece and seals all the same."""
    if rng.random() > 0.05 or all(unit.seals for unit in units):
        return units
    forgotten = rng.choice([unit for unit in units if not unit.seals])
    return [unit for unit in units if unit is not forgotten]
