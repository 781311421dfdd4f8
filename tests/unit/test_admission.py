"""Who may move now: model-checked against plain dictionaries, then each rule by itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_kvfabric.config import AdmissionSettings
from ray_kvfabric.control.admission import Admission, Command, GiveWay, GoOn, Refuse, Start
from ray_kvfabric.control.ageing_queue import AgeingQueue, Priority
from ray_kvfabric.control.lane import PIECE_NBYTES, Ticket
from ray_kvfabric.errors import LLMStatusCode, QueueFull

MIB = 1 << 20
BULK, NORMAL, INTERACTIVE = Priority
SMALL = AdmissionSettings(
    moving_per_target=3, moving_per_link=2, moving_bytes_per_target=40 * MIB, max_queued=6, ageing_s=1.0
)


@dataclass
class Shell:
    """Carries out commands on plain sets, and refuses those that make no sense."""

    admission: Admission
    now: float = 100.0
    moving: set[Ticket] = field(default_factory=set)
    pieces: set[Ticket] = field(default_factory=set)
    told: set[Ticket] = field(default_factory=set)
    since: dict[Ticket, float] = field(default_factory=dict)  # of those that wait
    paused: set[Ticket] = field(default_factory=set)
    ended: set[Ticket] = field(default_factory=set)
    refused: dict[Ticket, QueueFull] = field(default_factory=dict)
    starts: list[Ticket] = field(default_factory=list)
    all: list[Ticket] = field(default_factory=list)

    def begin(self, nbytes: int, priority: Priority, target: int = 1, link: str = "a") -> Ticket:
        ticket = Ticket(target, link, nbytes, priority)
        self.all.append(ticket)
        self.since[ticket] = self.now
        if self.admission.start_alone(ticket):
            assert not any(each.target == target for each in self.live if each is not ticket)
            self._start(ticket, is_again=False)
        else:
            self.obey(self.admission.begin(ticket, self.now))
        return ticket

    def gave_way(self, ticket: Ticket) -> None:
        commands = self.admission.gave_way(ticket, self.now)
        for each in (self.moving, self.pieces, self.told):
            each.discard(ticket)
        self.paused.add(ticket)
        self.since[ticket] = self.now
        self.obey(commands)

    def end(self, ticket: Ticket) -> None:
        is_alone = self.admission.end_alone(ticket)
        commands = self.admission.end(ticket, self.now)
        assert not (is_alone and commands)
        for each in (self.moving, self.pieces, self.told, self.paused):
            each.discard(ticket)
        self.since.pop(ticket, None)
        self.ended.add(ticket)
        self.obey(commands)

    def wait(self, seconds: float) -> None:
        """Wakes up whenever it was asked to, and at the end."""
        until = self.now + seconds
        while self.admission.wake_at is not None and self.admission.wake_at <= until:
            assert self.admission.wake_at > self.now
            self.now = self.admission.wake_at
            self.obey(self.admission.tick(self.now))
        self.now = until
        self.obey(self.admission.tick(self.now))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            ticket = command.ticket
            match command:
                case Start():
                    self._start(ticket, is_again=command.is_again)
                case GiveWay():
                    assert ticket in self.moving - self.told - self.pieces
                    self.told.add(ticket)
                case GoOn():
                    assert ticket in self.told
                    self.told.remove(ticket)
                case Refuse():
                    assert ticket not in self.moving
                    del self.since[ticket]
                    self.ended.add(ticket)
                    self.refused[ticket] = command.error

    def _start(self, ticket: Ticket, *, is_again: bool) -> None:
        assert ticket in self.since
        assert ticket not in self.moving
        assert is_again == (ticket in self.paused)
        del self.since[ticket]
        self.paused.discard(ticket)
        self.moving.add(ticket)
        self.starts.append(ticket)
        if ticket.is_piece:
            self.pieces.add(ticket)

    # ---- facts, all from the sets ----

    @property
    def live(self) -> set[Ticket]:
        return self.moving | self.since.keys()

    def on_link(self, ticket: Ticket) -> set[Ticket]:
        return {each for each in self.live if (each.target, each.link) == (ticket.target, ticket.link)}

    def nbytes(self, target: int) -> int:
        charges = [min(each.nbytes, PIECE_NBYTES) if each in self.pieces else each.nbytes for each in self.to(target)]
        return sum(charges)

    def to(self, target: int) -> set[Ticket]:
        return {each for each in self.moving if each.target == target}

    def is_outranked(self, ticket: Ticket) -> bool:
        return any(each.priority > ticket.priority for each in self.on_link(ticket))

    def is_link_full(self, ticket: Ticket, limit: int) -> bool:
        return len(self.on_link(ticket) & self.moving) >= limit


@pytest.fixture
def shell() -> Shell:
    return Shell(Admission(SMALL))


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shell = Shell(Admission(SMALL))

    def one_of(self, tickets: set[Ticket], choice: int) -> Ticket | None:
        in_order = [each for each in self.shell.all if each in tickets]
        return in_order[choice % len(in_order)] if in_order else None

    @rule(
        nbytes=st.sampled_from([1, 4, 5, 10, 30, 50]),
        priority=st.sampled_from(list(Priority)),
        where=st.sampled_from([1, 1, 2]),
        link=st.sampled_from("aab"),
    )
    def begin(self, nbytes: int, priority: Priority, where: int, link: str) -> None:
        self.shell.begin(nbytes * MIB, priority, where, link)

    @rule(choice=st.integers(0, 20), is_waiting=st.booleans())
    def end(self, choice: int, is_waiting: bool) -> None:
        ticket = self.one_of(set(self.shell.since) if is_waiting else self.shell.moving, choice)
        if ticket is not None:
            self.shell.end(ticket)

    @rule(choice=st.integers(0, 20))
    def end_again(self, choice: int) -> None:
        ticket = self.one_of(self.shell.ended, choice)
        if ticket is not None:
            assert not self.shell.admission.end_alone(ticket)
            assert self.shell.admission.end(ticket, self.shell.now) == []

    @rule(choice=st.integers(0, 20), is_asked=st.booleans())
    def give_way(self, choice: int, is_asked: bool) -> None:
        """Also one that may go on again, whose copy saw the word too early."""
        told = self.shell.told | self.shell.pieces
        ticket = self.one_of(told if is_asked else self.shell.moving, choice)
        if ticket is not None:
            self.shell.gave_way(ticket)

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.shell.wait(seconds)

    @invariant()
    def limits_hold(self) -> None:
        shell = self.shell
        for target in (1, 2):
            moving = shell.to(target)
            assert len(moving) <= SMALL.moving_per_target
            assert shell.nbytes(target) <= SMALL.moving_bytes_per_target or len(moving) == 1
        for ticket in shell.live:
            assert len(shell.on_link(ticket) & shell.moving) <= SMALL.moving_per_link
            assert len(shell.on_link(ticket) & shell.pieces) <= 1
            started = shell.on_link(ticket) - (shell.since.keys() - shell.paused)
            assert len({each for each in started if each.priority == ticket.priority}) <= SMALL.moving_per_link
        assert len(shell.since.keys() - shell.paused) <= SMALL.max_queued
        shell.admission.check_integrity()

    @invariant()
    def the_counts_agree(self) -> None:
        shell, counts = self.shell, self.shell.admission.all_counts()
        for target in (1, 2):
            waiting = {each for each in shell.since if each.target == target}
            expected = (len(shell.to(target)), len(waiting - shell.paused), len(waiting & shell.paused))
            assert shell.admission.counts(target)[:3] == expected
            assert (target in counts) == any(expected)
            assert shell.admission.counts(target).moving_nbytes == shell.nbytes(target)

    @invariant()
    def the_less_urgent_give_way_and_nobody_else(self) -> None:
        shell = self.shell
        for ticket in shell.moving - shell.pieces:
            if shell.is_outranked(ticket):
                assert ticket in shell.told
            elif ticket in shell.told:
                assert any(each.target == ticket.target for each in shell.since)

    @invariant()
    def nobody_waits_who_could_move(self) -> None:
        shell = self.shell
        for ticket in shell.since:
            if not shell.is_outranked(ticket):
                assert self.is_held_up(ticket, ticket.nbytes)
            elif shell.since[ticket] + SMALL.ageing_s <= shell.now:
                assert self.has_no_piece_yet(ticket) or self.is_held_up(ticket, PIECE_NBYTES)

    def is_held_up(self, ticket: Ticket, nbytes: int) -> bool:
        """Its link is full, or the target is, for it or for somebody who is not overtaken."""
        shell = self.shell
        waiting = [each for each in shell.since if each.target == ticket.target]
        return shell.is_link_full(ticket, SMALL.moving_per_link) or any(
            not self.has_room(each) for each in waiting if not shell.is_link_full(each, SMALL.moving_per_link)
        )

    def has_room(self, ticket: Ticket) -> bool:
        shell, moving = self.shell, self.shell.to(ticket.target)
        charge = min(ticket.nbytes, PIECE_NBYTES) if shell.is_outranked(ticket) else ticket.nbytes
        fits = shell.nbytes(ticket.target) + charge <= SMALL.moving_bytes_per_target
        return len(moving) < SMALL.moving_per_target and (fits or not moving)

    def has_no_piece_yet(self, ticket: Ticket) -> bool:
        """Another piece moves, a more urgent one waits for its turn after a piece, or it would hold one thread more."""
        shell, here = self.shell, self.shell.on_link(ticket)
        if here & shell.pieces:
            return True
        if any(each in shell.since and not shell.is_outranked(each) for each in here):
            return True  # it waited for the last piece, or it can start itself: see nobody_waits_who_could_move
        started = {each for each in here if each.priority == ticket.priority and each in shell.moving | shell.paused}
        return ticket not in shell.paused and len(started) >= SMALL.moving_per_link

    def teardown(self) -> None:
        """Everything ends, if only those that move do what they are told."""
        shell, left = self.shell, dict.fromkeys(self.shell.live, 3)
        for _ in range(500):
            if not shell.live:
                break
            shell.wait(0.3)
            for ticket in list(shell.moving):
                left[ticket] -= 1
                if ticket in shell.told | shell.pieces and left[ticket]:
                    shell.gave_way(ticket)
                elif ticket in shell.moving:
                    shell.end(ticket)
            shell.admission.check_integrity()
        assert not shell.live
        assert shell.admission.all_counts() == {}
        assert shell.admission.wake_at is None


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)


# ---- giving way --------------------------------------------------------------------------------------------------


def test_a_more_urgent_one_starts_at_once_and_the_others_give_way(shell: Shell) -> None:
    bulk = shell.begin(30 * MIB, BULK)
    push = shell.begin(MIB, NORMAL)
    assert shell.starts == [bulk, push]
    assert shell.told == {bulk}
    shell.gave_way(bulk)
    assert shell.admission.counts(1) == (1, 0, 1, MIB)
    shell.end(push)
    assert shell.starts == [bulk, push, bulk]
    assert bulk not in shell.pieces | shell.told


def test_one_that_still_moves_may_go_on_when_the_more_urgent_has_ended(shell: Shell) -> None:
    bulk, push = shell.begin(30 * MIB, BULK), shell.begin(MIB, NORMAL)
    shell.end(push)
    assert shell.told == set()
    assert shell.moving == {bulk}


def test_on_a_full_link_a_more_urgent_one_waits_for_the_first_that_gives_way(shell: Shell) -> None:
    first, second = shell.begin(10 * MIB, BULK), shell.begin(10 * MIB, NORMAL)
    push = shell.begin(MIB, INTERACTIVE)
    assert push not in shell.moving
    assert shell.told == {first, second}
    shell.gave_way(second)
    assert shell.moving == {first, push}


def test_those_of_another_link_give_way_only_for_the_room_of_the_target(shell: Shell) -> None:
    bulk = shell.begin(30 * MIB, BULK, link="a")
    push = shell.begin(8 * MIB, INTERACTIVE, link="b")
    assert shell.moving == {bulk, push}
    assert shell.told == set()
    larger = shell.begin(20 * MIB, INTERACTIVE, link="b")
    assert shell.told == {bulk}
    shell.gave_way(bulk)
    assert shell.moving == {push, larger}


def test_of_equals_the_paused_go_first_and_then_who_came_first(shell: Shell) -> None:
    paused = [shell.begin(5 * MIB, BULK) for _ in range(2)]
    queued = [shell.begin(5 * MIB, BULK) for _ in range(2)]
    push = shell.begin(MIB, NORMAL)
    for ticket in paused:
        shell.gave_way(ticket)
    shell.end(push)
    for ticket in [*paused, *queued]:
        assert ticket in shell.moving
        shell.end(ticket)
    assert shell.starts == [*paused, push, *paused, *queued]


# ---- ageing ------------------------------------------------------------------------------------------------------


def test_who_has_aged_moves_one_piece_and_waits_anew(shell: Shell) -> None:
    push = shell.begin(30 * MIB, NORMAL)
    bulk = shell.begin(30 * MIB, BULK)
    assert shell.admission.wake_at == pytest.approx(101.0)
    shell.wait(0.99)
    assert bulk not in shell.moving
    shell.wait(0.01)
    assert shell.pieces == {bulk}
    assert shell.admission.counts(1).moving_nbytes == 34 * MIB
    shell.gave_way(bulk)
    assert shell.admission.wake_at == pytest.approx(102.0)
    shell.wait(0.99)
    assert shell.moving == {push}
    shell.wait(0.01)
    assert shell.pieces == {bulk}


def test_on_a_full_link_one_more_urgent_gives_way_to_the_piece_and_goes_on_after_it(shell: Shell) -> None:
    first, second = shell.begin(10 * MIB, INTERACTIVE), shell.begin(10 * MIB, INTERACTIVE)
    bulk = shell.begin(30 * MIB, BULK)
    shell.wait(1.0)
    assert shell.told == {second}
    shell.gave_way(second)
    assert (shell.moving, shell.pieces) == ({first, bulk}, {bulk})
    shell.wait(5.0)
    shell.gave_way(bulk)
    assert shell.moving == {first, second}
    assert shell.told == set()


def test_who_waited_for_a_piece_goes_before_the_next_one(shell: Shell) -> None:
    urgent = [shell.begin(MIB, NORMAL) for _ in range(4)]
    bulk = [shell.begin(30 * MIB, BULK) for _ in range(2)]
    shell.wait(1.0)
    for ticket in [urgent[0], bulk[0], urgent[1], urgent[2], bulk[1]]:
        shell.end(ticket)
    assert shell.starts == [*urgent[:2], bulk[0], urgent[2], urgent[3], bulk[1]]


def test_one_after_the_other_gives_way_until_the_piece_finds_room(shell: Shell) -> None:
    large, small = shell.begin(37 * MIB, INTERACTIVE), shell.begin(MIB, INTERACTIVE)
    bulk = shell.begin(30 * MIB, BULK)
    shell.wait(1.0)
    assert shell.told == {small}
    shell.gave_way(small)
    assert shell.told == {large}
    shell.gave_way(large)
    assert shell.pieces == {bulk}


def test_a_victim_need_not_give_way_when_the_piece_is_cancelled(shell: Shell) -> None:
    for _ in range(2):
        shell.begin(10 * MIB, NORMAL)
    bulk = shell.begin(30 * MIB, BULK)
    shell.wait(1.0)
    assert len(shell.told) == 1
    shell.end(bulk)
    assert shell.told == set()


@pytest.mark.parametrize("seed", range(5))
def test_under_a_flood_of_urgent_ones_bulk_progresses_and_no_urgent_one_waits_behind_two_pieces(seed: int) -> None:
    """Two places, four urgent transfers always there, and two bulk ones of twenty pieces."""
    shell, dice, step = Shell(Admission(SMALL)), random.Random(seed), 0.05
    bulk = [shell.begin(80 * MIB, BULK) for _ in range(2)]
    urgent = {shell.begin(MIB, INTERACTIVE) for _ in range(4)}
    pieces_waited = dict.fromkeys(urgent, 0)
    worst = 0.0
    for _ in range(2000):
        shell.wait(step)
        worst = max([worst, *(shell.now - shell.since[each] for each in bulk if each in shell.since)])
        for ticket in dice.sample(sorted(shell.moving, key=shell.all.index), k=len(shell.moving)):
            before = len(shell.starts)
            if ticket in bulk:
                shell.gave_way(ticket)
            else:
                shell.end(ticket)
                urgent.discard(ticket)
            for started in shell.starts[before:]:
                for waiting in urgent & shell.since.keys():
                    pieces_waited[waiting] += started in bulk
            if len(urgent) < 4:
                new = shell.begin(MIB, INTERACTIVE)
                urgent.add(new)
                pieces_waited[new] = 0
    assert max(pieces_waited.values()) == 1
    assert sum(each in bulk for each in shell.starts) > 2000 * step / (SMALL.ageing_s + 4 * step)
    assert worst < SMALL.ageing_s + 8 * step


# ---- room --------------------------------------------------------------------------------------------------------


def test_one_that_is_larger_than_the_limit_moves_alone_and_is_not_overtaken(shell: Shell) -> None:
    first = shell.begin(MIB, NORMAL, link="a")
    huge = shell.begin(100 * MIB, NORMAL, link="b")
    shell.wait(0.1)
    late = shell.begin(MIB, NORMAL, link="a")
    assert shell.moving == {first}
    shell.end(first)
    assert shell.moving == {huge}
    shell.end(huge)
    assert shell.moving == {late}


def test_a_full_target_and_a_full_link_keep_nobody_else_waiting(shell: Shell) -> None:
    for _ in range(4):
        shell.begin(MIB, NORMAL, target=1, link="a")
    other_link = shell.begin(MIB, NORMAL, target=1, link="b")
    waiting = shell.begin(MIB, NORMAL, target=1, link="b")
    other_target = shell.begin(MIB, BULK, target=2, link="a")
    assert {other_link, other_target} <= shell.moving
    assert waiting in shell.since


def test_over_the_links_of_a_target_who_waits_longest_overtakes_the_more_urgent_in_the_end(shell: Shell) -> None:
    moving = [shell.begin(MIB, NORMAL, link=link) for link in "abc"]
    bulk = shell.begin(MIB, BULK, link="d")
    shell.wait(1.5)
    early = shell.begin(MIB, INTERACTIVE, link="e")
    shell.end(moving[0])
    assert shell.starts[-1] is early
    shell.wait(1.0)
    shell.begin(MIB, INTERACTIVE, link="f")
    shell.end(moving[1])
    assert shell.starts[-1] is bulk


def test_a_full_queue_refuses_with_the_limit_and_the_counts_but_not_who_can_move(shell: Shell) -> None:
    tickets = [shell.begin(30 * MIB, NORMAL) for _ in range(1 + SMALL.max_queued)]
    refused = shell.begin(MIB, BULK)
    error = shell.refused[refused]
    assert error.status_code is LLMStatusCode.LLM_LINK_BUSY
    assert str(error) == (
        "6 transfers of this endpoint wait, and admission.max_queued is 6; "
        "to endpoint 1 1 move, 6 wait and 0 are paused"
    )
    assert shell.begin(MIB, BULK, target=2) in shell.moving
    assert shell.begin(MIB, INTERACTIVE) in shell.moving  # it waits for nobody
    shell.end(tickets[3])
    assert shell.begin(MIB, BULK) not in shell.refused


def test_a_refused_one_leaves_nobody_told(shell: Shell) -> None:
    for _ in range(2):
        shell.begin(10 * MIB, BULK)
    for _ in range(SMALL.max_queued):
        shell.begin(10 * MIB, BULK)
    assert shell.begin(MIB, INTERACTIVE) in shell.refused
    assert shell.told == set()


# ---- who is alone ------------------------------------------------------------------------------------------------


def test_of_two_that_come_at_once_each_sees_the_other_whatever_the_order() -> None:
    """`start_alone` holds no lock: the other's `begin` may come between its two steps."""
    admission = Admission(SMALL)
    alone, other = Ticket(1, "a", MIB, BULK), Ticket(1, "a", MIB, NORMAL)
    admission._alone.setdefault(1, alone)  # its first step
    assert admission.begin(other, 0.0)[0] == Start(other)
    assert admission.counts(1).moving == 2
    assert 1 in admission._targets  # its second step finds this, so it begins
    assert admission.begin(alone, 0.0) == []
    assert admission.counts(1).moving == 2
    admission.end(other, 0.0)
    assert not admission.end_alone(alone)
    admission.end(alone, 0.0)
    assert admission.all_counts() == {}


# ---- the queue ---------------------------------------------------------------------------------------------------


def test_the_queue_is_in_the_order_of_effective_priority() -> None:
    queue: AgeingQueue[str] = AgeingQueue(1.0, limit=3)
    queue.put("bulk", BULK, 0.0)
    queue.put("normal", NORMAL, 0.5)
    queue.put("late bulk", BULK, 0.6)
    assert queue.is_full
    with pytest.raises(ValueError, match="3 wait, the limit is 3"):
        queue.put("one more", BULK, 0.6)
    assert list(queue) == ["normal", "bulk", "late bulk"]
    served = [(each.item, each.effective_priority(2.0, 1.0)) for each in queue.in_order(2.0)]
    assert served == [("normal", 2.5), ("bulk", 2.0), ("late bulk", pytest.approx(1.4))]
    queue.check_integrity()
    assert queue.remove("bulk")
    assert not queue.remove("bulk")
    assert [each.item for each in queue.heads()] == ["normal", "late bulk"]


def test_of_equal_effective_priority_who_came_first_is_first() -> None:
    queue: AgeingQueue[str] = AgeingQueue(1.0)
    queue.put("bulk", BULK, 0.0)
    queue.put("normal", NORMAL, 1.0)
    assert [each.item for each in queue.in_order(3.0)] == ["bulk", "normal"]
    with pytest.raises(ValueError, match="waits already"):
        queue.put("bulk", NORMAL, 1.0)
