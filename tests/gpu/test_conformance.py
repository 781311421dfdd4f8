"""The conformance suite over device_ipc between two actors: on one GPU, half of it each, and on two if there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_kvfabric.testing.workers import PLACES, Case, PinnedPair, cases

GRAIN = 1  # the kernel copies any bytes
SHARES = {"one GPU": 0.5, "two GPUs": 1.0}  # of a GPU, for each actor


@pytest.fixture(scope="module", params=SHARES)
def pair(request: pytest.FixtureRequest, gpus: int) -> Iterator[PinnedPair]:
    share = SHARES[request.param]
    if share * 2 > gpus:
        pytest.skip(f"{request.param} are needed, there is {gpus}")
    pair = PinnedPair("device_ipc", {"GPU": share}, GRAIN, device="cuda")
    yield pair
    pair.close()


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("places", PLACES)
def test_conformance(pair: PinnedPair, places: str, case: Case) -> None:
    pair.run(case, PLACES[places])
