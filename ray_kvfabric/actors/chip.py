"""The Ascend chip of this process, and whether push_blocks is stated to be supported on it.

A chip's name tells the series, and for Atlas A2 no more than that: training and inference products carry the same
chips, and only some of them are stated as supported.
"""

from __future__ import annotations

import importlib
import logging
import re
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

_SUPPORTED = "supported"
_SERIES = (  # whole names; first match wins
    (r"Ascend910_93\d\d", "Atlas A3 training and inference series", _SUPPORTED),
    (
        r"Ascend910B\d\w*",
        "Atlas A2",
        "supported in the Atlas 800I A2 and the A200I A2 Box, not in the A2 training series",
    ),
    (r"Ascend310B\w*", "Atlas 200I/500 A2", "not supported"),
    (r"Ascend310P\w*", "Atlas inference series", "not supported"),
    (r"Ascend910(Pro|Premium)?[AB]?", "Atlas training series", "not supported"),  # 910B: without a number behind it
)


class Chip(NamedTuple):
    """`support`: what the documentation says of push_blocks on the series."""

    name: str
    series: str
    support: str

    @property
    def is_supported(self) -> bool:
        """Whether the documentation says so for every product with this chip."""
        return self.support == _SUPPORTED

    def __str__(self) -> str:
        return f"{self.name} ({self.series}): push_blocks is stated as {self.support}"


def describe_chip(name: str) -> Chip:
    """What LLM-DataDist's documentation says about a chip of this name."""
    for pattern, series, support in _SERIES:
        if re.fullmatch(pattern, name):
            return Chip(name, series, support)
    return Chip(name, "unknown series", "neither supported nor unsupported")


def log_chip(chip: Chip, cluster_id: int) -> None:
    """A line at an endpoint's start; a warning where the documentation does not vouch for the chip."""
    level = logging.INFO if chip.is_supported else logging.WARNING
    logger.log(level, "endpoint %d runs on %s", cluster_id, chip)


def device_chip_name() -> str | None:
    """The chip's name as CANN tells it; None where neither `acl` nor `torch_npu` finds a device.

    Opens no device: torch_npu says the name of chips, too, that it then refuses to work on.
    """
    return _ask("acl", lambda acl: acl.get_soc_name()) or _ask(
        "torch_npu", lambda torch_npu: torch_npu.npu.get_device_name(0)
    )


def _ask(module: str, question: Any) -> str | None:
    try:
        return question(importlib.import_module(module)) or None
    except (ImportError, AttributeError, RuntimeError, OSError):
        return None
