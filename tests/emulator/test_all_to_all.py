"""Eight NPUs, each pushing to all others at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.emulator.faulty import FaultyPair, settled

WORKERS = range(1, 9)
TURNS = 3


@pytest.fixture
def eight(npus: None) -> Iterator[FaultyPair]:
    workers = FaultyPair("hccl")
    workers.start(*WORKERS)
    yield workers
    workers.fabric.close()


def test_all_push_to_all_at_once_and_every_block_arrives(eight: FaultyPair) -> None:
    """Block t * 8 + s of each target comes from block s of source s, in turn t."""
    caches = {each: eight.on(each, "make", "DEVICE", (8 * TURNS + 8, 4, 64)) for each in WORKERS}
    calls = [
        eight.workers[source].push.remote(caches[source], target, [0], [8 * turn + source], 120.0)
        for turn in range(TURNS)
        for source in WORKERS
        for target in WORKERS
        if source != target
    ]
    assert {settled(call, 180) for call in calls} == {"hccl"}
    for target in WORKERS:
        landed = eight.on(target, "blocks", caches[target])
        for turn in range(TURNS):
            for source in WORKERS:
                assert (landed[:, 8 * turn + source] == source).all(), (source, target, turn)
    states = [eight.on(each, "status")["transport_state"]["hccl"]["communicators"] for each in WORKERS]
    assert states == [2 * (len(WORKERS) - 1)] * len(WORKERS)
