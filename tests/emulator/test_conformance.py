"""The conformance suite between two actors, each pinned to an emulated NPU, over the real torch_npu."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_kvfabric.testing.workers import PLACES, Case, PinnedPair, cases

GRAIN = 64  # an NPU copies multiples of 64 bytes
# To HCCL one address is as good as another: the fabric's own memory says all of a registered tensor's.
COMBINED = [
    (transport, places)
    for transport in ("device_ipc", "hccl")
    for places in PLACES
    if (transport, places) != ("hccl", "device to a torch tensor")
]


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, npus: None) -> Iterator[PinnedPair]:
    pair = PinnedPair(request.param, {"NPU": 1}, GRAIN)
    yield pair
    pair.close()


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize(("pair", "places"), COMBINED, indirect=["pair"], scope="module")
def test_conformance(pair: PinnedPair, places: str, case: Case) -> None:
    pair.run(case, PLACES[places])
