"""What an engine's scheduler side tells its worker side, step by step: pure data, pickled with the engine's own.

    consumer   Expect .. Receive .. (Revoke | a report of the worker)      or Expect .. Decline
    producer   Begin .. Part .. Part(is_last) .. Finish                    Drop when it is preempted in between
A position is the index of a block in its request, counted from the prompt's first token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

NULL_BLOCK = 0  # stands in an engine's block table where a sliding window has passed


class Span(NamedTuple):
    """Consecutive blocks of one KV group of one request: block `blocks[i]` is at position `first + i`."""

    group: int
    first: int
    blocks: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.first + len(self.blocks)


class Expect(NamedTuple):
    """A request was queued that will want a transfer. Here and below `transfer_id` is a key of `params.key_of`."""

    transfer_id: str


class Receive(NamedTuple):
    """Blocks were allocated for what `source` computes: grant exactly these."""

    req_id: str
    transfer_id: str
    source: str
    num_tokens: int
    spans: tuple[Span, ...]


class Decline(NamedTuple):
    """The request ended before anything was allocated for the transfer."""

    transfer_id: str
    source: str


class Begin(NamedTuple):
    """A request whose KV another engine may want; `target` is that engine, where it is known."""

    req_id: str
    transfer_id: str
    target: str | None
    num_tokens: int


class Part(NamedTuple):
    """What this step computes of a request, or found in the prefix cache before its first step."""

    req_id: str
    spans: tuple[Span, ...]
    is_last: bool


class Gone(NamedTuple):
    """The engine has taken the blocks of a KV group at positions below `stop`: they have left its window."""

    req_id: str
    group: int
    stop: int


class Finish(NamedTuple):
    """The engine is done with the request; `reason` says why its KV will not be whole, None that it is."""

    req_id: str
    reason: str | None


@dataclass(slots=True)
class Orders:
    """Of one step. The worker follows the lists in the order in which they stand here."""

    expect: list[Expect] = field(default_factory=list)
    receive: list[Receive] = field(default_factory=list)
    decline: list[Decline] = field(default_factory=list)
    revoke: list[str] = field(default_factory=list)  # req_ids
    begin: list[Begin] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)  # req_ids whose blocks were taken away
    gone: list[Gone] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    finish: list[Finish] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(
            self.parts or self.receive or self.begin or self.finish
            or self.expect or self.decline or self.revoke or self.drop or self.gone
        )  # fmt: skip
