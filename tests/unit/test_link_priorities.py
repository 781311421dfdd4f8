"""Urgent and bulk pushes on one link between two processes, told from the gate's log and the kernel's byte counts.

Nothing here is timed: what is asserted is the order of events, and how many bytes moved between them.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheManager
from ray_kvfabric.bench.cases import Case
from ray_kvfabric.bench.contents import fill_source
from ray_kvfabric.bench.endpoints import Roads, Target, describe, settings
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.lane import PIECE_NBYTES
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import TransferCancelled
from ray_kvfabric.memory.memfd import HostMemory
from ray_kvfabric.route import Route
from ray_kvfabric.transport.shared_memory import SharedMemoryLink

pytestmark = pytest.mark.native

BULK, NORMAL, INTERACTIVE = Priority
LARGE = Case(name="bulk", num_tensors=64, block_nbytes=32768, blocks_per_call=256, num_blocks=256)
MEDIUM = Case(name="bulk", num_tensors=64, block_nbytes=32768, blocks_per_call=64, num_blocks=64)
LITTLE = Case(name="bulk", num_tensors=64, block_nbytes=32768, blocks_per_call=32, num_blocks=32)
SMALL = Case(name="urgent", num_tensors=4, block_nbytes=16384, blocks_per_call=1, num_blocks=64)
SOURCE_ID, TARGET_ID = 1, 2
PATIENCE_S = 60.0
MARK = np.uint64(2**64 - 1)  # no source word is this one


class Entry(NamedTuple):
    """A line of the gate's log; `begun` is what of the bulk's target was written by then, in whole blocks."""

    what: str
    turn: Turn
    now: float
    begun: int


class Segment(NamedTuple):
    """One call of the copy kernel: from byte `begin` of the plan it moved `nbytes`."""

    begin: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


class Marks:
    """The first word of each block of the target, in the memory that the link writes."""

    def __init__(self, route: Route, case: Case) -> None:
        segment = route.cache.segments[0]
        self._memory = HostMemory.open_peer(route.endpoint.pid, segment.fd, segment.inode)
        words = np.frombuffer(self._memory.view(self._memory.address, self._memory.nbytes), np.uint64)
        self._firsts = [
            words[(region.base - segment.address) // 8 :: case.block_nbytes // 8][: case.num_blocks]
            for region in route.cache.regions
        ]
        self._block_nbytes = case.block_nbytes

    def clear(self) -> None:
        for each in self._firsts:
            each[...] = MARK

    def begun(self) -> int:
        return sum(int((each != MARK).sum()) for each in self._firsts) * self._block_nbytes


class Street:
    """A source in this process, a target in another, and one link between them for bulk and for urgent pushes."""

    def __init__(self, bulk: Case, monkeypatch: pytest.MonkeyPatch, **admission: Any) -> None:
        self.bulk = bulk
        self.lock, self.entries = threading.Lock(), list[Entry]()
        self.segments: dict[Turn, list[Segment]] = defaultdict(list)
        self.target = Spawned("target", Target, TARGET_ID)
        roads = Roads()
        routes = [self.target.call("open_cache", case, number) for number, case in enumerate((bulk, SMALL))]
        for route in routes:
            roads.put(route)
        self.marks = Marks(routes[0], bulk)
        base = settings(("shared_memory",))
        chosen = base.model_copy(update={"admission": base.admission.model_copy(update=admission)})
        self.source = CacheManager(SOURCE_ID, directory=roads, settings=chosen, gate_log=self.note)
        self.before_copy: Callable[[], object] = int  # in the thread of a push whose turn has come
        self.cache, self.small = self.filled(bulk), self.filled(SMALL)
        self._count_segments(monkeypatch)

    def filled(self, case: Case) -> Cache:
        cache = self.source.allocate_blocks_cache(describe(case))
        fill_source(cache, case)
        return cache

    def note(self, what: str, turn: Turn, now: float) -> None:
        begun = self.marks.begun() if what == "told to give way" else 0
        with self.lock:
            self.entries.append(Entry(what, turn, now, begun))

    def _count_segments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write = SharedMemoryLink._write

        def counted(link: Any, source: Any, target: Any, plan: Any, order: Any, step: Any) -> tuple[int, int, int]:
            self.before_copy()
            outcome = write(link, source, target, plan, order, step)
            self.segments[order.turn].append(Segment(step.begin, outcome[1]))
            return outcome

        monkeypatch.setattr(SharedMemoryLink, "_write", counted)

    def start_bulk(self, priority: Priority = BULK) -> Transfer:
        blocks = list(range(self.bulk.num_blocks))
        return self.source.start_push(
            BlocksCacheKey(TARGET_ID, 0), self.cache, blocks, blocks, priority=priority, timeout_s=PATIENCE_S
        )

    def push_urgent(self, block: int = 0) -> None:
        key = BlocksCacheKey(TARGET_ID, 1)
        self.source.start_push(key, self.small, [block], [block], priority=INTERACTIVE, timeout_s=PATIENCE_S).wait(
            PATIENCE_S
        )

    @contextlib.contextmanager
    def somebody(self, priority: Priority) -> Iterator[None]:
        """Moves on the link all the while."""
        with self.source._gate.turn(TARGET_ID, TARGET_ID, 1, priority, Deadline.after(PATIENCE_S), None):
            yield

    def check_landed(self) -> None:
        assert self.target.call("first_wrong", 0, list(range(self.bulk.num_blocks))) is None

    def log(self) -> list[Entry]:
        """In the order of what happened; threads write it after that."""
        with self.lock:
            return sorted(self.entries, key=lambda entry: entry.now)

    def of(self, turn: Turn) -> list[str]:
        return [entry.what for entry in self.log() if entry.turn is turn]

    def turns(self, priority: Priority) -> list[Turn]:
        """In the order in which they asked."""
        return [each.turn for each in self.log() if each.what == "asked" and each.turn.priority == priority]

    def close(self) -> None:
        self.source.close()
        self.target.close()


def until(condition: Callable[[], object]) -> None:
    deadline = Deadline.after(PATIENCE_S)
    while not condition():
        assert not deadline.passed
        time.sleep(0.0002)


@pytest.fixture
def street(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Street]:
    case, admission = getattr(request, "param", (LITTLE, {}))
    street = Street(case, monkeypatch, **admission)
    yield street
    street.close()


# ---- what is asserted of every log ----------------------------------------------------------------------------------


def check_waits(street: Street) -> int:
    """No urgent one waited for more than one piece of bulk. Returns how many met bulk that moved."""
    log, met = street.log(), 0
    for urgent in street.turns(INTERACTIVE):
        mine = {entry.what: index for index, entry in enumerate(log) if entry.turn is urgent}
        meanwhile = log[mine["asked"] : mine["started"]]
        stopped = [each for each in meanwhile if each.turn.priority == BULK and each.what in ("gave way", "ended")]
        assert len(stopped) <= 1
        met += any(each.what == "told to give way" for each in log[mine["asked"] : mine["ended"]])
    return met


def check_pieces(street: Street, bulk: Turn) -> int:
    """What moved after a bulk push was told to give way, and what it moves as a piece, is at most 4 MiB of it.

    Returns how many pieces it moved behind more urgent ones.
    """
    segments, told, pieces, is_piece = iter(street.segments[bulk]), None, 0, False
    for entry in (each for each in street.log() if each.turn is bulk):
        if entry.what in ("gave way", "ended"):
            segment = next(segments)
            if told is not None:
                assert segment.end - told <= PIECE_NBYTES
            if is_piece:
                assert segment.nbytes <= PIECE_NBYTES
                pieces += 1
        is_piece = entry.what.endswith("for a piece")
        told = entry.begun if entry.what == "told to give way" else None
    ends = [0, *(segment.end for segment in street.segments[bulk])]
    assert [segment.begin for segment in street.segments[bulk]] == ends[:-1]
    assert next(segments, None) is None
    return pieces


# ---- priorities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "street",
    [(LARGE, {}), (MEDIUM, {}), (MEDIUM, {"moving_per_link": 1})],
    indirect=True,
    ids=["no room beside bulk", "room beside bulk", "one at a time"],
)
def test_an_urgent_push_waits_for_at_most_one_piece_of_bulk(street: Street) -> None:
    moments, met, rounds = random.Random(6), 0, 0
    while met < 8:
        rounds += 1
        assert rounds <= 20
        street.marks.clear()
        bulk = street.start_bulk()
        while not bulk.done():
            time.sleep(moments.uniform(0, 0.01))
            street.push_urgent(moments.randrange(SMALL.num_blocks))
        assert bulk.wait(PATIENCE_S).nbytes == street.bulk.nbytes
        street.check_landed()
        met = check_waits(street)
    for turn in street.turns(BULK):
        check_pieces(street, turn)
        assert street.segments[turn][-1].end == street.bulk.nbytes
        assert street.of(turn)[0] == "asked"
        assert street.of(turn)[-1] == "ended"
    assert street.source._gate.describe() == {}


@pytest.mark.parametrize("street", [(LITTLE, {"ageing_s": 0.002})], indirect=True)
def test_bulk_progresses_piece_by_piece_while_more_urgent_ones_never_end(street: Street) -> None:
    street.marks.clear()
    with street.somebody(INTERACTIVE):
        bulk = street.start_bulk()
        while not bulk.done():
            street.push_urgent()
    assert bulk.wait(PATIENCE_S).nbytes == street.bulk.nbytes
    street.check_landed()
    check_waits(street)
    (turn,) = street.turns(BULK)
    assert check_pieces(street, turn) >= street.bulk.nbytes // PIECE_NBYTES
    assert {"started", "went on", "told to give way"}.isdisjoint(street.of(turn))


def test_of_equal_priorities_who_asked_first_moves_first(monkeypatch: pytest.MonkeyPatch) -> None:
    street = Street(LITTLE, monkeypatch, moving_per_link=1)
    with street.somebody(BULK):
        transfers = [street.start_bulk() for _ in range(6)]
    for transfer in transfers:
        transfer.wait(PATIENCE_S)
    started = [each.turn for each in street.log() if each.what == "started"]
    assert started == street.turns(BULK)
    assert len(started) == 7
    assert all(street.of(turn) == ["asked", "started", "ended"] for turn in started)
    assert [len(street.segments[turn]) for turn in started[1:]] == [1] * 6
    street.close()


# ---- cancelling -----------------------------------------------------------------------------------------------------


def test_a_queued_bulk_push_is_cancelled_without_a_byte(street: Street) -> None:
    street.marks.clear()
    with street.somebody(INTERACTIVE):
        queued = street.start_bulk()
        assert queued.state == "planned"
        assert queued.cancel()
        assert queued.state == "cancelled"
    (turn,) = street.turns(BULK)
    assert street.of(turn) == ["asked", "ended"]
    assert street.segments[turn] == []
    assert street.marks.begun() == 0
    assert street.source._gate.describe() == {}


@pytest.mark.parametrize("street", [(LITTLE, {"ageing_s": 100.0})], indirect=True)
def test_a_paused_bulk_push_is_cancelled_and_moves_nothing_more(street: Street) -> None:
    street.marks.clear()
    with contextlib.ExitStack() as others:
        street.before_copy = lambda: others.enter_context(street.somebody(INTERACTIVE))
        bulk = street.start_bulk()
        until(lambda: street.source._gate.describe().get(TARGET_ID, {}).get("paused"))
        paused = street.marks.begun()
        assert bulk.cancel()
        with pytest.raises(TransferCancelled):
            bulk.wait(PATIENCE_S)
        assert street.marks.begun() == paused <= PIECE_NBYTES
    (turn,) = street.turns(BULK)
    assert street.of(turn) == ["asked", "started", "told to give way", "gave way", "ended"]
    assert street.source._gate.describe() == {}


@pytest.mark.parametrize("street", [(MEDIUM, {})], indirect=True)
def test_a_moving_bulk_push_is_cancelled_within_a_piece(street: Street) -> None:
    begun = 0

    def cancel_one() -> bool:
        nonlocal begun
        street.marks.clear()
        bulk = street.start_bulk()
        until(street.marks.begun)
        bulk.cancel()
        begun = street.marks.begun()
        until(bulk.done)
        return bulk.state == "cancelled"

    assert any(cancel_one() for _ in range(20))  # some may have moved to their end before
    turn = street.turns(BULK)[-1]
    (segment,) = street.segments[turn]
    assert segment.nbytes - begun <= PIECE_NBYTES
    assert segment.nbytes < street.bulk.nbytes
    assert street.of(turn) == ["asked", "started", "ended"]
    street.push_urgent()
    assert street.source._gate.describe() == {}
