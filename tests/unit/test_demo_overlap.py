"""The hidden share on hand-made times: layers that end at 100, 200, 300 and 400, the prefill at 450."""

from __future__ import annotations

import pytest

from ray_kvfabric.demo.overlap import Span, hidden_fraction, layer_spans, moving_seconds
from ray_kvfabric.route import Receipt

LAYERS = layer_spans(0, [100, 200, 300, 400])


def receipt(layer: int, started_ns: int, landed_ns: int, nbytes: int = 10, num_layers: int = 1) -> Receipt:
    return Receipt("0" * 32, 1, 2, 0, layer, num_layers, 1, nbytes, "shared_memory", started_ns, landed_ns)


def test_layers_are_computed_one_after_the_other() -> None:
    assert layer_spans(0, [100, 200, 300, 400]) == [Span(0, 100), Span(100, 200), Span(200, 300), Span(300, 400)]
    assert LAYERS[1].seconds == 100e-9


@pytest.mark.parametrize(
    ("layer", "landed_ns", "hidden"),
    [
        (0, 99, 0),  # while its own layer was computed
        (0, 100, 1),
        (0, 399, 1),  # late, but layer 3 was still being computed
        (0, 400, 0),  # no layer was
        (2, 299, 0),
        (2, 300, 1),
        (3, 401, 0),  # nothing comes after the last layer
        (3, 350, 0),
    ],
)
def test_only_the_computing_of_a_later_layer_hides(layer: int, landed_ns: int, hidden: int) -> None:
    assert hidden_fraction(LAYERS, [receipt(layer, landed_ns - 5, landed_ns)]) == hidden


def test_the_share_counts_bytes_and_not_transfers() -> None:
    receipts = [receipt(0, 100, 110, nbytes=10), receipt(3, 400, 410, nbytes=30)]
    assert hidden_fraction(LAYERS, receipts) == 0.25


def test_a_push_of_two_layers_hides_behind_the_third() -> None:
    assert hidden_fraction(LAYERS, [receipt(0, 100, 150, num_layers=2)]) == 0
    assert hidden_fraction(LAYERS, [receipt(0, 200, 250, num_layers=2)]) == 1


def test_four_layers_at_once_hide_three_quarters_at_most() -> None:
    at_once = [receipt(layer, span.end_ns, span.end_ns + 1) for layer, span in enumerate(LAYERS)]
    assert hidden_fraction(LAYERS, at_once) == 0.75
    assert hidden_fraction(LAYERS, []) == 0


def test_time_in_which_two_move_counts_once() -> None:
    apart = [receipt(0, 100, 110), receipt(1, 200, 230)]
    nested = [receipt(0, 100, 200), receipt(1, 120, 150), receipt(2, 190, 250)]
    assert moving_seconds(apart) == pytest.approx(40e-9)
    assert moving_seconds(nested) == pytest.approx(150e-9)
    assert moving_seconds(list(reversed(nested))) == pytest.approx(150e-9)
