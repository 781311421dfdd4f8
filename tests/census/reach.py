"""Brings a cast into its state, and proves that it is there."""

from __future__ import annotations

from typing import Any

from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.lane import Stage
from ray_kvfabric.testing.faults import Point
from tests.census.actor import PATIENCE_S, SETTINGS, Outcome
from tests.census.cast import SHORT_S, Cast
from tests.census.states import POINTS, Other, Place, Then

MAIN = "main"  # the transfer that the state is about
IN_VAIN_S = 0.05


def prepare(cast: Cast) -> None:
    """Caches, and the books as they have to be again."""
    choice = cast.choice
    shape = choice.tensors, choice.num_blocks, choice.block_nbytes
    cast.target = cast.receiver.ask("make_cache", *shape, None, choice.is_foreign)
    cast.source = cast.writer.ask("make_cache", *shape, cast.case.seed, False)
    if cast.other is not None:
        cast.other_source = cast.other.ask("make_cache", *shape, cast.case.seed + 1, False)
    cast.spread()
    cast.books = {peer.pid: peer.ask("books") for peer in cast.living}


def reach(cast: Cast) -> None:
    if cast.state.is_granted:
        _grant(cast)
    if cast.state.other in (Other.SEALED, Other.INSIDE):
        _bring_other(cast)
    _PLACES[cast.state.place](cast)
    if cast.state.other is Other.FAILED:
        _fail_other(cast)
    _THEN[cast.state.then](cast)
    _check(cast)


def _grant(cast: Cast) -> None:
    choice, state = cast.choice, cast.state
    ids = [peer.cluster_id for peer in (cast.writer, cast.other) if peer is not None]
    wishes: dict[str, Any] = {"sources": ids} if cast.names_sources else {"writers": len(ids)}
    wishes |= {"ttl_s": cast.ttl_s, "verify": choice.verify, "request_id": cast.case.state}
    cast.grant = cast.receiver.ask("grant", cast.target, choice.target_blocks, **wishes)
    is_seen = state.place in (Place.DONE, Place.ACKNOWLEDGED, Place.REWRITING)  # a wait would end it
    if choice.waits_early and state.then is Then.NOTHING and state.other is not Other.FAILED and not is_seen:
        cast.is_waiting = True
        cast.receiver.ask("begin", "wait", "wait", cast.granted.grant_id, PATIENCE_S)


# ---- places of the writer ----------------------------------------------------------------------------


def _push(cast: Cast, count: int | None = None, name: str = MAIN, **wishes: Any) -> None:
    choice = cast.choice
    if cast.grant is not None:
        wishes = {"seal": True, "writer": 0, **wishes}
    else:
        wishes.pop("seal", None)
    cast.writer.ask(
        "start", name, cast.push_target, cast.source, choice.source_blocks[:count], choice.target_blocks[:count],
        timeout_s=cast.timeout_s if name == MAIN else None, **wishes,
    )  # fmt: skip


def _push_beside(cast: Cast, **wishes: Any) -> None:
    """A plain push of one block that is in no grant, paused halfway."""
    pause = cast.writer.ask("arm", Point.HALFWAY)
    name = f"beside {len(cast.beside)}"
    blocks = cast.choice.source_blocks[:1], [cast.choice.spare]
    cast.writer.ask("start", name, cast.receiver.cluster_id, cast.source, *blocks, **wishes)
    cast.beside.append(name)
    cast.writer.ask("await_pause", pause)


def _go_nowhere(cast: Cast) -> None:
    pass


def _pause_inside(cast: Cast, **wishes: Any) -> None:
    pause = cast.writer.ask("arm", POINTS[cast.state.place])
    _push(cast, **wishes)
    cast.writer.ask("await_pause", pause)


def _queue(cast: Cast) -> None:
    for _ in range(SETTINGS.admission.moving_per_link):
        _push_beside(cast)
    _push(cast)


def _give_way(cast: Cast) -> None:
    """A more urgent push tells it to before it has moved anything, so it pauses after a piece."""
    pause = cast.writer.ask("arm", Point.ENTERED)
    _push(cast, priority=Priority.BULK)
    cast.writer.ask("await_pause", pause)
    _push_beside(cast, priority=Priority.INTERACTIVE)
    cast.writer.ask("go_on", pause)
    cast.until(lambda: _stage(cast) is Stage.PAUSED, "it gives way")


def _push_a_part(cast: Cast) -> None:
    _push(cast, len(cast.choice.target_blocks) // 2, seal=False)
    _await_landed(cast)


def _push_all(cast: Cast) -> None:
    _push(cast)
    _await_landed(cast)


def _await_landed(cast: Cast) -> None:
    cast.until(lambda: cast.writer.ask("transfer_state", MAIN) == "landed", "the push lands")


def _rewrite(cast: Cast) -> None:
    _pause_inside(cast, seal=False)
    _push(cast, name="sealing")
    cast.until(lambda: cast.writer.ask("transfer_state", "sealing") == "landed", "the second push lands")


_PLACES = {
    **dict.fromkeys(POINTS, _pause_inside),
    Place.NOWHERE: _go_nowhere,
    Place.QUEUED: _queue,
    Place.GAVE_WAY: _give_way,
    Place.BETWEEN: _push_a_part,
    Place.DONE: _push_all,
    Place.REWRITING: _rewrite,
}

# ---- the other writer --------------------------------------------------------------------------------


def _bring_other(cast: Cast) -> None:
    other = cast.other
    assert other is not None
    choice, is_inside = cast.choice, cast.state.other is Other.INSIDE
    pause = other.ask("arm", Point.HALFWAY) if is_inside else None
    other.ask("start", MAIN, cast.granted, cast.other_source, choice.source_blocks, choice.target_blocks, writer=1)
    if pause is not None:
        other.ask("await_pause", pause)
    else:
        cast.until(lambda: other.ask("transfer_state", MAIN) == "landed", "the other writer seals")


def _fail_other(cast: Cast) -> None:
    assert cast.other is not None
    cast.other.ask("fail_granted", cast.granted, 1)
    cast.until(lambda: cast.grant_state()[0] == "quarantined", "the failure of the other writer fences the grant")


# ---- what happens then -------------------------------------------------------------------------------


def _nothing_then(cast: Cast) -> None:
    pass


def _wait(cast: Cast) -> None:
    _expect(cast, cast.receiver.try_("wait", cast.granted.grant_id, PATIENCE_S), "GrantReceipt")


def _fail(cast: Cast) -> None:
    cast.writer.ask("fail_granted", cast.granted, 0)
    await_released(cast)


def _cancel(cast: Cast) -> None:
    cast.writer.ask("cancel", MAIN)
    _let_it_end(cast)


def _time_out(cast: Cast) -> None:
    cast.until(lambda: cast.writer.ask("seconds_since", MAIN) > SHORT_S, "its time passes")
    _let_it_end(cast)


def _let_it_end(cast: Cast) -> None:
    cast.writer.ask("go_on")
    cast.until(lambda: cast.writer.ask("transfer_state", MAIN) in ("failed", "cancelled"), "the transfer ends")
    if cast.grant is not None:
        await_released(cast)


def _expire(cast: Cast) -> None:
    wanted = "quarantined" if cast.state.is_inside else None
    cast.until(lambda: cast.grant_state()[0] == wanted, "the grant expires")


def _revoke(cast: Cast) -> None:
    cast.receiver.ask("revoke", cast.granted.grant_id, PATIENCE_S)


def _begin_revoking(cast: Cast) -> None:
    cast.receiver.ask("begin", "revoking", "revoke", cast.granted.grant_id, PATIENCE_S)
    cast.until(lambda: cast.grant_state()[0] == "fenced", "the grant is fenced off")


def _revoke_in_vain(cast: Cast) -> None:
    outcome = cast.receiver.try_("revoke", cast.granted.grant_id, IN_VAIN_S)
    _expect(cast, outcome, "TransferTimeout")


def _wait_in_vain(cast: Cast) -> None:
    outcome = cast.receiver.try_("wait", cast.granted.grant_id, IN_VAIN_S)
    _expect(cast, outcome, "TransferTimeout")


_THEN = {
    Then.NOTHING: _nothing_then,
    Then.WAIT: _wait,
    Then.FAIL: _fail,
    Then.CANCEL: _cancel,
    Then.TIMEOUT: _time_out,
    Then.EXPIRE: _expire,
    Then.REVOKE: _revoke,
    Then.REVOKING: _begin_revoking,
    Then.REVOKE_IN_VAIN: _revoke_in_vain,
    Then.WAIT_IN_VAIN: _wait_in_vain,
}


def await_released(cast: Cast) -> None:
    cast.until(lambda: cast.grant_state()[0] is None, "the grant is released")


def _expect(cast: Cast, outcome: Outcome, kind: str) -> None:
    if outcome.kind != kind:
        raise cast.fail(f"while its state was made: expected {kind}, got {outcome}")


# ---- the proof ---------------------------------------------------------------------------------------


def _stage(cast: Cast) -> Stage:
    if cast.state.transfer is None:
        return Stage.NEW
    if cast.writer.ask("transfer_state", MAIN) not in ("planned", "moving"):
        return Stage.ENDED
    counts = cast.writer.ask("gate").get(cast.receiver.cluster_id, {})
    if counts.get("queued"):
        return Stage.QUEUED
    return Stage.PAUSED if counts.get("paused") else Stage.MOVING


def _check(cast: Cast) -> None:
    state = cast.state
    found: dict[str, object] = {"stage": _stage(cast)}
    wanted: dict[str, object] = {"stage": state.stage, "transfer": state.transfer}
    found["transfer"] = None if state.transfer is None else cast.writer.ask("transfer_state", MAIN)
    if state.is_granted:
        phase, ending, writers = cast.grant_state()
        found |= {"phase": phase, "ending": ending, "writer": writers[0] if writers else None}
        wanted |= {
            "phase": state.phase.value if state.phase else None,
            "ending": state.ending.value if state.ending else None,
            "writer": state.writer.value if state.writer else None,
        }
    if found != wanted:
        raise cast.fail(f"the state was not reached: {found}, expected {wanted}")
