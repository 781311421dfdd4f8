"""Deadline: an instant of CLOCK_MONOTONIC by which a call must end. Every wait of the fabric has one."""

from __future__ import annotations

import time
from typing import NamedTuple


class Deadline(NamedTuple):
    """`at_ns` is comparable across the processes of one host."""

    at_ns: int

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic_ns() + int(seconds * 1e9))

    @property
    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(self.at_ns - time.monotonic_ns(), 0) / 1e9

    @property
    def passed(self) -> bool:
        return time.monotonic_ns() >= self.at_ns
