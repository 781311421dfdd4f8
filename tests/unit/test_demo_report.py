"""Numbers, table, text and picture of a hand-made run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from ray_kvfabric.cli.demo import demo
from ray_kvfabric.demo.overlap import Span
from ray_kvfabric.demo.report import Screen, table, verdict
from ray_kvfabric.demo.request import AloneRun, LayerReceived, ModelChoice, PrefillRun, Request, TokenWritten
from ray_kvfabric.demo.run import Outcome
from ray_kvfabric.demo.summary import summarize
from ray_kvfabric.demo.timeline import draw, require_matplotlib
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.route import Receipt

MS = 10**6
TOKENS = (70, 71, 72)


def outcome_of(tokens: tuple[int, ...] = TOKENS) -> Outcome:
    """Two layers, computed until 10 and 20 ms; 4,000,000 bytes each, moving for 2 ms each."""
    receipts = tuple(
        Receipt("0" * 32, 1, 2, 0, layer, 1, 4, 4 * 10**6, "shared_memory", start * MS, (start + 2) * MS)
        for layer, start in enumerate((11, 21))
    )
    return Outcome(
        Request(tokens=tuple(range(60)), max_new_tokens=len(tokens)),
        ("NPU 0 (Ascend910B3)", "NPU 1 (Ascend910B3)"),
        PrefillRun(Span(0, 25 * MS), (10 * MS, 20 * MS), receipts),
        (LayerReceived(0, 14 * MS), LayerReceived(1, 24 * MS)),
        tuple(TokenWritten(token, (26 + 2 * index) * MS) for index, token in enumerate(tokens)),
        AloneRun(TOKENS, Span(0, 40 * MS)),
    )


def shown(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return console.file.getvalue()


def test_summary_counts_what_the_run_did() -> None:
    summary = summarize(outcome_of(), "text")
    assert (summary.tokens_match, summary.first_difference) == (True, None)
    assert (summary.blocks_pushed, summary.bytes_pushed, summary.layers) == (4, 8 * 10**6, 2)
    assert (summary.transport, summary.gbps, summary.moving_ms) == ("shared_memory", 2.0, 4.0)
    assert (summary.prefill_memory, summary.decode_memory) == ("NPU 0 (Ascend910B3)", "NPU 1 (Ascend910B3)")
    assert (summary.hidden_fraction, summary.hidden_limit) == (0.5, 0.5)
    assert (summary.prefill_ms, summary.decode_ms, summary.single_process_ms) == (25, 6, 40)


def test_another_token_is_a_mismatch_at_its_position() -> None:
    summary = summarize(outcome_of((70, 99, 72)), "")
    assert (summary.tokens_match, summary.first_difference) == (False, 1)
    assert "differs from the single process at new token 1" in shown(verdict(summary))


def test_table_shows_the_numbers() -> None:
    text = shown(table(summarize(outcome_of(), "")))
    for part in (
        "4, each of 2 layers",
        "8,000,000",
        "shared_memory",
        "NPU 1 (Ascend910B3)",
        "2.00 GB/s",
        "50% (at most 50%)",
    ):
        assert part in text


def test_screen_streams_the_text_and_keeps_it() -> None:
    text = ModelChoice.shipped().text()
    tokens = text.encode("the name [of] the file")
    console = Console(file=io.StringIO(), width=40)
    screen = Screen(console, text, "A prompt.")
    for token in tokens:
        screen.written(TokenWritten(token, 0))
    with screen.step("comparing"):
        pass
    assert screen.text == "the name [of] the file"
    assert "A prompt.the name [of] the file" in console.file.getvalue()
    assert "comparing" in console.file.getvalue()


def test_picture_is_written(tmp_path: Path) -> None:
    outcome = outcome_of()
    draw(outcome, summarize(outcome, ""), tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    outcome = outcome_of()
    with pytest.raises(ConfigError, match=r"timeline\.bogus"):
        draw(outcome, summarize(outcome, ""), tmp_path / "timeline.bogus")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_kvfabric.demo.timeline.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ray-kvfabric\[plot\]"):
        require_matplotlib()


def test_stdout_is_the_json_alone_whatever_ray_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy_run(*arguments: object) -> Outcome:
        print("a complaint")
        return outcome_of()

    monkeypatch.setattr("ray_kvfabric.cli.demo.run", noisy_run)
    result = CliRunner().invoke(demo, ["--json", "a prompt"])
    assert json.loads(result.stdout)["tokens_match"] is True
    assert "a complaint" in result.stderr
    assert "All 3 tokens equal" in result.stderr


def test_gbps_of_overlapping_pushes_counts_time_once() -> None:
    outcome = outcome_of()
    both = tuple(receipt._replace(started_ns=11 * MS, landed_ns=13 * MS) for receipt in outcome.prefill.receipts)
    summary = summarize(replace(outcome, prefill=outcome.prefill._replace(receipts=both)), "")
    assert summary.gbps == 4.0
