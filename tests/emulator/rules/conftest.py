"""Fixtures: children that are gone when a test is over, and the libraries there at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.emulator.rules.cann import folder
from tests.emulator.rules.processes import Child


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    assert (folder() / "libascendcl.so").exists(), f"no emulation in {folder()}; build native_ext/cann_emulator first"


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(function: Callable[..., Any], *args: Any, **environment: str) -> Child:
        children.append(Child(function, *args, **environment))
        return children[-1]

    yield start
    for each in children:
        each.end()
