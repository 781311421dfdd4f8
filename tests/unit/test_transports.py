"""Every transport of the package keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ray_kvfabric.memory.copy import available
from ray_kvfabric.testing.conformance import Pair, TransportConformance, child_pair, local_pair


@pytest.fixture(params=available())
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestLoopback(TransportConformance):
    @pytest.fixture
    def pair(self, kernel: str) -> Iterator[Pair]:
        yield from local_pair("loopback", copy_kernel=kernel)


class TestSharedMemory(TransportConformance):
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        yield from child_pair("shared_memory")


class TestProcessVm(TransportConformance):
    @pytest.fixture
    def pair(self) -> Iterator[Pair]:
        yield from child_pair("process_vm", allocates=False)
