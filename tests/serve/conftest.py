"""A Ray of these tests alone, and trios of engines on it: one undivided, one that prefills, one that decodes."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.serve.leftovers import Leftovers
from tests.serve.trio import Setting, Trio

_fabrics = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def leftovers() -> Iterator[None]:
    """What killed engines leave in /dev/shm and the temporary directory is taken away; ours must not be among it."""
    before = Leftovers.now()
    yield
    Leftovers.now().since(before).remove()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(sys.prefix) / "cache"))
    examples = str(Path(__file__).parents[2] / "examples")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), examples)))
    ray.init(
        "local",
        num_cpus=16,
        include_dashboard=False,
        object_store_memory=200 << 20,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def start_trio(address: str) -> Iterator[Callable[[Setting], Trio]]:
    """Starts trios in fabrics of their own; one at a time, the last one is kept for whoever wants the same."""
    running: list[tuple[Setting, Trio]] = []

    def start(setting: Setting) -> Trio:
        if running and running[0][0] == setting and running[0][1].is_alive:
            return running[0][1]
        while running:
            running.pop()[1].close()
        trio = Trio(setting, address, f"serve-{next(_fabrics)}")
        running.append((setting, trio))
        return trio

    yield start
    while running:
        running.pop()[1].close()
