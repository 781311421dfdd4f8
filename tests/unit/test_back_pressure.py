"""Many senders and few free blocks: who waits, who is refused, and what is left when somebody gives up or dies.

A flood of requests cannot starve one that waits. From its arrival on, a block is granted at most once a service time
until the one that waits has aged; from then on only those go first that were there before it:
    grants meanwhile <= blocks * (ageing_s / service_s + 1) + those that waited already
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache, CacheDesc, CacheManager, DataType, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.offers import BlockRequest, Granted, Offers
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint import offer_verbs
from ray_kvfabric.endpoint.offer_verbs import ASK, TAKE
from ray_kvfabric.endpoint.offers import BlockOffer
from ray_kvfabric.errors import CacheNotFound, CreditExhausted, EndpointDraining, FabricError, TransferTimeout
from ray_kvfabric.grant import Grant
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.testing.dict_peers import DictPeers
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import FaultKind, FaultPlan, FaultyPeers

BULK, NORMAL, INTERACTIVE = Priority
SENDERS, BLOCKS, AGEING_S, SERVICE_S = 8, 6, 0.1, 0.01
PATIENCE_S = 30.0
KEY = BlocksCacheKey(0, 0)
NOTHING_TAKEN = {"cache_id": 1, "free": BLOCKS, "granted": 0, "waiting": 0, "landed": 0}
SETTINGS = EndpointSettings.model_validate(
    {"transports": ("loopback",), "sync_kv_timeout_ms": 30_000, "admission": {"ageing_s": AGEING_S}}
)


@dataclass
class NotedOffers:
    """Offers whose decisions are noted, and checked, under the lock of their BlockOffer."""

    inner: Offers
    came: dict[str, float] = field(default_factory=dict)  # ticket -> when
    ahead: dict[str, int] = field(default_factory=dict)  # ticket -> how many waited when it came
    granted_at: dict[str, float] = field(default_factory=dict)  # ticket -> when it was decided, in order
    most_waiting: int = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._noting(found) if callable(found) else found

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if arguments and isinstance(arguments[0], BlockRequest):
                self.came.setdefault(arguments[0].request_id, arguments[1])
                self.ahead.setdefault(arguments[0].request_id, self.inner.waiting)
            outcome = method(*arguments)
            for command in outcome if isinstance(outcome, list) else ():
                if isinstance(command, Granted):
                    self.granted_at.setdefault(command.request.request_id, arguments[-1])
            self.most_waiting = max(self.most_waiting, self.inner.waiting)
            self.inner.check_integrity()
            return outcome

        return call

    def meanwhile(self, ticket: str) -> list[str]:
        """Who was granted between its coming and its own grant."""
        before = list(self.granted_at)[: list(self.granted_at).index(ticket)]
        return [each for each in before if self.granted_at[each] >= self.came[ticket]]


class Floor:
    """An owner that offers few blocks, and senders that ask for some."""

    def __init__(self, wrap: Callable[[PeerCalls], PeerCalls] = lambda peers: peers, max_waiting: int = 1024) -> None:
        directory, self.peers = DictDirectory(), DictPeers()
        peers = wrap(self.peers)
        self.owner, *self.senders = (
            CacheManager(number, directory=directory, peers=peers, settings=SETTINGS) for number in range(SENDERS + 1)
        )
        for manager in (self.owner, *self.senders):
            self.peers.register(manager)
        desc = CacheDesc(4, (BLOCKS, 4096), DataType.DT_UINT8, Placement.HOST)
        self.target = self.owner.allocate_blocks_cache(desc, KEY, grants_only=True)
        self.sources = [_filled(manager.allocate_blocks_cache(desc), manager) for manager in self.senders]
        self.offer: BlockOffer = self.owner.offer_blocks(self.target, list(range(BLOCKS)), max_waiting=max_waiting)
        self.noted = self.offer._offers = NotedOffers(self.offer._offers)

    def send(self, number: int, num_blocks: int, name: str, hold_s: float = 0.0, **options: Any) -> Grant:
        manager = self.senders[number]
        grant = manager.request_grant(KEY, num_blocks, request_id=name, timeout_s=PATIENCE_S, **options)
        time.sleep(hold_s)
        manager.push_granted(grant, self.sources[number], list(range(num_blocks)))
        return grant

    def receive(self) -> str:
        """The name of what landed, whose bytes are right; its blocks are free again."""
        landed = self.offer.received(PATIENCE_S)
        writer = landed.receipt.source_cluster_ids[0]
        for tensor in range(4):
            blocks = self.target.numpy(tensor)[list(landed.blocks)]
            assert (blocks == _content(writer)[: len(landed.blocks)]).all()
        self.offer.give_back(landed.ticket)
        return landed.receipt.request_id

    def ask_silently(self, number: int, num_blocks: int) -> None:
        """As one that is not heard of again."""
        asker = self.senders[number].endpoint
        question = {"ticket": "silent", "cache_id": self.target.cache_id, "asker": asker, "request_id": "silent"}
        assert self.owner.answer(ASK, {**question, "num_blocks": num_blocks, "priority": 1, "timeout_s": 60.0}) is None

    def has_died(self, sender: CacheManager) -> None:
        self.owner.peer_ended(sender.endpoint.cluster_id, sender.endpoint.incarnation, "has died")

    def ticket_of(self, name: str) -> str:
        (ticket,) = (each for each, asker in self.offer._askers.items() if asker.request_id == name)
        return ticket

    def hold_all(self) -> Grant:
        return self.senders[0].request_grant(KEY, BLOCKS, request_id="all", timeout_s=PATIENCE_S)

    def let_go(self, grant: Grant) -> None:
        self.owner.issued(grant.grant_id).revoke()

    def await_waiting(self, count: int) -> None:
        until(lambda: self.offer.describe()["waiting"] == count)

    def check_nothing_taken(self) -> None:
        assert self.offer.describe() == NOTHING_TAKEN
        assert not self.offer._askers
        assert not self.offer._issued
        assert not self.offer._answered
        assert not any(manager._asking._grants for manager in self.senders)

    def close(self) -> None:
        for manager in (*self.senders, self.owner):
            manager.close()


def _content(cluster_id: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(cluster_id).integers(0, 256, (BLOCKS, 4096), dtype=np.uint8)


def _filled(cache: Cache, manager: CacheManager) -> Cache:
    for tensor in range(4):
        cache.numpy(tensor)[...] = _content(manager.endpoint.cluster_id)
    return cache


def until(condition: Callable[[], object]) -> None:
    deadline = Deadline.after(PATIENCE_S)
    while not condition():
        assert not deadline.passed
        time.sleep(0.001)


class Crew:
    """Threads, whose errors the test raises."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, work: Callable[..., object], *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def join(self) -> list[BaseException]:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        return self.errors


@pytest.fixture
def crew() -> Crew:
    return Crew()


@pytest.fixture
def floor() -> Iterator[Floor]:
    floor = Floor()
    yield floor
    floor.close()


# ---- everybody is served, or refused --------------------------------------------------------------------------------


def test_every_request_lands_and_nothing_stays_taken(floor: Floor, crew: Crew) -> None:
    def send(number: int) -> None:
        sizes = random.Random(number)
        for turn in range(12):
            floor.send(number, BLOCKS if turn == number else sizes.randint(1, BLOCKS), f"{number}:{turn}")

    for number in range(SENDERS):
        crew.start(send, number)
    landed = [floor.receive() for _ in range(12 * SENDERS)]
    assert crew.join() == []
    assert sorted(landed) == sorted(f"{number}:{turn}" for number in range(SENDERS) for turn in range(12))
    assert floor.noted.most_waiting <= SENDERS
    floor.check_nothing_taken()


def test_one_more_than_may_wait_is_refused_with_the_counts(crew: Crew) -> None:
    floor = Floor(max_waiting=3)
    grant = floor.hold_all()
    for number in (1, 2, 3):
        crew.start(floor.send, number, 2, f"waits {number}")
        floor.await_waiting(number)
    with pytest.raises(CreditExhausted, match="for 5 blocks finds 0 free and 6 granted, and 3 requests wait already"):
        floor.senders[4].request_grant(KEY, 5)
    floor.let_go(grant)
    assert {floor.receive() for _ in range(3)} == {"waits 1", "waits 2", "waits 3"}
    assert crew.join() == []
    assert floor.noted.most_waiting == 3
    floor.check_nothing_taken()
    floor.close()


# ---- nobody starves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "priority", "flood"), [(BLOCKS, NORMAL, NORMAL), (2, BULK, INTERACTIVE)], ids=["all blocks", "bulk"]
)
def test_a_flood_overtakes_one_that_waits_only_until_it_has_aged(
    floor: Floor, crew: Crew, size: int, priority: Priority, flood: Priority
) -> None:
    is_over = threading.Event()

    def send_on_and_on(number: int) -> None:
        for turn in range(10_000):
            if is_over.is_set():
                return
            floor.send(number, 2, f"{number}:{turn}", hold_s=SERVICE_S, priority=flood)

    def receive_all() -> None:
        while not is_over.is_set() or floor.offer.describe() != NOTHING_TAKEN:
            with suppress(TransferTimeout):
                landed = floor.offer.received(0.05)
                floor.offer.give_back(landed.ticket)

    crew.start(receive_all)
    for number in range(1, SENDERS):
        crew.start(send_on_and_on, number)
    until(lambda: floor.offer.describe()["waiting"] >= 2)
    crew.start(lambda: (floor.send(0, size, "slow", priority=priority), is_over.set()))
    until(lambda: is_over.is_set() or "slow" in {asker.request_id for asker in floor.offer._askers.values()})
    ticket = floor.ticket_of("slow")
    assert is_over.wait(PATIENCE_S)
    assert crew.join() == []

    noted, meanwhile = floor.noted, floor.noted.meanwhile(ticket)
    assert len(meanwhile) <= BLOCKS * (AGEING_S / SERVICE_S + 1) + noted.ahead[ticket]
    aged_at = noted.came[ticket] + AGEING_S
    late = [each for each in meanwhile if noted.granted_at[each] >= aged_at]
    assert all(noted.came[each] <= noted.came[ticket] for each in late)
    assert len(late) <= noted.ahead[ticket]
    assert len(meanwhile) > noted.ahead[ticket]  # it was overtaken: without ageing it would wait for the flood's end


# ---- what waiting costs, and what is left of it ---------------------------------------------------------------------


def test_who_waits_costs_no_processor_time(floor: Floor, crew: Crew) -> None:
    grant = floor.hold_all()
    for number in range(1, SENDERS):
        crew.start(floor.send, number, 1, f"{number}")
    floor.await_waiting(SENDERS - 1)
    time.sleep(0.1)
    clocks = [time.pthread_getcpuclockid(thread.ident or 0) for thread in crew.threads]
    began, whole = [time.clock_gettime(clock) for clock in clocks], time.process_time()
    time.sleep(1.0)
    whole = time.process_time() - whole
    spent = [time.clock_gettime(clock) - start for clock, start in zip(clocks, began, strict=True)]
    assert sum(spent) < 0.01
    assert whole < 0.01 * len(clocks)
    floor.let_go(grant)
    assert len({floor.receive() for _ in clocks}) == len(clocks)
    assert crew.join() == []


def test_who_gives_up_in_the_queue_leaves_nothing(floor: Floor) -> None:
    grant = floor.hold_all()
    with pytest.raises(TransferTimeout, match=r"3 blocks of BlocksCacheKey.* were not free in time"):
        floor.senders[1].request_grant(KEY, 3, timeout_s=0.1)
    assert floor.offer.describe()["waiting"] == 0
    floor.let_go(grant)
    floor.check_nothing_taken()


def test_who_dies_in_the_queue_or_with_a_grant_leaves_nothing(floor: Floor) -> None:
    floor.hold_all()
    floor.ask_silently(1, 3)
    for sender in floor.senders[1::-1]:  # first the one that waits: it is not granted what the other had
        floor.has_died(sender)
        assert floor.offer.describe()["waiting"] == 0
    floor.check_nothing_taken()


def test_a_dead_one_that_waited_makes_room_for_the_next(floor: Floor, crew: Crew) -> None:
    part = floor.senders[0].request_grant(KEY, BLOCKS - 2, timeout_s=PATIENCE_S)
    floor.ask_silently(1, 4)
    time.sleep(AGEING_S)
    crew.start(floor.send, 2, 2, "small")  # there is room for it, behind one that has aged
    floor.await_waiting(2)
    floor.has_died(floor.senders[1])
    assert floor.receive() == "small"
    assert crew.join() == []
    floor.let_go(part)
    floor.check_nothing_taken()


# ---- questions that are lost ----------------------------------------------------------------------------------------


@dataclass
class Losing:
    """Loses what the plan says, of questions of the given names."""

    inner: PeerCalls
    plan: FaultPlan
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.lossy = FaultyPeers(self.inner, self.plan)

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        peers: PeerCalls = self.lossy if question in self.names else self.inner
        return peers.ask(peer, question, arguments, deadline)


@pytest.mark.parametrize("kind", [FaultKind.LOSE_REQUEST, FaultKind.LOSE_REPLY])
@pytest.mark.parametrize(("names", "rate"), [((TAKE,), 1.0), ((ASK, TAKE), 0.3)], ids=["no take", "some of both"])
def test_a_lost_question_costs_a_delay_and_no_block(
    monkeypatch: pytest.MonkeyPatch, crew: Crew, kind: FaultKind, names: tuple[str, ...], rate: float
) -> None:
    monkeypatch.setattr(offer_verbs, "ASK_AGAIN_S", 0.05)
    floor = Floor(lambda peers: Losing(peers, FaultPlan(seed=1, rates={kind: rate}), names))

    def send(number: int) -> None:
        for turn in range(4):
            floor.send(number, BLOCKS - number % 3, f"{number}:{turn}")

    for number in range(SENDERS):
        crew.start(send, number)
    assert len({floor.receive() for _ in range(4 * SENDERS)}) == 4 * SENDERS
    assert crew.join() == []
    floor.check_nothing_taken()
    floor.close()


def test_a_grant_told_late_to_who_had_it_as_an_answer_stands(monkeypatch: pytest.MonkeyPatch, crew: Crew) -> None:
    monkeypatch.setattr(offer_verbs, "ASK_AGAIN_S", 0.05)
    may_tell, told = threading.Event(), threading.Event()

    class Late(Losing):
        def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
            assert question != TAKE or may_tell.wait(PATIENCE_S)
            answer = self.inner.ask(peer, question, arguments, deadline)
            if question == TAKE:
                threading.Timer(0.05, told.set).start()  # the owner does what it does about the answer
            return answer

    floor = Floor(lambda peers: Late(peers, FaultPlan(), ()))
    grant, grants = floor.hold_all(), []
    crew.start(lambda: grants.append(floor.senders[1].request_grant(KEY, 3, timeout_s=PATIENCE_S)))
    floor.await_waiting(1)
    floor.let_go(grant)
    assert crew.join() == []
    may_tell.set()
    assert told.wait(PATIENCE_S)
    assert floor.owner.issued(grants[0].grant_id).state == "standing"
    floor.let_go(grants[0])
    floor.check_nothing_taken()
    floor.close()


# ---- an owner that gives no more ------------------------------------------------------------------------------------


def test_who_waits_for_an_owner_that_drains_is_refused_and_blocks_come_back(
    monkeypatch: pytest.MonkeyPatch, floor: Floor, crew: Crew
) -> None:
    monkeypatch.setattr(offer_verbs, "ASK_AGAIN_S", 0.05)
    grant = floor.hold_all()
    crew.start(floor.send, 1, 2, "waits")
    floor.await_waiting(1)
    floor.owner._refuse_new("the endpoint drains")
    floor.senders[0].push_granted(grant, floor.sources[0], list(range(BLOCKS)))
    assert floor.receive() == "all"
    assert [type(error) for error in crew.join()] == [EndpointDraining]
    floor.check_nothing_taken()


def test_blocks_that_cannot_be_granted_stay_free_for_the_next(
    monkeypatch: pytest.MonkeyPatch, floor: Floor, crew: Crew
) -> None:
    grant, give, asked = floor.hold_all(), floor.offer._give, []

    def refuse_first(*arguments: Any) -> Any:
        asked.append(arguments[2])
        if len(asked) == 1:
            raise CacheNotFound("it is not to be granted")
        return give(*arguments)

    monkeypatch.setattr(floor.offer, "_give", refuse_first)
    crew.start(lambda: floor.senders[1].request_grant(KEY, BLOCKS, request_id="first", timeout_s=0.5))
    floor.await_waiting(1)
    crew.start(floor.send, 2, BLOCKS, "second")
    floor.await_waiting(2)
    floor.let_go(grant)
    assert floor.receive() == "second"
    assert asked == ["first", "second"]
    assert all(isinstance(error, FabricError) for error in crew.join())
    floor.check_nothing_taken()


def test_who_finds_no_credit_for_a_moment_keeps_its_turn(
    monkeypatch: pytest.MonkeyPatch, floor: Floor, crew: Crew
) -> None:
    grant, give, asked = floor.hold_all(), floor.offer._give, []

    def refuse_first(*arguments: Any) -> Any:
        asked.append(arguments[2])
        if len(asked) < 3:
            raise CreditExhausted("as many grants as may stand")
        return give(*arguments)

    monkeypatch.setattr(floor.offer, "_give", refuse_first)
    crew.start(floor.send, 1, BLOCKS, "first")
    floor.await_waiting(1)
    crew.start(floor.send, 2, BLOCKS, "second")
    floor.await_waiting(2)
    floor.let_go(grant)
    assert [floor.receive(), floor.receive()] == ["first", "second"]
    assert asked == ["first", "first", "first", "second"]
    assert crew.join() == []
    floor.check_nothing_taken()


def test_a_grant_that_ended_before_anybody_knew_it_gives_its_blocks_back(
    monkeypatch: pytest.MonkeyPatch, floor: Floor
) -> None:
    give = floor.offer._give

    def give_and_end(*arguments: Any) -> Any:
        issued = give(*arguments)
        issued.revoke()
        return issued

    monkeypatch.setattr(floor.offer, "_give", give_and_end)
    with pytest.raises(TransferTimeout):
        floor.senders[0].request_grant(KEY, 2, timeout_s=0.1)
    floor.check_nothing_taken()
