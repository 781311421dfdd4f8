"""What a device is asked to copy: the contiguous pieces of a plan, and the windows that fit a staging buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy import available, load
from ray_kvfabric.memory.staging import joined, packed, windows

BLOCKS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@pytest.fixture(params=available())
def copier(request: pytest.FixtureRequest) -> Any:
    return load(request.param)


def listed(copier: Any, source: Any, target: Any, sources: list[int], targets: list[int]) -> list[list[int]]:
    lists = copier.BlockList(sources, "src_blocks"), copier.BlockList(targets, "dst_blocks")
    found = copier.pieces(copier.RegionTable(source), copier.RegionTable(target), 0, 0, len(source), *lists)
    assert found.dtype == np.uint64
    assert found.flags.c_contiguous
    rows: list[list[int]] = found.tolist()
    return rows


def test_neighbours_that_rise_on_both_sides_are_one_piece_and_regions_are_not_joined(copier: Any) -> None:
    source, target = [(1000, 9, 10, 10), (1090, 9, 10, 10)], [(5000, 9, 10, 10), (7000, 9, 10, 10)]
    assert listed(copier, source, target, [2, 3, 4, 8], [5, 6, 7, 0]) == [
        [1020, 5050, 30], [1080, 5000, 10], [1110, 7050, 30], [1170, 7000, 10],
    ]  # fmt: skip


def test_blocks_with_gaps_between_them_are_pieces_of_their_own(copier: Any) -> None:
    assert listed(copier, [(100, 4, 8, 16)], [(900, 4, 8, 8)], [0, 1], [2, 3]) == [[100, 916, 8], [116, 924, 8]]


def test_no_blocks_are_no_pieces(copier: Any) -> None:
    assert listed(copier, [(100, 4, 8, 8)], [(900, 4, 8, 8)], [], []) == []


def test_pairs_that_share_memory_stay_apart_so_that_in_order_they_carry_a_chain_on(copier: Any) -> None:
    table = [(100, 4, 8, 8)]
    assert listed(copier, table, table, [0, 1], [1, 2]) == [[100, 108, 8], [108, 116, 8]]


def test_what_the_copy_refuses_is_refused_here(copier: Any) -> None:
    with pytest.raises(ParamInvalid, match="dst_blocks"):
        listed(copier, [(100, 4, 8, 8)], [(900, 4, 8, 8)], [0], [4])


@given(sources=BLOCKS, targets=BLOCKS, strides=st.tuples(st.integers(8, 10), st.integers(8, 10)))
def test_pieces_are_the_pairs_of_blocks_in_order(sources: list[int], targets: list[int], strides: Any) -> None:
    count = min(len(sources), len(targets))
    sources, targets = sources[:count], targets[:count]
    tables = [(1000, 10, 8, strides[0])] * 2, [(9000, 10, 8, strides[1]), (9500, 10, 8, strides[1])]
    found = [listed(load(name), *tables, sources, targets) for name in available()]
    assert all(each == found[0] for each in found)
    split = [[source + at, target + at] for source, target, nbytes in found[0] for at in range(nbytes)]
    expected = [
        [here[0] + i * here[3] + at, there[0] + j * there[3] + at]
        for here, there in zip(*tables, strict=True)
        for i, j in zip(sources, targets, strict=True)
        for at in range(8)
    ]
    assert split == expected


PIECES = st.lists(st.integers(1, 70), max_size=12).map(
    lambda sizes: np.array([[10_000 * i, 10_000 * i + 5_000, size] for i, size in enumerate(sizes, 1)], np.uint64)
)


@given(pieces=PIECES.filter(len), limit=st.integers(1, 90))
def test_windows_hold_all_bytes_in_order_and_no_more_than_the_buffer(pieces: Any, limit: int) -> None:
    cut = list(windows(pieces, limit))
    sizes = [int(window[:, 2].sum()) for window in cut]
    assert all(size == limit for size in sizes[:-1])
    assert 0 < sizes[-1] <= limit

    def flat(rows: Any) -> list[tuple[int, int]]:
        return [(int(source) + at, int(target) + at) for source, target, nbytes in rows for at in range(int(nbytes))]

    assert [pair for window in cut for pair in flat(window)] == flat(pieces)


@given(pieces=PIECES.filter(len))
def test_packed_pieces_lie_side_by_side_in_the_buffer(pieces: Any) -> None:
    places = packed(pieces, 1 << 40)
    assert (places[:, 2] == pieces[:, 2]).all()
    begins, sizes = places[:, 0].astype(int), places[:, 2].astype(int)
    assert begins[0] == 1 << 40
    assert (begins[1:] == (begins + sizes)[:-1]).all()
    out = joined(pieces, places)
    assert (out[:, 0] == pieces[:, 0]).all()
    assert (out[:, 1] == places[:, 1]).all()
