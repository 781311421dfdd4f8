"""The hidden share on hand-made timelines: two layers, computed at 100 and 200, in a second chunk at 300 and 400."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_kvfabric.integrations.vllm.picture import draw_prefill, hidden_share, prefill_of, read_events

Event = dict[str, Any]


def computed(layer: int, at_ns: int, *names: str) -> Event:
    return {"event": "computed", "layer": f"layers.{layer}", "transfer_ids": list(names or "a"), "at_ns": at_ns}


def pushed(first: int, started_ns: int, landed_ns: int, *, nbytes: int = 10, stop: int = 0, name: str = "a") -> Event:
    layers = [f"layers.{layer}" for layer in range(first, stop or first + 1)]
    times = {"started_ns": started_ns, "landed_ns": landed_ns}
    return {"event": "pushed", "transfer_id": name, "layers": layers, "nbytes": nbytes, **times}


CHUNKS = [computed(0, 100), computed(1, 200), computed(0, 300), computed(1, 400)]
LAST = pushed(1, 401, 410)


def test_bytes_count_that_had_landed_when_the_last_layer_was_computed() -> None:
    early = [pushed(0, 101, 110), pushed(1, 201, 210), pushed(0, 301, 310)]
    assert hidden_share([*CHUNKS, *early, LAST], "a") == 0.75
    assert hidden_share([*CHUNKS, *early, pushed(1, 401, 410, nbytes=70)], "a") == 0.3


@pytest.mark.parametrize(("landed_ns", "share"), [(399, 0.5), (400, 0.5), (401, 0)])
def test_a_push_that_was_still_moving_then_does_not_count(landed_ns: int, share: float) -> None:
    assert hidden_share([*CHUNKS, pushed(0, 301, landed_ns), LAST], "a") == share


def test_what_was_parked_until_the_grant_came_is_the_requests_too() -> None:
    late = [pushed(0, 350, 360, stop=2, nbytes=20), pushed(0, 361, 365), LAST]
    prefill = prefill_of([*CHUNKS, *late], "a")
    assert prefill.computed == CHUNKS
    assert prefill.layers == ["layers.0", "layers.1"]
    assert prefill.hidden_share == 0.75


def test_requests_of_the_same_steps_have_each_their_own_share() -> None:
    chunks = [computed(0, 100, "a", "b"), computed(1, 200, "a", "b"), computed(0, 300, "b"), computed(1, 400, "b")]
    events = [
        *chunks,
        pushed(0, 101, 110),
        pushed(1, 201, 210),
        pushed(0, 101, 350, name="b"),
        pushed(1, 401, 410, name="b"),
    ]
    assert hidden_share(events, "a") == hidden_share(events, "b") == 0.5
    assert prefill_of(events, "a").computed == chunks[:2]
    assert prefill_of(events, "b").computed == chunks


def test_what_the_timeline_does_not_have_is_said() -> None:
    with pytest.raises(LookupError, match="no push of transfer b"):
        hidden_share([*CHUNKS, LAST], "b")
    with pytest.raises(LookupError, match="no layer that was computed for transfer a"):
        hidden_share([LAST], "a")


def test_the_picture_has_a_row_a_layer_and_a_bar_a_push(tmp_path: Path) -> None:
    path = tmp_path / "prefill-0.jsonl"
    events = [*CHUNKS, pushed(0, 250, 260, stop=2, nbytes=2048), pushed(0, 301, 310), LAST]
    path.write_text("".join(json.dumps(each) + "\n" for each in events))
    assert read_events(path) == events
    (axes,) = draw_prefill(path, "a").axes
    assert [each.get_text() for each in axes.get_yticklabels()] == ["layer 0", "layer 1"]
    assert len(axes.patches) == 3
    assert "2 KiB" in [each.get_text() for each in axes.texts]
    assert axes.get_title(loc="left").startswith("99.5% of 0.00 MiB in 3 pushes had landed")
