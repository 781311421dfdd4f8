"""Errands: one call of one method at one endpoint, named by whoever asked for it.

    asked -> in the endpoint's box, delivered again until acknowledged -> done: an Outcome, kept for a time

Only endpoints without an actor handle have a box: the scheduler calls the others itself. `Errands` never
drops what was not acknowledged, so a lost reply of a poll costs a second delivery and no errand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_kvfabric.errors import PeerLost, TransferUnknown

METHODS = (
    "push_blocks", "result", "cancel", "answer", "take_part", "status",
    "grant_blocks", "wait_granted", "revoke_grant", "push_granted", "fail_granted", "drain",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Errand:
    """The caller makes `errand_id`: the same id twice is the same errand. A push's is its transfer_id."""

    errand_id: str
    method: str
    arguments: dict[str, object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an errand ended: a value, or the error to raise."""

    value: object = None
    error: Exception | None = None


@dataclass(slots=True)
class _Kept:
    outcome: Outcome
    until: float


@dataclass(slots=True)
class Errands:
    """The boxes of the endpoints that poll, and the outcomes that they told."""

    ttl_s: float
    _boxes: dict[int, dict[str, Errand]] = field(default_factory=dict)  # by cluster_id, then errand_id
    _pending: dict[str, int] = field(default_factory=dict)  # errand_id -> the cluster that owes its outcome
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def put(self, cluster_id: int, errand: Errand) -> bool:
        """Whether the errand is new and now waits; a pending or done one is left as it is."""
        if errand.errand_id in self._pending or errand.errand_id in self._kept:
            return False
        self._pending[errand.errand_id] = cluster_id
        self._boxes.setdefault(cluster_id, {})[errand.errand_id] = errand
        return True

    def take(self, cluster_id: int, acknowledged: tuple[str, ...]) -> tuple[Errand, ...]:
        """What the endpoint has not acknowledged yet, oldest first."""
        box = self._boxes.get(cluster_id, {})
        for errand_id in acknowledged:
            box.pop(errand_id, None)
        return tuple(box.values())

    def done(self, errand_id: str, outcome: Outcome, now: float) -> None:
        """Keeps the outcome; the first one told is the one that counts."""
        cluster_id = self._pending.pop(errand_id, None)
        if cluster_id is not None:
            self._boxes.get(cluster_id, {}).pop(errand_id, None)
        self._kept.setdefault(errand_id, _Kept(outcome, now + self.ttl_s))

    def abandon(self, cluster_id: int, reason: str, now: float) -> list[str]:
        """The endpoint is gone: what it owed has failed. Returns those errand ids."""
        owed = [errand_id for errand_id, owner in self._pending.items() if owner == cluster_id]
        for errand_id in owed:
            self.done(errand_id, Outcome(error=PeerLost(reason)), now)
        self._boxes.pop(cluster_id, None)
        return owed

    def outcome(self, errand_id: str) -> Outcome | None:
        """None while it is pending. Raises TransferUnknown for an id never seen, or forgotten."""
        if errand_id in self._pending:
            return None
        if errand_id not in self._kept:
            raise TransferUnknown(f"the scheduler knows no transfer or errand {errand_id!r}")
        return self._kept[errand_id].outcome

    def expire(self, now: float) -> None:
        for errand_id in [key for key, kept in self._kept.items() if kept.until <= now]:
            del self._kept[errand_id]

    def expiries(self) -> list[float]:
        return [kept.until for kept in self._kept.values()][:1]  # the oldest: all are kept equally long

    @property
    def pending(self) -> int:
        return len(self._pending)
