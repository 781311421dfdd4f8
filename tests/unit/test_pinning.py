"""Which device a pinned actor uses, whether or not Ray has narrowed what its process sees."""

from __future__ import annotations

import pytest

from ray_kvfabric.actors.pinning import local_index
from ray_kvfabric.config import visible_devices


@pytest.mark.parametrize(
    ("assigned", "visible", "index"),
    [
        ("3", ["3"], 0),  # Ray narrowed it: the one device that is seen
        ("3", ["1", "3"], 1),
        ("3", ["0", "1", "2", "3"], 3),  # Ray was told not to: all of the host's
        ("3", None, 3),
        ("GPU-5a", ["GPU-1b", "GPU-5a"], 1),
        ("GPU-5a", None, None),  # by name alone, its place is not known: torch's current device
    ],
)
def test_the_assigned_device_is_counted_among_those_that_are_seen(
    assigned: str, visible: list[str] | None, index: int | None
) -> None:
    assert local_index(assigned, visible) == index


def test_an_unset_variable_is_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    assert visible_devices("ASCEND_RT_VISIBLE_DEVICES") is None
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", " 2, 4")
    assert visible_devices("ASCEND_RT_VISIBLE_DEVICES") == ["2", "4"]
