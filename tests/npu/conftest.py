"""For a real Atlas: `make test-npu` on a machine with CANN, torch_npu and at least two NPUs. Skipped elsewhere."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import ray

NODES = glob.glob("/dev/davinci[0-9]*")
MISSING = f"{len(NODES)} of /dev/davinci*" if len(NODES) < 2 else "no torch_npu" if not find_spec("torch_npu") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/npu/" in item.nodeid:
            item.add_marker(pytest.mark.npu)
            if MISSING is not None:
                item.add_marker(pytest.mark.skip(reason=f"two Atlas NPUs are needed: {MISSING}"))


@pytest.fixture(scope="session")
def npus() -> Iterator[None]:
    """A Ray of this machine that knows its NPUs, whether or not it finds them by itself."""
    ray.init(
        address="local",
        resources={"NPU": len(NODES)},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="kvfabric",
    )
    yield
    ray.shutdown()
