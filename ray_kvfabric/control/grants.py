"""GrantBook: which blocks of this endpoint are granted, and what became of each grant. Time is in the call.

                       every writer sealed, every block there
                 +------------------------------------------- LANDED --+
                 |     a writer failed, died, or left a gap            |
    STANDING ----+------------------------------------------- FAILED --+---> FENCED ---- no writer inside ---> released
     (issue)     |     its deadline passed                             |     |    ^                            |
                 +------------------------------------------- EXPIRED -+     |    | waited for again       blocks free
                 |     revoked, cache deallocated, endpoint closed     |     v    |
                 +------------------------------------------- REVOKED -+   QUARANTINED
                                                                  a writer inside did not leave in time

A grant ends once: the first ending stays. Its blocks are free again when it is released and not before, so that
a block is in at most one grant that is not released; `check_integrity` proves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from ray_kvfabric.errors import CreditExhausted, EndpointDraining, ParamInvalid

BlockKey = tuple[int, int]  # cache_id, block


class Phase(Enum):
    STANDING = "standing"
    FENCED = "fenced"
    QUARANTINED = "quarantined"


class Ending(Enum):
    LANDED = "landed"
    FAILED = "failed"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(slots=True)
class Held:
    """One grant that is not released. `until` is seconds of the clock that the calls are given."""

    grant_id: str
    request_id: str
    cache_id: int
    blocks: tuple[int, ...]
    nbytes: int
    until: float
    sources: tuple[int, ...] = ()
    phase: Phase = Phase.STANDING
    ending: Ending | None = None


class GrantBook:
    """`max_grants` and `max_nbytes` are this receiver's credit: what it lets writers bring at a time."""

    def __init__(self, max_grants: int, max_nbytes: int | None) -> None:
        self._max_grants = max_grants
        self._max_nbytes = max_nbytes
        self._held: dict[str, Held] = {}
        self._blocks: dict[BlockKey, str] = {}
        self._nbytes = 0
        self._is_closed_for: str | None = None

    # ---- a grant's life ------------------------------------------------------------------------------

    def issue(self, held: Held) -> None:
        """Raises EndpointDraining, CreditExhausted, and ParamInvalid for a block that is granted already."""
        if self._is_closed_for is not None:
            raise EndpointDraining(self._is_closed_for)
        self._check_credit(held.nbytes)
        self._check_blocks(held)
        self._held[held.grant_id] = held
        self._blocks |= {(held.cache_id, block): held.grant_id for block in held.blocks}
        self._nbytes += held.nbytes

    def _check_credit(self, nbytes: int) -> None:
        if len(self._held) >= self._max_grants:
            raise CreditExhausted(
                f"{len(self._held)} grants are out, as many as max_grants lets be ({self._max_grants})"
            )
        if self._max_nbytes is not None and self._nbytes and self._nbytes + nbytes > self._max_nbytes:
            raise CreditExhausted(
                f"{self._nbytes} bytes are granted; {nbytes} more would pass max_granted_size {self._max_nbytes}"
            )

    def _check_blocks(self, held: Held) -> None:
        for position, block in enumerate(held.blocks):
            other = self._blocks.get((held.cache_id, block))
            if other is not None:
                of_request = self._held[other].request_id
                raise ParamInvalid(
                    f"blocks[{position}] is {block}: grant {other} of request {of_request!r} has that block of cache "
                    f"{held.cache_id} and is {self._held[other].phase.value}"
                )
        if len(set(held.blocks)) != len(held.blocks):
            raise ParamInvalid(f"blocks names a block twice: {sorted(held.blocks)}")

    def end(self, grant_id: str, ending: Ending) -> bool:
        """Whether it stood until now: from here on its fence is up. The first ending stays."""
        held = self._held.get(grant_id)
        if held is None or held.phase is not Phase.STANDING:
            return False
        held.phase, held.ending = Phase.FENCED, ending
        return True

    def quarantine(self, grant_id: str) -> None:
        """A writer inside did not leave in the time that somebody gave it."""
        held = self._held.get(grant_id)
        if held is not None and held.phase is Phase.FENCED:
            held.phase = Phase.QUARANTINED

    def release(self, grant_id: str) -> Held | None:
        """No writer is inside a fenced grant any more: its blocks are free. None when they were before."""
        held = self._held.get(grant_id)
        if held is None or held.phase is Phase.STANDING:
            return None
        del self._held[grant_id]
        for block in held.blocks:
            del self._blocks[held.cache_id, block]
        self._nbytes -= held.nbytes
        return held

    def refuse_new(self, reason: str) -> None:
        self._is_closed_for = reason

    # ---- looking in ----------------------------------------------------------------------------------

    def find(self, grant_id: str) -> Held | None:
        return self._held.get(grant_id)

    def all(self) -> list[Held]:
        return list(self._held.values())

    def of_cache(self, cache_id: int) -> list[str]:
        return [held.grant_id for held in self._held.values() if held.cache_id == cache_id]

    def expected_from(self, cluster_id: int) -> list[str]:
        """The standing grants that name this endpoint as a writer."""
        return [held.grant_id for held in self._standing() if cluster_id in held.sources]

    def expired(self, now: float) -> list[str]:
        return [held.grant_id for held in self._standing() if held.until <= now]

    def unreleased(self) -> list[str]:
        """Those that are fenced off and wait for a writer to leave."""
        return [held.grant_id for held in self._held.values() if held.phase is not Phase.STANDING]

    def _standing(self) -> Iterable[Held]:
        return [held for held in self._held.values() if held.phase is Phase.STANDING]

    def describe(self) -> dict[str, int]:
        phases = [held.phase for held in self._held.values()]
        return {
            **{phase.value: phases.count(phase) for phase in Phase},
            "blocks": len(self._blocks),
            "bytes": self._nbytes,
        }

    def check_integrity(self) -> None:
        """For tests: every granted block belongs to the one grant that names it, and sums are right."""
        named = {(held.cache_id, block): held.grant_id for held in self._held.values() for block in held.blocks}
        assert named == self._blocks
        assert sum(len(held.blocks) for held in self._held.values()) == len(named)
        assert self._nbytes == sum(held.nbytes for held in self._held.values())
        assert all((held.ending is None) == (held.phase is Phase.STANDING) for held in self._held.values())
