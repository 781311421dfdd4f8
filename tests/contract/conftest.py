"""The two faces of one behaviour, and how a refusal is asserted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.integrations.llm_datadist import install, uninstall
from ray_kvfabric.integrations.llm_datadist.deviations import DEVIATIONS, Deviation
from tests.contract.world import Ends, MemoryWorld, memory_world

NATIVE = {
    "cache.types": ("CacheDesc", "DataType", "LLMRole", "Placement"),
    "cache.keys": ("BlocksCacheKey", "CacheKey", "CacheKeyByIdAndIndex"),
    "cache.handle": ("Cache",),
    "cache.layer_transfer": (
        "LayerSynchronizer",
        "MemInfo",
        "Memtype",
        "TransferConfig",
        "TransferWithCacheKeyConfig",
    ),
    "errors": ("LLMException", "LLMStatusCode"),
}
WIDTHS = {
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
NOT_INTS = [None, 1.0, "1", [1], np.int64(1), np.bool_(True)]


@pytest.fixture(scope="module")
def llm_datadist() -> Iterator[ModuleType]:
    """The drop-in, imported as programs import it."""
    install(replace=True)
    yield import_module("llm_datadist")
    uninstall()


@pytest.fixture(params=["native", "drop_in"])
def api(request: pytest.FixtureRequest) -> Any:
    """The value layer by its names."""
    return native() if request.param == "native" else request.getfixturevalue("llm_datadist")


def native() -> SimpleNamespace:
    names = {name: home for home, names in NATIVE.items() for name in names}
    return SimpleNamespace(
        **{name: getattr(import_module(f"ray_kvfabric.{home}"), name) for name, home in names.items()}
    )


@contextmanager
def refused(kind: type[Exception], says: str = "") -> Iterator[None]:
    """That class, an LLMException only where it was asked for."""
    with pytest.raises(kind, match=re.escape(says) or None) as caught:
        yield
    assert issubclass(kind, LLMException) == isinstance(caught.value, LLMException)


@contextmanager
def invalid(says: str = "") -> Iterator[None]:
    """LLMException with LLM_PARAM_INVALID."""
    with pytest.raises(LLMException, match=re.escape(says) or None) as caught:
        yield
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


def wrong_ints(width: str) -> list[tuple[object, type[Exception]]]:
    """Values that a field of that width refuses, and how."""
    low, high = WIDTHS[width]
    return [*((value, TypeError) for value in NOT_INTS), (low - 1, ValueError), (high + 1, ValueError)]


def deviates(name: str) -> Deviation:
    """The deviation that a test is about; a name that is not in the table fails the test."""
    return next(each for each in DEVIATIONS if each.name == name)


def python(code: str, *paths: object, **environment: str) -> str:
    """What a fresh interpreter prints."""
    ours = str(import_module("ray_kvfabric").__path__[0]).removesuffix("/ray_kvfabric")
    path = ":".join(str(each) for each in (*paths, ours))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def world() -> Iterator[MemoryWorld]:
    """The drop-in's engines meet in this process, without Ray; device memory is emulated."""
    with memory_world() as made:
        yield made


@pytest.fixture(params=["native", "drop_in"])
def ends(request: pytest.FixtureRequest, world: MemoryWorld) -> Iterator[Ends]:
    """Endpoints of either face; everything runs twice."""
    made = Ends(request.param, world)
    yield made
    made.close()
