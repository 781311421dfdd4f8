"""What a Timeline recorded of one transfer: how much of it had left before the prefill ended, and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Event = dict[str, Any]

_COMPUTED, _PUSHED, _END = "#8fb3d9", "#d1495b", "#444444"


def read_events(path: Path) -> list[Event]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_transfer(events: Sequence[Event], transfer_id: str) -> tuple[list[Event], list[Event]]:
    """The layers that were computed while it moved, and its pushes. Raises LookupError for an unknown transfer."""
    pushes = [each for each in events if each["event"] == "pushed" and each["transfer_id"] == transfer_id]
    if not pushes:
        raise LookupError(f"the timeline has no push of transfer {transfer_id}")
    last_ns = max(each["landed_ns"] for each in pushes)
    computed = [each for each in events if each["event"] == "computed" and each["at_ns"] <= last_ns]
    layers = len({each["layer"] for each in computed})
    steps = {each["step"] for each in computed if each["at_ns"] >= _begin_ns(pushes, computed, layers)}
    return [each for each in computed if each["step"] in steps], pushes


def _begin_ns(pushes: Sequence[Event], computed: Sequence[Event], layers: int) -> int:
    """When the first layer was computed of which something was pushed."""
    first = min(int(each["started_ns"]) for each in pushes)
    before = [int(each["at_ns"]) for each in computed if each["at_ns"] <= first]
    return max(before) if before else first


def ended_ns(computed: Sequence[Event]) -> int:
    """When the KV of the last layer of the last chunk was in the cache."""
    return max(int(each["at_ns"]) for each in computed)


def hidden_share(events: Sequence[Event], transfer_id: str) -> float:
    """Of all pushed bytes those that had landed before the last layer of the last chunk was computed."""
    computed, pushes = of_transfer(events, transfer_id)
    end = ended_ns(computed)
    total = sum(int(each["nbytes"]) for each in pushes)
    return sum(int(each["nbytes"]) for each in pushes if each["landed_ns"] <= end) / total


def draw(events: Sequence[Event], transfer_id: str) -> Figure:
    """A row a layer: when each chunk of it was computed, and its pushes. Needs matplotlib."""
    from matplotlib.figure import Figure

    computed, pushes = of_transfer(events, transfer_id)
    layers = list(dict.fromkeys(each["layer"] for each in computed))
    origin = min(each["at_ns"] for each in computed)
    figure = Figure(figsize=(11, 1.6 + 0.55 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for row, layer in enumerate(layers):
        marks = [_ms(each["at_ns"], origin) for each in computed if each["layer"] == layer]
        axes.plot(marks, [row] * len(marks), "|", color=_COMPUTED, markersize=22, markeredgewidth=2)
    for each in pushes:
        rows = range(each["first_layer"], each["stop_layer"])
        width = max(_ms(each["landed_ns"], each["started_ns"]), 0.15)  # else it would not be seen
        axes.barh(list(rows), [width] * len(rows), 0.42, _ms(each["started_ns"], origin), color=_PUSHED)
    axes.axvline(_ms(ended_ns(computed), origin), color=_END, linewidth=1, linestyle="--")
    _label(axes, layers, pushes, hidden_share(events, transfer_id))
    return figure


def _label(axes: Any, layers: Sequence[str], pushes: Sequence[Event], share: float) -> None:
    nbytes = sum(each["nbytes"] for each in pushes)
    axes.set_yticks(range(len(layers)), [f"layer {index}" for index in range(len(layers))])
    axes.invert_yaxis()
    axes.set_xlabel("ms since the first layer of the first chunk was computed")
    axes.set_title(
        f"{nbytes / 2**20:.2f} MiB in {len(pushes)} pushes: {share:.1%} had landed before the last layer was computed\n"
        "blue: a layer of a chunk is computed; red: its push; dashed: the last layer of the last chunk",
        loc="left",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)


def _ms(at_ns: int, origin: int) -> float:
    return (at_ns - origin) / 1e6
