"""The chip's name against the products that the documentation of push_blocks lists."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from ray_kvfabric.actors.chip import describe_chip, device_chip_name, log_chip


@pytest.mark.parametrize(
    ("name", "series", "support"),
    [
        ("Ascend910_9391", "Atlas A3", "supported"),
        (
            "Ascend910B4",
            "Atlas A2",
            "supported in the Atlas 800I A2 and the A200I A2 Box, not in the A2 training series",
        ),
        ("Ascend310B1", "Atlas 200I/500 A2", "not supported"),
        ("Ascend310P3", "Atlas inference series", "not supported"),
        (
            "Ascend910B2C",
            "Atlas A2",
            "supported in the Atlas 800I A2 and the A200I A2 Box, not in the A2 training series",
        ),
        ("Ascend910A", "Atlas training series", "not supported"),
        ("Ascend910B", "Atlas training series", "not supported"),
        ("Ascend910ProB", "Atlas training series", "not supported"),
        ("Ascend910PremiumA", "Atlas training series", "not supported"),
        ("Ascend910_9579", "unknown", "neither supported nor unsupported"),
        ("Ascend999", "unknown", "neither supported nor unsupported"),
    ],
)
def test_each_series_is_told_as_documented(name: str, series: str, support: str) -> None:
    chip = describe_chip(name)
    assert chip.series.startswith(series)
    assert chip.support == support
    assert str(chip) == f"{name} ({chip.series}): push_blocks is stated as {support}"
    assert chip.is_supported is (name == "Ascend910_9391")


@pytest.mark.parametrize(
    ("name", "level"),
    [("Ascend910_9391", "INFO"), ("Ascend910B3", "WARNING"), ("Ascend310P3", "WARNING"), ("Ascend999", "WARNING")],
)
def test_a_start_warns_unless_the_chip_is_vouched_for(name: str, level: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_chip(describe_chip(name), 7)
    [record] = caplog.records
    assert record.levelname == level
    assert record.getMessage() == f"endpoint 7 runs on {describe_chip(name)}"


def test_a_machine_without_cann_has_no_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acl", None)
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    assert device_chip_name() is None


def test_cann_is_asked_first_and_torch_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "acl", SimpleNamespace(get_soc_name=lambda: "Ascend910_9391"))
    assert device_chip_name() == "Ascend910_9391"
    npu = SimpleNamespace(get_device_name=lambda index: f"Ascend910B{index}")
    monkeypatch.setitem(sys.modules, "acl", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu=npu))
    assert device_chip_name() == "Ascend910B0"
