"""The copy kernel for GPUs, its table and its queue, on a host without any: the kernel's text runs as C++."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_kvfabric.errors import FeatureNotEnabled, LLMException, LLMStatusCode
from ray_kvfabric.memory import cuda, cuda_driver
from ray_kvfabric.memory.cuda_kernel import TILE_NBYTES, WORDS_A_PIECE, independent, moving, write_table
from ray_kvfabric.memory.device import Direction, Pieces
from tests.gpu.host_driver import HostDriver
from tests.gpu.host_kernel import COMPILER, HostKernel

SIZES = st.one_of(
    st.integers(0, 80),
    st.integers(-17, 17).map(lambda rest: TILE_NBYTES + rest),
    st.integers(1, 5).map(lambda tiles: tiles * TILE_NBYTES),
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> HostKernel:
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    return HostKernel(tmp_path_factory.mktemp("kernel"))


@dataclass
class Arena:
    """Random bytes to copy from, and a target with guard bytes all around the pieces."""

    source: NDArray[np.uint8]
    target: NDArray[np.uint8]

    def pieces(self, *offsets: tuple[int, int, int]) -> Pieces:
        """Of source offsets, target offsets and bytes."""
        listed = np.array(offsets, np.uint64).reshape(-1, 3)
        return listed + np.array([self.source.ctypes.data, self.target.ctypes.data, 0], np.uint64)

    def expected(self, *offsets: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The target after the pieces in their order."""
        model = self.target.copy()
        for source, target, nbytes in offsets:
            model[target : target + nbytes] = self.source[source : source + nbytes]
        return model


def arena(source_nbytes: int, target_nbytes: int) -> Arena:
    """Both begin at a multiple of 64, so that offsets are alignments."""
    random = np.random.default_rng(source_nbytes)
    source, target = (_aligned(nbytes) for nbytes in (source_nbytes, target_nbytes))
    source[:] = random.integers(0, 256, source_nbytes, np.uint8)
    target[:] = 0xEE
    return Arena(source, target)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    raw: NDArray[np.uint8] = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    aligned: NDArray[np.uint8] = raw[start : start + nbytes]
    return aligned


# ---- the table ---------------------------------------------------------------------------------------


@given(st.lists(SIZES, min_size=1, max_size=30))
def test_each_tile_is_found_to_lie_in_its_piece(sizes: list[int]) -> None:
    pieces = np.array([(1000 * index, 7, nbytes) for index, nbytes in enumerate(sizes)], np.uint64)
    table = np.empty(WORDS_A_PIECE * len(sizes), np.uint64)
    num_tiles = write_table(pieces, table)
    owners = [index for index, nbytes in enumerate(sizes) for _ in range(0, nbytes, TILE_NBYTES)]
    assert num_tiles == len(owners)
    np.testing.assert_array_equal(table[: pieces.size].reshape(-1, 3), pieces)
    found = np.searchsorted(table[pieces.size :], np.arange(num_tiles), side="right")
    np.testing.assert_array_equal(found, owners)


# ---- which pieces may run at once --------------------------------------------------------------------

PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 12)), min_size=1, max_size=6)


def _may_run_at_once(pieces: list[tuple[int, int, int]]) -> bool:
    written = [set(range(target, target + nbytes)) for _, target, nbytes in pieces]
    read = [set(range(source, source + nbytes)) for source, _, nbytes in pieces]
    apart = all(not written[one] & written[other] for one in range(len(pieces)) for other in range(one))
    return apart and not set().union(*written) & set().union(*read)


@settings(max_examples=500)
@example([(10, 0, 10), (35, 40, 5)], 0)  # sources that touch targets, before and behind
@given(PIECES, st.sampled_from([0, 40, 61, 1000]))
def test_pieces_that_depend_on_each_other_are_told_apart(pieces: list[tuple[int, int, int]], distance: int) -> None:
    listed = [(source + distance, target, nbytes) for source, target, nbytes in pieces]
    kept = [each for each in listed if each[0] != each[1] and each[2]]
    left = moving(np.array(listed, np.uint64))
    np.testing.assert_array_equal(left.reshape(-1, 3), np.array(kept, np.uint64).reshape(-1, 3))
    if kept:
        assert independent(left) == _may_run_at_once(kept)


# ---- the kernel's arithmetic -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(0, 33), st.integers(0, 33)), min_size=1, max_size=12), st.randoms())
def test_pieces_of_all_sizes_and_alignments_land_and_nothing_else(
    kernel: HostKernel, drawn: list[tuple[int, int, int]], random: st.DataObject
) -> None:
    offsets, source, target = [], 0, 0
    for nbytes, source_gap, target_gap in drawn:
        source, target = source + source_gap, target + target_gap
        offsets.append((source, target, nbytes))
        source, target = source + nbytes, target + nbytes
    random.shuffle(offsets)  # type: ignore[attr-defined]
    room = arena(source + 1, target + 64)
    expected = room.expected(*offsets)
    assert kernel.copy(room.pieces(*offsets)).misaligned == 0
    np.testing.assert_array_equal(room.target, expected)


@pytest.mark.parametrize(
    ("source", "target", "width"),
    [(0, 0, 16), (16, 48, 16), (8, 0, 8), (0, 24, 8), (4, 0, 4), (12, 20, 4), (2, 0, 1), (0, 1, 1), (6, 6, 1)],
)
def test_the_widest_vectors_that_both_sides_allow_are_used(
    kernel: HostKernel, source: int, target: int, width: int
) -> None:
    nbytes = 2 * TILE_NBYTES + 16
    room = arena(nbytes + 64, nbytes + 64)
    expected = room.expected((source, target, nbytes))
    assert kernel.copy(room.pieces((source, target, nbytes))) == (0, {width: nbytes // width})
    np.testing.assert_array_equal(room.target, expected)


def test_one_huge_piece(kernel: HostKernel) -> None:
    nbytes = 100 * TILE_NBYTES + 13
    room = arena(nbytes, nbytes + 64)
    expected = room.expected((0, 32, nbytes))
    kernel.copy(room.pieces((0, 32, nbytes)))
    np.testing.assert_array_equal(room.target, expected)


def test_more_pieces_than_tiles(kernel: HostKernel) -> None:
    offsets = [(index, 2 * index, 1 if index % 100 == 99 else 0) for index in range(1000)]
    room = arena(1000, 2100)
    expected = room.expected(*offsets)
    pieces = room.pieces(*offsets)
    assert write_table(pieces, np.empty(WORDS_A_PIECE * 1000, np.uint64)) == 10
    kernel.copy(pieces)
    np.testing.assert_array_equal(room.target, expected)


# ---- the queue ---------------------------------------------------------------------------------------


@pytest.fixture
def driver(kernel: HostKernel, monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    return _driver(kernel, monkeypatch)


def _driver(kernel: HostKernel, monkeypatch: pytest.MonkeyPatch, *, has_batch: bool = True) -> HostDriver:
    double = HostDriver(kernel, has_batch=has_batch)
    monkeypatch.setattr(cuda_driver, "bindings", lambda name: double)
    monkeypatch.setattr(cuda_driver, "compile_kernel", lambda capability: b"\x7fELF")
    return double


@pytest.fixture
def queue(driver: HostDriver) -> Iterator[cuda.CudaQueue]:
    queue = cuda.CudaQueue(cuda_driver.CudaDriver(0))
    yield queue
    queue.close()
    assert driver.contexts == []


def _soon() -> int:
    return time.monotonic_ns() + 10 * 10**9


def _scattered(count: int, nbytes: int = 100) -> list[tuple[int, int, int]]:
    order = np.random.default_rng(count).permutation(count)
    return [(int(block) * 128, index * 128, nbytes) for index, block in enumerate(order)]


def test_all_pieces_inside_are_one_launch(queue: cuda.CudaQueue, driver: HostDriver) -> None:
    room, offsets = arena(128 * 500, 128 * 500), _scattered(500)
    expected = room.expected(*offsets)
    queue.copy(room.pieces(*offsets), Direction.INSIDE)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(room.target, expected)
    assert driver.calls == {"launch": 1, "copy": 1}  # the copy is the table's
    assert queue.num_launches == 1


def test_copies_that_follow_each_other_leave_each_others_tables_alone(queue: cuda.CudaQueue) -> None:
    room, offsets = arena(128 * 9000, 128 * 9000), _scattered(9000)  # the last table outgrows the first buffers
    expected = room.expected(*offsets)
    for part in (offsets[:3], offsets[3:9], offsets[9:]):
        queue.copy(room.pieces(*part), Direction.INSIDE)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(room.target, expected)


@pytest.mark.parametrize("way", [Direction.TO_DEVICE, Direction.TO_HOST])
@pytest.mark.parametrize(("has_batch", "calls"), [(True, {"batch": 1}), (False, {"copy": 20})])
def test_pieces_from_and_to_the_host(
    kernel: HostKernel, monkeypatch: pytest.MonkeyPatch, way: Direction, has_batch: bool, calls: dict[str, int]
) -> None:
    driver = _driver(kernel, monkeypatch, has_batch=has_batch)
    queue = cuda.CudaQueue(cuda_driver.CudaDriver(0))
    room, offsets = arena(128 * 20, 128 * 20), _scattered(20)
    expected = room.expected(*offsets)
    queue.copy(room.pieces(*offsets), way)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(room.target, expected)
    assert driver.calls == calls
    queue.close()


@pytest.mark.parametrize("way", list(Direction))
def test_of_two_writes_to_one_place_the_later_stays(queue: cuda.CudaQueue, driver: HostDriver, way: Direction) -> None:
    room, offsets = arena(1000, 1000), [(0, 10, 100), (300, 60, 100), (600, 70, 5)]
    expected = room.expected(*offsets)
    queue.copy(room.pieces(*offsets), way)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(room.target, expected)
    assert driver.calls == {"copy": 3}


def test_a_source_that_an_earlier_piece_wrote_and_a_piece_over_itself(queue: cuda.CudaQueue) -> None:
    room = arena(1000, 1000)
    offsets = [(0, 0, 100), (50, 200, 100), (205, 200, 90)]
    base = room.target.ctypes.data
    pieces = room.pieces(*offsets)
    pieces[1:, 0] = [base + 50, base + 205]
    expected = room.target.copy()
    expected[:100] = room.source[:100]
    expected[200:300] = expected[50:150].copy()
    expected[200:290] = expected[205:295].copy()
    queue.copy(pieces, Direction.INSIDE)
    assert queue.finish(_soon())
    np.testing.assert_array_equal(room.target, expected)


def test_nothing_to_move_enqueues_nothing(queue: cuda.CudaQueue, driver: HostDriver) -> None:
    base = arena(64, 64).source.ctypes.data
    queue.copy(np.array([(base, base, 64), (base, base + 1, 0)], np.uint64), Direction.INSIDE)
    assert queue.finish(_soon())
    assert not driver.calls


def test_a_late_device_is_waited_for_until_the_deadline(queue: cuda.CudaQueue, driver: HostDriver) -> None:
    driver.is_stuck = True
    room = arena(128, 128)
    queue.copy(room.pieces((0, 0, 100)), Direction.TO_DEVICE)
    start = time.monotonic_ns()
    assert not queue.finish(start + 5_000_000)
    assert time.monotonic_ns() - start >= 5_000_000
    driver.is_stuck = False
    assert queue.finish(_soon())


@pytest.mark.parametrize(("code", "status"), [(700, LLMStatusCode.LLM_DEVICE_MEM_ERROR), (1, LLMStatusCode.LLM_FAILED)])
def test_what_breaks_on_the_device_is_said_in_the_drivers_words(
    queue: cuda.CudaQueue, driver: HostDriver, code: int, status: LLMStatusCode
) -> None:
    driver.broken = code
    with pytest.raises(LLMException, match=rf"code {code}: CUDA_ERROR_\w+, words of the driver") as caught:
        queue.finish(_soon())
    assert caught.value.status_code is status


@pytest.mark.parametrize("count", [1, 3])
def test_a_refused_piece_is_named(queue: cuda.CudaQueue, count: int) -> None:
    pieces = np.array([(8192 * (1 + index), 64 * index, 16) for index in range(count)][::-1], np.uint64)
    with pytest.raises(LLMException, match=r"copying 16 bytes from 0x2000 to 0x0 \(TO_DEVICE\)"):
        queue.copy(pieces, Direction.TO_DEVICE)


# ---- packages ----------------------------------------------------------------------------------------


def test_importing_needs_nothing_of_nvidias_and_no_torch() -> None:
    program = "import sys, ray_kvfabric.memory.cuda; print([n for n in ('torch', 'cuda') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["driver", "nvrtc"])
def test_missing_bindings_are_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", None)
    with pytest.raises(FeatureNotEnabled, match="pip install cuda-bindings nvidia-cuda-nvrtc"):
        cuda_driver.bindings(name)


@pytest.mark.parametrize(("capability", "begins"), [(90, b"\x7fELF"), (91, b"//")])
def test_nvrtc_builds_the_kernel_without_a_gpu(capability: int, begins: bytes) -> None:
    """PTX for a GPU that this NVRTC does not know; the driver compiles that for it."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    image = cuda_driver.compile_kernel(capability)
    assert image.startswith(begins)
    assert b"copy_pieces" in image
