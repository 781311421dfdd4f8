"""Lets a fault happen to a cast that is in its state. When it returns, whoever lives is on its way again."""

from __future__ import annotations

import time

from tests.census.actor import PATIENCE_S
from tests.census.cast import SHORT_S, Cast
from tests.census.peer import Peer
from tests.census.reach import IN_VAIN_S, MAIN, await_released
from tests.census.states import INSIDE, Fault

A_MOMENT_S = 0.05


def strike(cast: Cast) -> None:
    _FAULTS[cast.case.fault](cast)
    release(cast)


def release(cast: Cast) -> None:
    for peer in (cast.writer, cast.other):
        if peer is not None and peer.is_alive:
            peer.ask("go_on")


# ---- deaths ------------------------------------------------------------------------------------------


def _kill(cast: Cast, victim: Peer) -> None:
    cast.died_at = victim.kill()
    if cast.choice.hears:
        _tell_all(cast, victim)


def _kill_writer(cast: Cast) -> None:
    _kill(cast, cast.writer)


def _kill_receiver(cast: Cast) -> None:
    _kill(cast, cast.receiver)


def _tell_all(cast: Cast, gone: Peer) -> None:
    """As Ray would; it may wait for what just moves to or from who is gone."""
    cast.spread()
    hearers = [peer for peer in cast.living if peer is not gone]
    for peer in hearers:
        peer.ask("begin", "hearing", "peer_ended", gone.cluster_id, gone.incarnation)
    release(cast)
    for peer in hearers:
        _await_done(cast, peer, "hearing")


# ---- the writer gives up -----------------------------------------------------------------------------


def _leave(cast: Cast) -> None:
    """It stops its transfers first, and waits for them."""
    cast.closed = cast.writer
    cast.writer.ask("begin", "ending", "close")
    if cast.state.is_open:
        cast.until(lambda: cast.writer.ask("is_stopping", MAIN), "its transfer is stopped")
    release(cast)
    _await_done(cast, cast.writer, "ending")
    if cast.choice.hears:
        _tell_all(cast, cast.writer)


def _fail_grant(cast: Cast) -> None:
    """It counts once the receiver has seen it; a writer that has sealed is told that it is too late."""
    outcome = cast.writer.try_("fail_granted", cast.granted, 0)
    if outcome.kind not in ("NoneType", "GrantReplayed", "GrantExpired"):
        raise cast.fail(f"fail_granted: {outcome}")
    if outcome.kind == "NoneType":
        _await_fenced(cast)


def _cancel(cast: Cast) -> None:
    if not cast.writer.ask("cancel", MAIN):
        raise cast.fail("a transfer under way cannot be cancelled")


# ---- the receiver gives up ---------------------------------------------------------------------------


def _revoke(cast: Cast) -> None:
    cast.receiver.ask("begin", "ending", "revoke", cast.granted.grant_id, PATIENCE_S)
    _await_fenced(cast)
    _check_waits(cast)
    release(cast)
    _await_done(cast, cast.receiver, "ending")


def _free(cast: Cast) -> None:
    cast.is_freed = True
    cast.receiver.ask("begin", "ending", "free_cache", cast.target)
    cast.until(lambda: not cast.receiver.ask("has_cache", cast.target), "the cache is fenced off")
    if cast.state.is_granted:
        _await_fenced(cast)
    _check_waits(cast)
    cast.spread()
    release(cast)
    _await_done(cast, cast.receiver, "ending")


def _close(cast: Cast) -> None:
    cast.closed = cast.receiver
    cast.receiver.ask("begin", "ending", "close")
    if cast.state.is_granted:
        _await_fenced(cast)
    else:
        cast.until(lambda: not cast.receiver.ask("has_cache", cast.target), "the cache is fenced off")
    _check_waits(cast)
    cast.spread()
    release(cast)
    _await_done(cast, cast.receiver, "ending")


def _check_waits(cast: Cast) -> None:
    """Nobody is told that the blocks are free while a writer is inside."""
    if cast.state.is_inside:
        time.sleep(A_MOMENT_S)
        if (outcome := cast.receiver.ask("peek", "ending")).kind != "pending":
            raise cast.fail(f"{cast.case.fault.value} did not wait for the writer that is inside: {outcome}")


# ---- time passes -------------------------------------------------------------------------------------


def _let_expire(cast: Cast) -> None:
    cast.until(lambda: time.monotonic_ns() > cast.granted.deadline_ns, "the grant's time passes")
    _await_fenced(cast)


def _let_time_out(cast: Cast) -> None:
    cast.until(lambda: cast.writer.ask("seconds_since", MAIN) > SHORT_S, "the transfer's time passes")


# ---- the writer is stopped ---------------------------------------------------------------------------


def _stop(cast: Cast) -> None:
    """The receiver wants its blocks back meanwhile, and gets them unless the stopped one is inside."""
    cast.writer.stop()
    if not cast.state.is_granted:
        cast.is_freed = True
        cast.receiver.ask("begin", "ending", "free_cache", cast.target)
        cast.until(lambda: not cast.receiver.ask("has_cache", cast.target), "the cache is fenced off")
        _check_waits(cast)
        return
    if cast.other is not None:
        cast.other.ask("go_on")
    was_held = cast.grant_state()[0] is not None
    outcome = cast.receiver.try_("revoke", cast.granted.grant_id, IN_VAIN_S)
    is_held = was_held and cast.state.is_open and cast.state.place in INSIDE
    if is_held != (outcome.kind == "TransferTimeout"):
        raise cast.fail(f"revoke while the writer is stopped: {outcome}")
    if is_held and cast.grant_state()[0] not in ("quarantined", "fenced"):
        raise cast.fail(f"a stopped writer is inside, and the grant is {cast.grant_state()}")


def _stop_and_go_on(cast: Cast) -> None:
    _stop(cast)
    cast.writer.resume()
    cast.spread()
    release(cast)
    _await_given_back(cast)


def _stop_and_kill(cast: Cast) -> None:
    _stop(cast)
    _kill(cast, cast.writer)
    _await_given_back(cast)


def _await_given_back(cast: Cast) -> None:
    if cast.state.is_granted:
        await_released(cast)
    else:
        _await_done(cast, cast.receiver, "ending")


# ---- waiting -----------------------------------------------------------------------------------------


def _await_fenced(cast: Cast) -> None:
    """By whoever did it, or the watch."""
    cast.until(lambda: cast.grant_state()[0] != "standing", "the grant is fenced off")


def _await_done(cast: Cast, peer: Peer, name: str) -> None:
    outcome = peer.outcome(name)
    if outcome.kind != "NoneType":
        raise cast.fail(f"{name} of endpoint {peer.cluster_id}: {outcome}")


_FAULTS = {
    Fault.KILL_WRITER: _kill_writer,
    Fault.KILL_RECEIVER: _kill_receiver,
    Fault.LEAVE: _leave,
    Fault.FAIL_GRANT: _fail_grant,
    Fault.CANCEL: _cancel,
    Fault.REVOKE: _revoke,
    Fault.FREE: _free,
    Fault.CLOSE: _close,
    Fault.TTL: _let_expire,
    Fault.TIMEOUT: _let_time_out,
    Fault.STOP_CONT: _stop_and_go_on,
    Fault.STOP_KILL: _stop_and_kill,
}
