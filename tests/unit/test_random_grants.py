"""A sample of tests/stress/test_random_grants.py."""

from __future__ import annotations

import pytest

from ray_kvfabric.testing.faults import Point
from tests.shadow.deaths import die_at
from tests.shadow.run import run
from tests.shadow.storm import storm

SEED = 20261128


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no-digests"])
@pytest.mark.parametrize(("transport", "pushes"), [("loopback", 300), ("shared_memory", 60), ("process_vm", 60)])
def test_pushes_with_faults_leave_exactly_the_bytes_of_the_shadow(transport: str, pushes: int, digests: bool) -> None:
    counts = run(transport, SEED, pushes, digests=digests)
    assert counts["wait GrantReceipt"] > pushes / 10


def test_blocks_are_written_by_nobody_once_a_revoke_has_returned() -> None:
    assert storm("loopback", SEED, 25) > 25


@pytest.mark.parametrize(("point", "outcome"), [(Point.HALFWAY, "PeerLost"), (Point.LANDED, "GrantReceipt")])
def test_a_writers_death_is_heard_at_once(point: Point, outcome: str) -> None:
    assert die_at(point, "shared_memory")[0] == outcome
