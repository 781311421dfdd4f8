"""Turns of threads and of started transfers: who sleeps, who is woken, what is raised."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ray_kvfabric.config import AdmissionSettings
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.lane import PIECE_NBYTES
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.gate import Caller, Gate
from ray_kvfabric.endpoint.transfers import TransferTable
from ray_kvfabric.endpoint.turn import Turn
from ray_kvfabric.errors import (
    LLMException,
    PeerLost,
    QueueFull,
    TransferCancelled,
    TransferTimeout,
    TransferUnknown,
)
from ray_kvfabric.memory.copy_python import StopWord
from ray_kvfabric.route import Receipt

MIB = 1 << 20
BULK, NORMAL, INTERACTIVE = Priority
LIMIT_S = 10.0
SETTINGS = AdmissionSettings(
    moving_per_target=2, moving_per_link=1, moving_bytes_per_target=40 * MIB, max_queued=3, ageing_s=0.2
)
PATIENT = SETTINGS.model_copy(update={"ageing_s": 100.0, "max_queued": 100})


class Word:
    def __init__(self) -> None:
        self.raised = 0

    def raise_(self) -> None:
        self.raised += 1

    def lower(self) -> None:
        self.raised -= 1

    @property
    def is_raised(self) -> bool:
        return self.raised > 0


def make_gate(settings: AdmissionSettings = SETTINGS, log: Any = None) -> Gate:
    return Gate(settings, Word, log)


def turn_of(
    gate: Gate, priority: Priority = NORMAL, nbytes: int = MIB, *, target: int = 7, link: str = "a",
    seconds: float = LIMIT_S, stop: StopWord | None = None,
) -> Turn:  # fmt: skip
    return gate.turn(target, link, nbytes, priority, Deadline.after(seconds), stop)


class Mover:
    """A thread that takes a turn, and keeps it until it is told to leave."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.error: BaseException | None = None
        self.entered, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self.turn:
                self.entered.set()
                assert self._leave.wait(LIMIT_S)
        except BaseException as error:
            self.error = error

    def leave(self) -> None:
        self._leave.set()
        self.join()

    def join(self) -> None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    deadline = Deadline.after(LIMIT_S)
    while not condition():
        assert not deadline.passed
        time.sleep(0.001)


def is_queued(gate: Gate, count: int) -> Callable[[], bool]:
    return lambda: sum(counts["queued"] for counts in gate.describe().values()) == count


# ---- turns -------------------------------------------------------------------------------------------------------


def test_a_turn_alone_is_described_and_leaves_nothing() -> None:
    gate = make_gate()
    with turn_of(gate, nbytes=PIECE_NBYTES) as turn:
        assert gate.describe() == {7: {"moving": 1, "queued": 0, "paused": 0, "moving_nbytes": PIECE_NBYTES}}
        assert turn.give_way is None
    assert gate.describe() == {}
    turn.leave()
    with turn_of(gate, nbytes=PIECE_NBYTES + 1) as turn:
        assert isinstance(turn.give_way, Word)
        assert not turn.give_way.raised


def test_a_turn_ends_with_the_error_of_its_transfer() -> None:
    gate = make_gate()
    with pytest.raises(PeerLost), turn_of(gate):
        raise PeerLost("gone")
    assert gate.describe() == {}


def test_who_waits_is_woken_in_order_by_whoever_leaves() -> None:
    gate = make_gate()
    first = Mover(turn_of(gate))
    assert first.entered.wait(LIMIT_S)
    second = Mover(turn_of(gate))
    until(is_queued(gate, 1))
    third = Mover(turn_of(gate))
    until(is_queued(gate, 2))
    first.leave()
    assert second.entered.wait(LIMIT_S)
    assert not third.entered.is_set()
    second.leave()
    assert third.entered.wait(LIMIT_S)
    third.leave()
    assert gate.describe() == {}


def test_a_late_one_says_whom_it_waited_for_and_is_gone() -> None:
    gate = make_gate()
    with turn_of(gate):
        other = Mover(turn_of(gate))
        until(is_queued(gate, 1))
        text = "waited for 2 others to or from endpoint 7: there 1 move, 2 are queued and 0 paused, itself among them"
        with pytest.raises(TransferTimeout, match=text), turn_of(gate, seconds=0.05):
            pass
        assert gate.describe()[7]["queued"] == 1
    assert other.entered.wait(LIMIT_S)
    other.leave()


def test_a_full_queue_refuses_at_once() -> None:
    gate = make_gate()
    with turn_of(gate):
        waiting = [Mover(turn_of(gate)) for _ in range(SETTINGS.max_queued)]
        until(is_queued(gate, 3))
        with pytest.raises(QueueFull, match="max_queued is 3; to endpoint 7 1 move, 3 wait"), turn_of(gate):
            pass
        with turn_of(gate, target=8):
            pass
    for mover in waiting:
        assert mover.entered.wait(LIMIT_S)
        mover.leave()


def test_cancelling_wakes_a_sleeper_at_once() -> None:
    gate, stop = make_gate(), StopWord()
    with turn_of(gate):
        mover, other = Mover(turn_of(gate, stop=stop)), Mover(turn_of(gate, stop=StopWord()))
        until(is_queued(gate, 2))
        stop.set()
        gate.cancelled(stop)
        mover.join()
        assert isinstance(mover.error, TransferCancelled)
        assert gate.describe()[7]["queued"] == 1
    assert other.entered.wait(LIMIT_S)
    other.leave()


def test_who_waits_costs_no_processor_time() -> None:
    gate = make_gate(PATIENT)
    with turn_of(gate, INTERACTIVE, 10 * MIB):
        movers = [Mover(turn_of(gate, priority)) for priority in (BULK, NORMAL) * 4]
        until(is_queued(gate, 8))
        began = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - began < 0.05
    for mover in movers:
        mover._leave.set()
    for mover in movers:
        mover.join()


# ---- giving way --------------------------------------------------------------------------------------------------


def test_a_word_is_raised_for_a_more_urgent_turn_and_lowered_after_it() -> None:
    gate = make_gate(PATIENT)
    with turn_of(gate, BULK, 30 * MIB) as bulk:
        assert isinstance(bulk.give_way, Word)
        urgent = Mover(turn_of(gate, INTERACTIVE))
        until(lambda: bulk.give_way.raised == 1)
        assert not urgent.entered.is_set()  # the link has one place
        pausing = threading.Thread(target=bulk.pause, args=(Deadline.after(LIMIT_S), None))
        pausing.start()
        assert urgent.entered.wait(LIMIT_S)
        assert gate.describe()[7] == {"moving": 1, "queued": 0, "paused": 1, "moving_nbytes": MIB}
        assert pausing.is_alive()
        urgent.leave()
        pausing.join(LIMIT_S)
        assert not pausing.is_alive()
        assert bulk.give_way.raised == 0
        assert not bulk.only_piece
    assert gate.describe() == {}


def test_who_has_aged_moves_one_piece_with_its_word_raised() -> None:
    gate = make_gate(SETTINGS.model_copy(update={"moving_per_link": 2}))
    with turn_of(gate, INTERACTIVE), turn_of(gate, BULK, 30 * MIB) as bulk:
        assert bulk.only_piece
        assert isinstance(bulk.give_way, Word)
        for _ in range(2):
            began = time.monotonic()
            bulk.pause(Deadline.after(LIMIT_S), None)
            assert time.monotonic() - began >= SETTINGS.ageing_s
            assert (bulk.only_piece, bulk.give_way.raised) == (True, 1)


@pytest.mark.parametrize("kind", [TransferTimeout, TransferCancelled])
def test_a_pause_that_fails_ends_the_turn(kind: type[LLMException]) -> None:
    gate, stop = make_gate(PATIENT), StopWord()
    if kind is TransferCancelled:
        stop.set()
    with pytest.raises(kind), turn_of(gate, BULK, 30 * MIB) as bulk:
        urgent = Mover(turn_of(gate, INTERACTIVE))
        until(is_queued(gate, 1))
        bulk.pause(Deadline.after(0.05), stop)
    assert gate.describe()[7] == {"moving": 1, "queued": 0, "paused": 0, "moving_nbytes": MIB}
    urgent.leave()


def test_a_pause_of_one_that_nobody_outranks_returns_at_once() -> None:
    gate = make_gate()
    with turn_of(gate, BULK, 30 * MIB) as bulk:
        bulk.pause(Deadline.after(0.0), None)
    assert gate.describe() == {}


def test_the_log_has_what_happened_in_order() -> None:
    entries: list[tuple[str, int, float]] = []
    gate = make_gate(PATIENT, lambda what, turn, now: entries.append((what, turn.nbytes, now)))
    with turn_of(gate, BULK, 30 * MIB) as bulk:
        urgent = Mover(turn_of(gate, INTERACTIVE, 2))
        until(lambda: bulk.is_told)
        until(is_queued(gate, 1))
        pausing = threading.Thread(target=bulk.pause, args=(Deadline.after(LIMIT_S), None))
        pausing.start()
        assert urgent.entered.wait(LIMIT_S)
        urgent.leave()
        pausing.join()
    bulk_log = [what for what, nbytes, _ in entries if nbytes == 30 * MIB]
    assert bulk_log == ["asked", "started", "told to give way", "gave way", "went on", "ended"]
    assert [what for what, nbytes, _ in entries if nbytes == 2] == ["asked", "started", "ended"]
    assert all(0 <= time.monotonic() - now < LIMIT_S for _, _, now in entries)


# ---- without a thread --------------------------------------------------------------------------------------------


def test_a_queued_turn_begins_when_it_may_and_is_given_up_when_it_is_late() -> None:
    gate, happened = make_gate(), []
    caller = Caller(lambda turn: happened.append(turn), lambda error: happened.append(error))
    with turn_of(gate):
        late, patient, gone = (turn_of(gate, seconds=each) for each in (0.05, LIMIT_S, 0.03))
        for turn in (late, patient, gone):
            gate.queue(turn, caller)
        gone.leave()
        until(lambda: happened)
        assert isinstance(happened[0], TransferTimeout)
        assert gate.describe()[7]["queued"] == 1
    assert happened[1:] == [patient]
    assert gate.describe()[7]["moving"] == 1
    patient.leave()
    patient.leave()
    gate._give_up(patient, caller)  # found late just before it began
    assert happened[1:] == [patient]
    assert gate.describe() == {}


def test_a_queued_turn_ages_though_no_thread_sleeps_for_it() -> None:
    gate, begun = make_gate(SETTINGS.model_copy(update={"moving_per_link": 2})), threading.Event()
    with turn_of(gate, INTERACTIVE):
        bulk = turn_of(gate, BULK, 30 * MIB)
        gate.queue(bulk, Caller(lambda turn: begun.set(), lambda error: None))
        assert not begun.wait(SETTINGS.ageing_s / 2)
        assert begun.wait(LIMIT_S)
        assert bulk.only_piece
        bulk.leave()


def test_the_alarm_ends_when_there_is_nothing_to_wait_for() -> None:
    gate = make_gate()
    with turn_of(gate):
        gate.queue(late := turn_of(gate, seconds=0.01), Caller(lambda turn: None, lambda error: None))
        until(lambda: not late.is_moving and gate.describe()[7]["queued"] == 0)
    until(lambda: gate._alarm._thread is None)


# ---- many threads ------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads are switched often, so that they meet between any two steps."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("per_link", [1, 2])
def test_threads_that_come_and_go_never_exceed_a_limit_and_all_move(per_link: int) -> None:
    settings = AdmissionSettings(
        moving_per_target=3, moving_per_link=per_link, moving_bytes_per_target=40 * MIB, max_queued=100, ageing_s=0.01
    )
    gate, moving, lock = make_gate(settings), Counter[tuple[int, str]](), threading.Lock()
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(300):
                target, link = dice.choice([1, 1, 2]), dice.choice("ab")
                turn = turn_of(gate, dice.choice(list(Priority)), dice.choice([1, 10 * MIB]), target=target, link=link)
                with turn:
                    for is_last in (False, True):
                        with lock:
                            moving[target, link] += 1
                            assert moving[target, link] <= per_link
                            assert moving[target, "a"] + moving[target, "b"] <= 3
                        with lock:
                            moving[target, link] -= 1
                        if not is_last and turn.is_told:
                            turn.pause(Deadline.after(LIMIT_S), None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert gate.describe() == {}
    gate._admission.check_integrity()


# ---- started transfers -------------------------------------------------------------------------------------------

RECEIPT = Receipt("0" * 32, 1, 7, 0, 0, 1, 1, MIB, "loopback", 1, 2)


@pytest.fixture
def table() -> Iterator[TransferTable]:
    table = TransferTable(make_gate(PATIENT), ttl_s=60.0)
    yield table
    table.close()


class Runs:
    """What the transfers of a test do: note that they began, and wait."""

    def __init__(self, table: TransferTable) -> None:
        self.table = table
        self.begun: list[str] = []
        self.go_on = threading.Event()

    def start(self, name: str, **facts: Any) -> Any:
        def run(stop: StopWord, turn: Turn) -> Receipt:
            self.begun.append(name)
            while not self.go_on.wait(0.001):
                if stop.is_set:
                    raise TransferCancelled("stopped")
            return RECEIPT

        return self.start_run(name, run, **facts)

    def start_run(self, name: str, run: Any, **facts: Any) -> Any:
        stop = StopWord()
        return self.table.start(name, run, stop, turn_of(self.table._gate, stop=stop, **facts))


@pytest.fixture
def runs(table: TransferTable) -> Runs:
    return Runs(table)


def transfer_threads() -> int:
    return sum(thread.name.startswith("kvfabric-transfer") for thread in threading.enumerate())


def test_a_queued_transfer_holds_no_thread_and_runs_in_its_turn(runs: Runs) -> None:
    transfers = [runs.start(f"{number}") for number in range(10)]
    until(lambda: runs.begun)
    assert transfer_threads() == 1
    assert [each.state for each in transfers] == ["moving"] + ["planned"] * 9
    runs.go_on.set()
    assert [each.wait(LIMIT_S) for each in transfers] == [RECEIPT] * 10
    assert runs.begun == [f"{number}" for number in range(10)]
    assert runs.table._gate.describe() == {}


def test_a_cancelled_queued_transfer_ends_at_once_and_never_runs(runs: Runs) -> None:
    first, second = runs.start("first"), runs.start("second")
    assert second.cancel()
    assert second.state == "cancelled"
    assert not second.cancel()
    assert runs.table._gate.describe()[7]["queued"] == 0
    with pytest.raises(TransferCancelled, match="cancelled before it moved"):
        second.wait(0)
    runs.go_on.set()
    first.wait(LIMIT_S)
    assert runs.begun == ["first"]


def test_a_cancelled_paused_transfer_wakes_and_ends(runs: Runs) -> None:
    paused = threading.Event()

    def run(stop: StopWord, turn: Turn) -> Receipt:
        until(lambda: turn.is_told)
        paused.set()
        turn.pause(turn.deadline, stop)
        return RECEIPT

    bulk = runs.start_run("bulk", run, priority=BULK, nbytes=30 * MIB)
    until(lambda: bulk.state == "moving")
    urgent = runs.start("urgent", priority=INTERACTIVE)
    assert paused.wait(LIMIT_S)
    until(lambda: runs.begun == ["urgent"])
    assert bulk.state == "moving"
    assert bulk.cancel()
    with pytest.raises(TransferCancelled, match="while it waited for its turn"):
        bulk.wait(LIMIT_S / 2)
    assert urgent.state == "moving"
    runs.go_on.set()
    urgent.wait(LIMIT_S)


def test_the_same_id_is_the_same_transfer_and_a_refused_one_is_unknown() -> None:
    table = TransferTable(make_gate(SETTINGS), ttl_s=60.0)
    with contextlib.closing(table):
        runs = Runs(table)
        transfers = [runs.start(f"{number}") for number in range(1 + SETTINGS.max_queued)]
        assert runs.start("2") is transfers[2]
        with pytest.raises(QueueFull):
            runs.start("refused")
        with pytest.raises(TransferUnknown):
            table.find("refused")
        assert len(table._gate._threadless) == SETTINGS.max_queued  # nobody is told about it later
        runs.go_on.set()
        transfers[-1].wait(LIMIT_S)
        assert runs.start("refused").wait(LIMIT_S) == RECEIPT
        assert table.find("refused").state == "landed"


def test_a_queued_transfer_fails_when_its_time_is_over(runs: Runs) -> None:
    runs.start("first")
    late = runs.start("late", seconds=0.05)
    with pytest.raises(TransferTimeout, match="waited for 1 others"):
        late.wait(LIMIT_S)
    assert late.state == "failed"
    assert runs.begun == ["first"]


def test_an_error_is_kept_without_its_frames_once_others_may_move(runs: Runs) -> None:
    def fail(stop: StopWord, turn: Turn) -> Receipt:
        try:
            raise KeyError("cause")
        except KeyError:
            raise PeerLost("gone") from None

    transfer = runs.start_run("fails", fail)
    until(transfer.done)
    error = transfer._future.exception()
    assert (error.__traceback__, error.__context__) == (None, None)
    assert runs.table._gate.describe() == {}


def test_a_transfer_can_be_awaited(runs: Runs) -> None:
    runs.go_on.set()

    async def both() -> list[Receipt]:
        return [await runs.start("first"), await runs.start("second")]

    assert asyncio.run(both()) == [RECEIPT] * 2


def test_closing_cancels_what_moves_and_what_waits(runs: Runs) -> None:
    transfers = [runs.start("first"), runs.start("second")]
    until(lambda: runs.begun)
    runs.table.close()
    assert [each.state for each in transfers] == ["cancelled"] * 2
    assert runs.begun == ["first"]
    assert runs.table._gate.describe() == {}
    late = runs.start("late")
    with pytest.raises(TransferCancelled, match="before the endpoint was closed"):
        late.wait(0)
