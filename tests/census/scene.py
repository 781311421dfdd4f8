"""Scene: a survivor that lives through many runs, and the guests that each run brings. Run: one of them.

caches -> a state -> a fault -> what both sides are told -> blocks free, books as before
       -> the guests end -> the survivor's census is its baseline -> it serves a fresh peer, and again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from time import monotonic, sleep
from types import TracebackType
from typing import NamedTuple

from tests.census.actor import PATIENCE_S, Outcome
from tests.census.cast import (
    FRESH_ID,
    GUEST_ID,
    OTHER_ID,
    SOON_S,
    SURVIVOR_ID,
    Case,
    Cast,
    CensusError,
    draw,
)
from tests.census.census import CLEAN, Census, difference
from tests.census.peer import Peer
from tests.census.reach import MAIN, prepare, reach
from tests.census.states import STATES, Fault, Other
from tests.census.strike import strike

A_LOOK_S = 0.01
_ENDED = (
    "Receipt", "PeerLost", "NotLinked", "CacheNotFound", "GrantRevoked", "GrantExpired", "TransferCancelled"
)  # fmt: skip


class Result(NamedTuple):
    """`seconds` from the last death to the census that equals the baseline; None where nobody died."""

    case: Case
    survivor: str
    hears: bool
    receiver: str
    writer: str
    seconds: float | None
    noticed_seconds: float | None  # from the fault's own death to the books that equal those before


class Scene:
    """Used by one thread. `with` ends its processes."""

    def __init__(self) -> None:
        self._idle: list[Peer] = []
        self._guests: list[Peer] = []  # of the present run
        self._survivor = Peer()
        self.baseline: Census | None = None

    def __enter__(self) -> Scene:
        try:
            self._survivor.open(SURVIVOR_ID)
            for case in warm_up():
                self.run(case)
            self.baseline = self._survivor.ask("census")
            if found := difference(CLEAN, self.baseline):
                raise CensusError(f"what the runs to warm up have left: {found}")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        for peer in (self._survivor, *self._idle, *self._guests):
            with suppress(Exception):
                peer.end()

    # ---- one run -------------------------------------------------------------------------------------

    def run(self, case: Case) -> Result:
        """Raises CensusError."""
        try:
            return self._run(case)
        except CensusError:
            raise
        except Exception as error:
            raise CensusError(f"{case}: {type(error).__name__}: {error}; {draw(case)}") from error

    def _run(self, case: Case) -> Result:
        choice, has_other = draw(case), STATES[case.state].other is not None
        cast = Cast(case, choice, self._survivor, self._invite(GUEST_ID), self._invite(OTHER_ID) if has_other else None)
        prepare(cast)
        reach(cast)
        strike(cast)
        receiver, writer = self._listen(cast)
        self._check_blocks(cast)
        noticed_at = self._await_books(cast)
        died_at = self._end_guests(cast)
        self._free_own(cast)
        cleaned_at = self._await_baseline(cast, "after the fault", died_at)
        self._serve_fresh(cast)
        return Result(
            case,
            "writer" if choice.writer_survives else "receiver",
            choice.hears,
            receiver.kind,
            writer.kind,
            None if died_at is None else cleaned_at - died_at,
            None if cast.died_at is None else noticed_at - cast.died_at,
        )

    # ---- what was told -------------------------------------------------------------------------------

    def _listen(self, cast: Cast) -> tuple[Outcome, Outcome]:
        receiver = _heard_by_receiver(cast)
        writer = _heard_by_writer(cast)
        _check_told(cast, "receiver", receiver, cast.expected.receiver)
        _check_told(cast, "writer", writer, cast.expected.writer)
        _check_others(cast)
        if receiver.kind == "GrantReceipt":
            _check_content(cast, cast.writer, cast.source, cast.receiver, cast.target)
        return receiver, writer

    def _check_blocks(self, cast: Cast) -> None:
        """The receiver knows what became of the grant, so its blocks may be granted again at once."""
        if not cast.state.is_granted or not cast.receiver.is_alive or cast.is_freed or cast.closed is cast.receiver:
            return
        again = cast.receiver.ask("grant", cast.target, cast.choice.target_blocks)
        cast.receiver.ask("revoke", again.grant_id, 0.0)

    def _await_books(self, cast: Cast) -> float:
        since = monotonic() if cast.died_at is None else cast.died_at
        for peer in cast.living:
            if peer is not cast.closed:
                what = f"books of endpoint {peer.cluster_id}"
                _await_equal(cast, partial(peer.ask, "books"), cast.books[peer.pid], what, since)
        return monotonic()

    # ---- the end of the guests -----------------------------------------------------------------------

    def _invite(self, cluster_id: int) -> Peer:
        peer = self._idle.pop() if self._idle else Peer()
        self._guests.append(peer)
        peer.open(cluster_id)
        return peer

    def _end_guests(self, cast: Cast) -> float | None:
        """When the last one died, if one did."""
        deaths = [cast.died_at, *(self._end_guest(cast, guest) for guest in cast.guests)]
        return max((at for at in deaths if at is not None), default=None)

    def _end_guest(self, cast: Cast, guest: Peer) -> float | None:
        died_at = None
        if not guest.is_alive or cast.choice.is_killed:
            died_at = guest.kill() if guest.is_alive else None
            guest.end()
        else:
            guest.ask("close")
            self._idle.append(guest)
        self._guests.remove(guest)
        if cast.choice.hears:
            self._survivor.ask("peer_ended", guest.cluster_id, guest.incarnation)
        return died_at

    def _free_own(self, cast: Cast) -> None:
        self._survivor.ask("free_cache", cast.source if cast.choice.writer_survives else cast.target)

    def _await_baseline(self, cast: Cast, when: str, died_at: float | None) -> float:
        if self.baseline is not None:
            since = monotonic() if died_at is None else died_at
            _await_equal(cast, partial(self._survivor.ask, "census"), self.baseline, f"census {when}", since)
        return monotonic()

    # ---- life goes on --------------------------------------------------------------------------------

    def _serve_fresh(self, cast: Cast) -> None:
        fresh = self._invite(FRESH_ID)
        writer, receiver = (self._survivor, fresh) if cast.choice.writer_survives else (fresh, self._survivor)
        next_cast = Cast(cast.case, cast.choice, self._survivor, fresh, None)
        prepare(next_cast)
        grant = receiver.ask("grant", next_cast.target, cast.choice.target_blocks, verify="crc32c")
        pushed = writer.try_("push", grant, next_cast.source, cast.choice.source_blocks, [])
        told = receiver.try_("wait", grant.grant_id, PATIENCE_S / 2)
        if (pushed.kind, told.kind) != ("Receipt", "GrantReceipt"):
            raise cast.fail(f"the next push: {pushed}, {told}")
        _check_content(cast, writer, next_cast.source, receiver, next_cast.target)
        died_at = self._end_guest(next_cast, fresh)
        self._free_own(next_cast)
        self._await_baseline(cast, "after the next push", died_at)


def warm_up() -> Iterator[Case]:
    """What is made once and kept (threads, tables of modules) is there after it; nothing has to be noticed late."""
    for state in ("gave_way", "other_inside"):
        for survives in ("writer", "receiver"):
            cases = (Case(seed, state, Fault.REVOKE, survives) for seed in count())
            yield next(case for case in cases if draw(case).hears)


def _heard_by_receiver(cast: Cast) -> Outcome:
    if not cast.state.is_granted or not cast.receiver.is_alive:
        return Outcome("")
    if cast.is_waiting:
        return cast.receiver.outcome("wait")
    return cast.receiver.try_("wait", cast.granted.grant_id, PATIENCE_S / 2)


def _heard_by_writer(cast: Cast) -> Outcome:
    """Its open transfer's outcome, or what a push comes to that is made now."""
    if not cast.writer.is_alive:
        return Outcome("")
    if cast.state.is_open:
        return cast.writer.outcome(MAIN)
    blocks = cast.choice.source_blocks, cast.choice.target_blocks
    return cast.writer.try_("push", cast.push_target, cast.source, *blocks)


def _check_told(cast: Cast, side: str, outcome: Outcome, expected: tuple[str, ...]) -> None:
    if outcome.kind not in (expected or ("",)):
        raise cast.fail(f"the {side} was told {outcome}, expected {' or '.join(expected)}")
    if side == "receiver" and outcome.kind:
        _, ending, _ = cast.grant_state()
        wanted = {"GrantReceipt": "landed", "GrantExpired": "expired", "GrantRevoked": "revoked"}
        if ending != wanted.get(outcome.kind, "failed"):
            raise cast.fail(f"the receiver was told {outcome}, and its grant has {ending}")


def _check_others(cast: Cast) -> None:
    """Nobody is left waiting: neither a push beside nor the other writer."""
    if cast.writer.is_alive:
        for name in cast.beside:
            _check_ended(cast, cast.writer, name)
    if cast.other is not None and cast.state.other in (Other.SEALED, Other.INSIDE):
        _check_ended(cast, cast.other, MAIN)


def _check_ended(cast: Cast, peer: Peer, name: str) -> None:
    outcome = peer.outcome(name)
    if outcome.kind not in _ENDED:
        raise cast.fail(f"push {name!r} of endpoint {peer.cluster_id}: {outcome}")


def _check_content(cast: Cast, writer: Peer, source: int, receiver: Peer, target: int) -> None:
    if not writer.is_alive or not receiver.is_alive or cast.is_freed or cast.closed is not None:
        return
    sent = writer.ask("digest", source, cast.choice.source_blocks)
    if receiver.ask("digest", target, cast.choice.target_blocks) != sent:
        raise cast.fail("what has landed is not what was sent")


def _await_equal(cast: Cast, take: Callable[[], Census], wanted: Census, what: str, since: float) -> None:
    """Within SOON_S of `since`; looks at least twice, however late it is."""
    for attempt in range(10**6):
        found = difference(wanted, take())
        if not found:
            return
        if attempt and monotonic() - since > SOON_S:
            raise cast.fail(f"{what}, {monotonic() - since:.2f} s after: {found}")
        sleep(A_LOOK_S)
