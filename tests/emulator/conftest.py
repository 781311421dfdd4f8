"""Emulated NPUs under Ray. `make test-emulator` sets the environment that finds the emulation and torch_npu."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import ray

NPUS = 8


@pytest.fixture(scope="session")
def npus() -> Iterator[None]:
    """A Ray of this machine that was told of its emulated NPUs."""
    os.environ["KVFABRIC_EMULATED_NPUS"] = str(NPUS)
    ray.init(
        address="local",
        num_cpus=4,
        resources={"NPU": NPUS},
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="kvfabric",
    )
    yield
    ray.shutdown()
