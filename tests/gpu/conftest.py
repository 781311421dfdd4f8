"""A Ray of this machine with its GPUs. Every test here is marked gpu, and skipped where torch finds none.

python -m pytest tests/gpu
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if NUM_GPUS == 0:
                item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} finds no CUDA GPU"))


@pytest.fixture(scope="session")
def gpus() -> Iterator[int]:
    """How many Ray was told of: two at most."""
    count = min(NUM_GPUS, 2)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=count,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace="kvfabric",
    )
    yield count
    ray.shutdown()
