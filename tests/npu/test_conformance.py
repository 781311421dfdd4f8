"""The conformance suite between two actors, each pinned to an NPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_kvfabric.testing.workers import PLACES, Case, PinnedPair, cases

GRAIN = 64


@pytest.fixture(scope="module", params=["device_ipc", "hccl"])
def pair(request: pytest.FixtureRequest, npus: None) -> Iterator[PinnedPair]:
    pair = PinnedPair(request.param, {"NPU": 1}, GRAIN)
    yield pair
    pair.close()


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("places", PLACES)
def test_conformance(pair: PinnedPair, places: str, case: Case) -> None:
    pair.run(case, PLACES[places])
