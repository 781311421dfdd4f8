"""A picture of one run: when each layer was computed, when its blocks moved, and when the first token came."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray_kvfabric.demo.overlap import Span
from ray_kvfabric.demo.run import Outcome
from ray_kvfabric.demo.summary import Summary
from ray_kvfabric.errors import ConfigError

_COMPUTE, _REST, _LANDED, _DECODE = "#8fb3d9", "#dce6f1", "#d1495b", "#7fb685"
_BAR = 0.62


def require_matplotlib() -> None:
    """Raises ConfigError that names the extra."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'ray-kvfabric[plot]'")


def draw(outcome: Outcome, summary: Summary, path: Path) -> None:
    """Writes the picture in the format of the file's suffix. Raises ConfigError when it cannot."""
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = len(outcome.prefill.layers)
    figure = Figure(figsize=(11, 1.8 + 0.55 * layers), layout="constrained")
    axes = figure.subplots()
    _draw_layers(axes, outcome)
    _draw_ends(axes, outcome, layers)
    _label(axes, layers, summary)
    try:
        figure.savefig(path, dpi=140)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from error


def _draw_layers(axes: Any, outcome: Outcome) -> None:
    origin = outcome.prefill.span.begin_ns
    for row, (span, receipt) in enumerate(zip(outcome.prefill.layers, outcome.prefill.receipts, strict=True)):
        first = row == 0
        _bar(axes, row, span, origin, _COMPUTE, "K and V computed" if first else None)
        moved = Span(receipt.started_ns, receipt.landed_ns)
        _bar(axes, row, moved, origin, _LANDED, None)
        landed = _ms(receipt.landed_ns, origin)
        axes.plot(landed, row, "v", color=_LANDED, markersize=9, label="pushed and landed" if first else None)
        axes.annotate(
            f"{receipt.nbytes / 2**10:,.0f} KiB in {receipt.seconds * 1e3:.2f} ms",
            (landed, row), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip


def _draw_ends(axes: Any, outcome: Outcome, layers: int) -> None:
    """After the last K and V: what is left of the prefill, and the decode worker's text."""
    origin = outcome.prefill.span.begin_ns
    rest = Span(outcome.prefill.computed_ns[-1], outcome.prefill.span.end_ns)
    _bar(axes, layers, rest, origin, _REST, "rest of the last layer")
    text = Span(outcome.received[-1].seen_ns, outcome.written[-1].written_ns)
    _bar(axes, layers + 1, text, origin, _DECODE, "decode")
    first = _ms(outcome.written[0].written_ns, origin)
    axes.plot([first, first], [layers + 0.6, layers + 1.4], color="black", linewidth=1.5)
    axes.annotate("first token", (first, layers + 1), xytext=(5, 0), textcoords="offset points", va="center")


def _bar(axes: Any, row: int, span: Span, origin: int, color: str, label: str | None) -> None:
    axes.barh(row, span.seconds * 1e3, _BAR, _ms(span.begin_ns, origin), color=color, label=label)


def _ms(at_ns: int, origin: int) -> float:
    return (at_ns - origin) / 1e6


def _label(axes: Any, layers: int, summary: Summary) -> None:
    names = [f"layer {index}" for index in range(layers)]
    axes.set_yticks(range(layers + 2), [*names, "prefill ends", "decode worker"])
    axes.invert_yaxis()
    axes.set_xlabel("ms since the prefill began")
    axes.set_title(
        f"{summary.blocks_pushed} blocks, {summary.bytes_pushed / 2**20:.2f} MiB by {summary.transport}: "
        f"{summary.hidden_fraction:.0%} hidden behind the computing of later layers\n"
        f"from {summary.prefill_memory} to {summary.decode_memory}",
        loc="left", fontsize=11,
    )  # fmt: skip
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
