"""A sample of the census: every state, every fault, and that the table leaves none out. `make stress` runs more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ray_kvfabric.control.grants import Ending, Phase
from ray_kvfabric.control.lane import Stage
from ray_kvfabric.endpoint import transfers
from ray_kvfabric.testing.faults import Point
from tests.census.cast import SOON_S, Case
from tests.census.runs import run_all
from tests.census.states import EXPECTED, POINTS, STATES, Fault, Other, Place, Then, Writer, sample

RUNS = 60
PARTS = 2  # so many workers share them
BOARD = Path(__file__).parents[2] / "native_ext" / "board.h"


def test_every_phase_and_ending_of_a_grant_is_in_the_table() -> None:
    assert {state.phase for state in STATES.values()} == {None, *Phase}
    assert {state.ending for state in STATES.values()} == {None, *Ending}
    released = {state.ending for state in STATES.values() if state.is_granted and state.phase is None}
    quarantined = {state.ending for state in STATES.values() if state.phase is Phase.QUARANTINED}
    assert released == quarantined == set(Ending)


def test_every_state_of_a_writer_on_the_board_is_in_the_table() -> None:
    (declared,) = re.findall(r"enum \{ (KVF_WAITED_FOR = [^}]*) \}", BOARD.read_text())
    names = {name: int(number) for name, number in re.findall(r"KVF_(\w+) = (\d+)", declared)}
    assert {writer.name: writer.value for writer in Writer} == names
    seen = {state.writer for state in STATES.values()} - {None}
    assert seen | {Writer.FAILED} == set(Writer)  # of the one that failed the other tells
    assert {state.other for state in STATES.values()} == {None, *Other}


def test_every_state_of_a_transfer_is_in_the_table() -> None:
    """On the writer's side: its own word, its place at the gate, and the points of its copy."""
    assert transfers.__doc__ is not None
    (drawn,) = re.findall(r"^planned -> .*?(?=  )", transfers.__doc__, re.MULTILINE)
    for states in (
        [state.transfer for state in STATES.values() if state.is_granted],
        [state.transfer for state in STATES.values() if not state.is_granted],
    ):
        assert set(states) - {None} == set(re.findall(r"\w+", drawn))
    assert {state.stage for state in STATES.values()} == set(Stage)
    assert {state.place for state in STATES.values()} == set(Place)
    assert {state.then for state in STATES.values()} == set(Then)
    assert set(POINTS.values()) == set(Point)


def test_only_what_cannot_happen_is_left_out_of_the_table() -> None:
    left_out = {(name, fault) for name in STATES for fault in Fault} - EXPECTED.keys()
    impossible = {
        Fault.CANCEL: lambda state: not state.is_open,
        Fault.TIMEOUT: lambda state: not state.is_open,
        Fault.FAIL_GRANT: lambda state: not state.is_granted,
        Fault.REVOKE: lambda state: not state.is_granted,
        Fault.TTL: lambda state: not state.is_granted or state.ending is Ending.EXPIRED,
    }
    assert left_out == {
        (name, fault) for name, state in STATES.items() for fault in impossible if impossible[fault](state)
    }
    assert {name for name, _ in EXPECTED} == STATES.keys()


def test_the_sample_has_every_state_and_every_fault() -> None:
    cells = sample(RUNS)
    assert len(cells) == len(set(cells)) == RUNS
    assert {state for state, _ in cells} == STATES.keys()
    assert {fault for _, fault in cells} == set(Fault)


@pytest.mark.native
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_stays_behind_whoever_dies_or_gives_up(part: int) -> None:
    cases = [Case(seed, *cell) for seed, cell in enumerate(sample(RUNS))][part::PARTS]
    report = run_all(cases, num_scenes=2)
    assert not report.failures, "\n".join(report.failures)
    assert len(report.results) == len(cases)
    assert max(each.seconds for each in report.results if each.seconds is not None) < SOON_S
