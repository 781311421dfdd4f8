"""A picture of one request's prefill: when each layer was computed, and when its KV left and landed.

It is drawn from the lines that a producer's Timeline wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ray_kvfabric.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Event = Mapping[str, Any]

_COMPUTED, _PUSHED, _END, _BAR = "#4878a8", "#d1495b", "#555555", 0.62


class Prefill(NamedTuple):
    """`computed` and `pushed` are events, in the order in which they were written; neither is empty."""

    computed: list[Event]
    pushed: list[Event]

    @property
    def end_ns(self) -> int:
        """When its last layer was computed."""
        return max(int(each["at_ns"]) for each in self.computed)

    @property
    def layers(self) -> list[str]:
        """Names, in the order in which the engine computes them; those that no hook names come last."""
        pushed = (layer for each in self.pushed for layer in each["layers"])
        return list(dict.fromkeys((*(each["layer"] for each in self.computed), *pushed)))

    @property
    def nbytes(self) -> int:
        return sum(int(each["nbytes"]) for each in self.pushed)

    @property
    def hidden_share(self) -> float:
        hidden = sum(int(each["nbytes"]) for each in self.pushed if each["landed_ns"] <= self.end_ns)
        return hidden / self.nbytes


def prefill_of(events: Iterable[Event], transfer_id: str) -> Prefill:
    """One request's events. Raises LookupError where the timeline has none of it."""
    events = list(events)
    pushed = [each for each in events if each["event"] == "pushed" and each["transfer_id"] == transfer_id]
    computed = [each for each in events if each["event"] == "computed" and transfer_id in each["transfer_ids"]]
    if not pushed:
        raise LookupError(f"the timeline has no push of transfer {transfer_id}")
    if not computed:
        raise LookupError(f"the timeline has no layer that was computed for transfer {transfer_id}")
    return Prefill(computed, pushed)


def hidden_share(events: Iterable[Event], transfer_id: str) -> float:
    """The share of bytes that had landed before the prefill's last layer was computed. Raises LookupError."""
    return prefill_of(events, transfer_id).hidden_share


def read_events(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw_prefill(path: Path, transfer_id: str) -> Figure:
    """The picture, from one timeline file. Raises ConfigError without matplotlib, LookupError without the transfer."""
    if find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib: pip install 'ray-kvfabric[plot]'")
    from matplotlib.figure import Figure

    prefill = prefill_of(read_events(path), transfer_id)
    figure = Figure(figsize=(10, 1.8 + 0.5 * len(prefill.layers)), layout="constrained")
    axes = figure.subplots()
    _draw_pushes(axes, prefill)
    _draw_computed(axes, prefill)
    _label(axes, prefill)
    return figure


def _draw_pushes(axes: Any, prefill: Prefill) -> None:
    """A bar a push, over the layers that it brought; beside it, what it moved."""
    for number, push in enumerate(prefill.pushed):
        rows = [prefill.layers.index(layer) for layer in push["layers"]]
        begin, width = _ms(push["started_ns"], prefill), (push["landed_ns"] - push["started_ns"]) / 1e6
        middle, height = (min(rows) + max(rows)) / 2, max(rows) - min(rows) + _BAR
        label = "pushed, until it had landed" if number == 0 else None
        axes.barh(middle, width, height, begin, color=_PUSHED, edgecolor=_PUSHED, linewidth=1.5, label=label)
        axes.annotate(
            f"{push['nbytes'] / 2**10:,.0f} KiB",
            (begin + width, middle), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def _draw_computed(axes: Any, prefill: Prefill) -> None:
    rows = [prefill.layers.index(each["layer"]) for each in prefill.computed]
    times = [_ms(each["at_ns"], prefill) for each in prefill.computed]
    axes.scatter(times, rows, marker="|", s=260, linewidths=2, color=_COMPUTED, label="KV of a chunk computed")
    axes.axvline(_ms(prefill.end_ns, prefill), color=_END, linestyle="--", label="last layer computed")


def _label(axes: Any, prefill: Prefill) -> None:
    axes.set_yticks(range(len(prefill.layers)), [f"layer {index}" for index in range(len(prefill.layers))])
    axes.set_ylim(len(prefill.layers) - 0.4, -0.6)
    axes.margins(x=0.07)
    axes.set_xlabel("ms since the first layer was computed")
    axes.set_title(
        f"{prefill.hidden_share:.1%} of {prefill.nbytes / 2**20:.2f} MiB in {len(prefill.pushed)} pushes had landed "
        "before the last layer was computed",
        loc="left", fontsize=11,
    )  # fmt: skip
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)


def _ms(at_ns: int, prefill: Prefill) -> float:
    return (at_ns - int(prefill.computed[0]["at_ns"])) / 1e6
