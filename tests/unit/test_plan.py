"""The plan against arithmetic in numpy that shares no code with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.plan import merge_runs, request_layers, span_layers

BLOCKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


@given(BLOCKS)
def test_runs_say_the_pairs_again_in_order_and_none_could_be_longer(pairs: list[tuple[int, int]]) -> None:
    runs = merge_runs([source for source, _ in pairs], [target for _, target in pairs])
    assert [(run[0] + step, run[1] + step) for run in runs for step in range(run[2])] == pairs
    steps = np.diff(np.array(pairs).reshape(-1, 2), axis=0)
    assert len(runs) == (len(pairs) and 1 + int((steps != 1).any(axis=1).sum()))


@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 6), st.integers(0, 6), st.integers(1, 6)
)
def test_a_span_pairs_the_tensors_of_the_layers_or_is_refused(
    per_layer: int, source_tensors: int, target_tensors: int, source_start: int, target_start: int, layers: int
) -> None:
    ranges = range(source_start, source_start + layers), range(target_start, target_start + layers)
    fits = source_tensors % per_layer == 0 and all(
        each.stop * per_layer <= tensors for tensors, each in zip((source_tensors, target_tensors), ranges, strict=True)
    )
    if not fits:
        with pytest.raises(ParamInvalid):
            span_layers(request_layers(*ranges, per_layer, source_tensors), source_tensors, target_tensors)
        return
    span = span_layers(request_layers(*ranges, per_layer, source_tensors), source_tensors, target_tensors)
    paired = [(span.source_first + step, span.target_first + step) for step in range(span.num_regions)]
    source, target = (
        np.arange(tensors - tensors % per_layer).reshape(-1, per_layer) for tensors in (source_tensors, target_tensors)
    )
    expected = zip(source[list(ranges[0])].ravel(), target[list(ranges[1])].ravel(), strict=True)
    assert paired == [(int(left), int(right)) for left, right in expected]
    assert (span.first_layer, span.num_layers) == (target_start, layers)


@given(st.integers(1, 40), st.integers(1, 40))
def test_without_ranges_every_tensor_moves_or_the_counts_differ(source_tensors: int, target_tensors: int) -> None:
    request = request_layers(None, None, 2, source_tensors)
    if source_tensors == target_tensors:
        assert span_layers(request, source_tensors, target_tensors)[:3] == (0, 0, source_tensors)
    else:
        with pytest.raises(ParamInvalid, match="num_tensors differ"):
            span_layers(request, source_tensors, target_tensors)
