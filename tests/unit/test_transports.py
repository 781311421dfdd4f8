"""Every transport of the package keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ray_kvfabric.memory.copy import available
from ray_kvfabric.testing.conformance import KEY, Pair, TransportConformance, child_pair, local_pair


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


def test_a_path_that_is_slower_than_the_host_allows_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    both = ("shared_memory", "process_vm")
    for allocates, transport, counted in ((True, "shared_memory", 0), (False, "process_vm", 1)):
        for pair in child_pair(transport, allocates=allocates, transports=both):
            source, _ = pair.source_cache(), pair.target_cache()
            pair.manager.push_blocks(KEY, source, [0], [0])
            counters: Any = pair.manager.status()["counters"]
            assert counters.get("slow_path/process_vm", 0) == counted
            assert ("memory that the fabric did not allocate" in caplog.text) is bool(counted)
