"""The Ascend chip of this process, and whether push_blocks is stated to be supported on it."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

_SERIES = (  # first match wins
    ("Ascend910_93", "Atlas A3 training and inference series", "supported"),
    (
        "Ascend910B",
        "Atlas A2",
        "supported in the Atlas 800I A2 and the A200I A2 Box, not in the A2 training series",
    ),
    ("Ascend310B", "Atlas 200I/500 A2", "not supported"),
    ("Ascend310P", "Atlas inference series", "not supported"),
    ("Ascend910", "Atlas training series", "not supported"),
)


class Chip(NamedTuple):
    name: str
    series: str
    support: str

    def __str__(self) -> str:
        return f"{self.name} ({self.series}): {self.support}"


def describe_chip(name: str) -> Chip:
    """What LLM-DataDist's documentation says about a chip of this name."""
    for prefix, series, support in _SERIES:
        if name.startswith(prefix):
            return Chip(name, series, support)
    return Chip(name, "unknown series", "not stated")


def device_chip_name() -> str | None:
    """The chip's name as CANN tells it; None where neither `acl` nor `torch_npu` finds a device."""
    return _ask("acl", lambda acl: acl.get_soc_name()) or _ask(
        "torch_npu", lambda torch_npu: torch_npu.npu.get_device_name(0)
    )


def _ask(module: str, question: Any) -> str | None:
    try:
        return question(importlib.import_module(module)) or None
    except (ImportError, AttributeError, RuntimeError, OSError):
        return None
