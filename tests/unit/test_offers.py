"""Who is granted which blocks: model-checked against plain sets, then each rule by itself."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.offers import BlockRequest, Command, Granted, Late, Offers, Refused
from ray_kvfabric.errors import CreditExhausted, GrantReplayed, ParamInvalid

BULK, NORMAL, INTERACTIVE = Priority
LIMIT, AGEING_S = 4, 1.0
BLOCKS = st.sets(st.integers(0, 11), max_size=6)


class OffersMachine(RuleBasedStateMachine):
    """The model: which blocks are free or granted, who waits since when, who has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.offers = Offers(LIMIT, AGEING_S)
        self.now = 0.0
        self.free: set[int] = set()
        self.granted: dict[str, set[int]] = {}
        self.withdrawn: set[int] = set()
        self.waiting: dict[str, tuple[BlockRequest, float]] = {}
        self.all: list[BlockRequest] = []
        self.ended: set[str] = set()

    def obey(self, commands: list[Command], asked: BlockRequest | None = None) -> list[Command]:
        for command in commands:
            request = command.request
            match command:
                case Granted() if request.request_id in self.granted:
                    assert request == asked
                    assert set(command.blocks) == self.granted[request.request_id]
                case Granted():
                    assert request.request_id in self.waiting
                    self.check_order(request)
                    assert list(command.blocks) == sorted(self.free)[: request.num_blocks]
                    assert len(command.blocks) == request.num_blocks
                    self.free -= set(command.blocks)
                    self.granted[request.request_id] = set(command.blocks)
                    del self.waiting[request.request_id]
                case Late():
                    assert request.until <= self.now
                    del self.waiting[request.request_id]
                    self.ended.add(request.request_id)
                case Refused():
                    assert request == asked
        return commands

    def check_order(self, served: BlockRequest) -> None:
        """Nobody who waited `ageing_s`, and was there before, is overtaken, unless there are too few blocks for him."""
        since = self.waiting[served.request_id][1]
        for other, other_since in self.waiting.values():
            is_servable = other.num_blocks <= len(self.free) + len(self.busy() - self.withdrawn)
            if other_since < since and other_since + AGEING_S <= self.now and is_servable:
                raise AssertionError(f"{served} overtook {other}")

    def busy(self) -> set[int]:
        return set().union(*self.granted.values())

    @rule(blocks=BLOCKS)
    def offer(self, blocks: set[int]) -> None:
        if blocks & self.busy():
            with pytest.raises(ParamInvalid, match="is offered, and granted to request"):
                self.offers.offer(blocks, self.now)
        else:
            self.free |= blocks
            self.obey(self.offers.offer(blocks, self.now))

    @rule(blocks=BLOCKS)
    def withdraw(self, blocks: set[int]) -> None:
        assert self.offers.withdraw(blocks) == blocks & self.free
        self.free -= blocks
        self.withdrawn |= blocks & self.busy()

    @rule(
        asker=st.sampled_from([(1, 1), (1, 2), (2, 1)]),
        num_blocks=st.integers(1, 8),
        priority=st.sampled_from(list(Priority)),
        limit_s=st.sampled_from([0.5, 3.0, 100.0]),
    )
    def request(self, asker: tuple[int, int], num_blocks: int, priority: Priority, limit_s: float) -> None:
        request = BlockRequest(f"r{len(self.all)}", asker, num_blocks, priority, self.now + limit_s)
        self.all.append(request)
        waited = len(self.waiting)
        self.waiting[request.request_id] = (request, self.now)
        commands = self.obey(self.offers.request(request, self.now), request)
        if any(isinstance(command, Refused) for command in commands):
            assert waited == LIMIT
            del self.waiting[request.request_id]

    @rule(choice=st.integers(0, 30))
    def ask_again(self, choice: int) -> None:
        if not self.all:
            return
        request = self.all[choice % len(self.all)]
        known = [*self.waiting, *self.granted, *self.ended]
        if request.request_id not in known or request.until <= self.now:
            return
        commands = self.obey(self.offers.request(request, self.now), request)
        if request.request_id in self.ended:
            assert isinstance(commands[-1], Refused)
            assert isinstance(commands[-1].error, GrantReplayed)

    @rule(choice=st.integers(0, 30), is_kept=st.booleans())
    def end_a_grant(self, choice: int, is_kept: bool) -> None:
        if not self.granted:
            assert self.offers.give_back("nobody", self.now) == []
            return
        request_id = list(self.granted)[choice % len(self.granted)]
        blocks = self.granted.pop(request_id)
        self.ended.add(request_id)
        if is_kept:
            assert set(self.offers.keep(request_id)) == blocks
            commands: list[Command] = []
        else:
            self.free |= blocks - self.withdrawn
            commands = self.offers.give_back(request_id, self.now)
        self.withdrawn -= blocks
        self.obey(commands)

    @rule(choice=st.integers(0, 30))
    def cancel(self, choice: int) -> None:
        request_id = list(self.waiting)[choice % len(self.waiting)] if self.waiting else "nobody"
        if self.waiting.pop(request_id, None):
            self.ended.add(request_id)
        self.obey(self.offers.cancel(request_id, self.now))

    @rule(asker=st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    def die(self, asker: tuple[int, int]) -> None:
        for request_id in [name for name, (request, _) in self.waiting.items() if request.asker == asker]:
            del self.waiting[request_id]
            self.ended.add(request_id)
        self.obey(self.offers.drop(asker, self.now))
        by_id = {request.request_id: request for request in self.all}
        assert self.offers.granted_to(asker) == [name for name in self.granted if by_id[name].asker == asker]

    @rule(seconds=st.sampled_from([0.25, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.offers.wake_at is not None and self.offers.wake_at <= until:
            self.now = self.offers.wake_at
            self.obey(self.offers.tick(self.now))
        self.now = until
        self.obey(self.offers.tick(self.now))

    @invariant()
    def every_block_is_free_or_granted(self) -> None:
        self.offers.check_integrity()
        assert self.offers._free == self.free
        granted = {name: set(grant.blocks) for name, grant in self.offers._granted.items()}
        assert granted == self.granted
        assert self.offers.waiting == len(self.waiting) <= LIMIT
        assert (self.offers.free, self.offers.granted) == (len(self.free), len(self.busy()))

    @invariant()
    def nobody_waits_who_could_be_served(self) -> None:
        """But for those behind one that aged, for which there would be enough blocks."""
        total = len(self.free) + len(self.busy() - self.withdrawn)
        waiting = list(self.waiting.values())
        if not any(since + AGEING_S <= self.now and each.num_blocks <= total for each, since in waiting):
            assert all(each.num_blocks > len(self.free) for each, _ in waiting)


TestOffersMachine = OffersMachine.TestCase
TestOffersMachine.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)


def ask(
    name: str, num_blocks: int, priority: Priority = NORMAL, until: float = 100.0, asker: tuple[int, int] = (1, 1)
) -> BlockRequest:
    return BlockRequest(name, asker, num_blocks, priority, until)


@pytest.fixture
def offers() -> Offers:
    offers = Offers(LIMIT, AGEING_S)
    offers.offer(range(8), 0.0)
    return offers


def names(commands: list[Command]) -> list[str]:
    return [command.request.request_id for command in commands]


def test_small_ones_overtake_a_large_one_until_it_has_aged(offers: Offers) -> None:
    offers.request(ask("first", 6), 0.0)
    assert offers.request(ask("large", 8), 0.0) == []
    assert names(offers.request(ask("small", 1), 0.5)) == ["small"]
    assert offers.request(ask("late", 1, INTERACTIVE), 1.0) == []
    assert offers.give_back("small", 1.1) == []
    assert names(offers.give_back("first", 1.2)) == ["large"]
    assert names(offers.give_back("large", 1.3)) == ["late"]


def test_one_that_all_blocks_would_not_be_enough_for_keeps_nobody_waiting(offers: Offers) -> None:
    assert offers.request(ask("huge", 9), 0.0) == []
    assert names(offers.request(ask("small", 1), 5.0)) == ["small"]
    assert names(offers.offer([8, 9], 5.0)) == ["huge"]


def test_the_more_urgent_is_served_first(offers: Offers) -> None:
    offers.request(ask("first", 8), 0.0)
    for name, priority in (("bulk", BULK), ("normal", NORMAL), ("interactive", INTERACTIVE)):
        offers.request(ask(name, 3, priority), 0.1)
    assert names(offers.give_back("first", 0.2)) == ["interactive", "normal"]


def test_a_full_queue_says_what_there_is(offers: Offers) -> None:
    offers.request(ask("first", 7), 0.0)
    for number in range(LIMIT):
        offers.request(ask(f"waits {number}", 8), 0.0)
    (refused,) = offers.request(ask("one more", 2), 0.0)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, CreditExhausted)
    assert str(refused.error) == (
        "request one more for 2 blocks finds 1 free and 7 granted, and 4 requests wait already, as many as may"
    )
    assert names(offers.request(ask("small", 1), 0.0)) == ["small"]


def test_who_asks_after_its_time_is_late(offers: Offers) -> None:
    assert offers.request(ask("late", 1, until=1.0), 1.0) == [Late(ask("late", 1, until=1.0))]


def test_a_withdrawn_block_that_was_granted_is_not_granted_again(offers: Offers) -> None:
    offers.request(ask("first", 8), 0.0)
    assert offers.withdraw([0, 1]) == set()
    assert offers.request(ask("second", 7), 0.0) == []
    assert offers.give_back("first", 0.0) == []
    assert offers.free == 6
    assert offers.keep("first") == ()
