"""What doctor finds: a fact with a state, and what to do about it where something is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

State = Literal["ok", "note", "missing"]  # missing: something needed is not there


class Finding(NamedTuple):
    area: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def is_healthy(findings: Iterable[Finding]) -> bool:
    return all(finding.state != "missing" for finding in findings)


def as_document(findings: list[Finding]) -> dict[str, object]:
    """`healthy`, then the findings by area and name."""
    areas: dict[str, dict[str, object]] = {}
    for finding in findings:
        entry = {"state": finding.state, "detail": finding.detail, "remedy": finding.remedy or None}
        areas.setdefault(finding.area, {})[finding.name] = entry
    return {"healthy": is_healthy(findings), **areas}
