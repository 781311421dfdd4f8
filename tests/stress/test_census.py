"""The census, many times: each cell of the table, then cells drawn by SEED, RUNS in all."""

from __future__ import annotations

import os
import random

import pytest

from tests.census.cast import SOON_S, Case
from tests.census.runs import Report, run_all
from tests.census.states import EXPECTED

RUNS = int(os.environ.get("RUNS", "1000"))
SEED = int(os.environ.get("SEED", "1"))
SCENES = 4
PARTS = 4  # each takes a minute


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    rng = random.Random(SEED)
    cells = [*EXPECTED, *rng.choices(list(EXPECTED), k=max(RUNS - len(EXPECTED), 0))][:RUNS]
    rng.shuffle(cells)
    return [Case(rng.randrange(2**32), *cell) for cell in cells]


@pytest.fixture(scope="module")
def so_far() -> Report:
    return Report([], [])


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_stays_behind_in_very_many_runs(
    part: int, cases: list[Case], so_far: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_all(cases[part::PARTS], SCENES)
    so_far.results.extend(report.results)
    so_far.failures.extend(report.failures)
    if part == PARTS - 1:
        with capsys.disabled():
            print(f"\n{len(so_far.results)} runs of seed {SEED}, {len(so_far.failures)} failed\n{so_far.table()}")
    assert not report.failures, "\n".join(report.failures)
    assert len(report.results) == len(cases[part::PARTS])
    assert max((each.seconds for each in report.results if each.seconds is not None), default=0) < SOON_S
