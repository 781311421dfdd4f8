"""Says which copy kernels the tests run on."""

from __future__ import annotations

from ray_kvfabric.config import endpoint_settings
from ray_kvfabric.memory.copy import available


def pytest_report_header() -> str:
    return f"copy kernel: {endpoint_settings().copy_kernel} (available: {', '.join(available())})"
