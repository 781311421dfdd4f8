"""24 senders in four processes onto a receiver with few free blocks, while questions are lost and a process is killed.

RUNS=n requests in all, SEED=n. Questions go through a socket of each process, as they go through Ray otherwise.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheManager, DataType, Placement
from ray_kvfabric.bench.endpoints import Roads
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.directory import Mark, mark
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint import offer_verbs
from ray_kvfabric.errors import CreditExhausted, LLMException, PeerLost, TransferTimeout
from ray_kvfabric.grant import Grant
from ray_kvfabric.route import EndpointInfo, Route
from ray_kvfabric.testing.faults import FaultKind, FaultPlan, FaultyPeers

pytestmark = pytest.mark.native

RUNS = int(os.environ.get("RUNS", "4800"))
SEED = int(os.environ.get("SEED", str(secrets.randbits(31))))
PROCESSES, SENDERS, BLOCKS, MAX_WAITING = 4, 6, 8, 16
PORTION = 10  # requests of each sender before its process is heard of again
PATIENCE_S = 60.0
TTL_S = 10.0  # who gives up, and whose last words are lost, leaves a grant for so long
OWNER_ID, KEY = 1000, BlocksCacheKey(1000, 0)
DESC = CacheDesc(4, (BLOCKS, 4096), DataType.DT_UINT8, Placement.HOST)
SETTINGS = EndpointSettings.model_validate(
    {"transports": ("shared_memory",), "sync_kv_timeout_ms": 60_000, "admission": {"ageing_s": 0.05}}
)
LOSSES = {FaultKind.LOSE_REQUEST: 0.03, FaultKind.LOSE_REPLY: 0.03}


class Desk:
    """`ports.PeerCalls` between processes of this host: each listens under its pid."""

    def __init__(self) -> None:
        self._managers: dict[Mark, CacheManager] = {}
        self._listener = Listener(_address(os.getpid()), "AF_UNIX", backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    def register(self, manager: CacheManager) -> None:
        self._managers[mark(manager.endpoint)] = manager

    def forget(self, manager: CacheManager) -> None:
        del self._managers[mark(manager.endpoint)]

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        try:
            with Client(_address(peer.pid), "AF_UNIX") as pipe:
                pipe.send((mark(peer), question, arguments))
                outcome = pipe.recv()
        except (OSError, EOFError) as error:
            raise PeerLost(f"{peer} is gone") from error
        if isinstance(outcome, LLMException):
            raise outcome
        return outcome

    def _accept(self) -> None:
        while True:
            pipe = self._listener.accept()
            threading.Thread(target=self._serve, args=(pipe,), daemon=True).start()

    def _serve(self, pipe: Connection) -> None:
        with pipe, suppress(OSError, EOFError):
            whom, question, arguments = pipe.recv()
            try:
                pipe.send(self._managers[whom].answer(question, arguments))
            except LLMException as error:
                pipe.send(error)


@functools.cache
def the_desk() -> Desk:
    """Of this process."""
    return Desk()


def _address(pid: int) -> str:
    return f"\0kvfabric-back-pressure-{pid}"


class Household:
    """A process of senders."""

    def __init__(self, first_id: int, route: Route, seed: int) -> None:
        offer_verbs.ASK_AGAIN_S = 0.1
        desk = the_desk()
        peers = FaultyPeers(desk, FaultPlan(seed=seed, rates=LOSSES))
        roads = Roads()
        roads.put(route)
        self.managers = [
            CacheManager(first_id + index, directory=roads, peers=peers, settings=SETTINGS) for index in range(SENDERS)
        ]
        self.caches = [manager.allocate_blocks_cache(DESC) for manager in self.managers]
        for manager, cache in zip(self.managers, self.caches, strict=True):
            desk.register(manager)
            for tensor in range(4):
                cache.numpy(tensor)[...] = _content(manager.endpoint.cluster_id, tensor)
        self.dice = [random.Random(f"{seed}/{index}") for index in range(SENDERS)]
        self.refused = 0
        self.pool = ThreadPoolExecutor(SENDERS)
        self.waiting: list[Future[None]] = []

    def marks(self) -> list[Mark]:
        return [mark(manager.endpoint) for manager in self.managers]

    def send(self, portion: int) -> int:
        """Every sender's next requests; how many were refused at first because too many waited."""
        refused = self.refused
        for sent in [self.pool.submit(self._send, index, portion) for index in range(SENDERS)]:
            sent.result(2 * PATIENCE_S)
        return self.refused - refused

    def _send(self, index: int, portion: int) -> None:
        dice, name = self.dice[index], self.managers[index].endpoint.cluster_id
        for turn in range(PORTION):
            size = BLOCKS if turn == index else dice.randint(1, BLOCKS)
            self._send_one(index, size, f"{name}:{portion}:{turn}", dice.choice(list(Priority)))

    def _send_one(self, index: int, size: int, name: str, priority: Priority) -> None:
        while (grant := self._ask(index, size, name, priority)) is None:
            self.refused += 1
            time.sleep(0.01)
        self.managers[index].push_granted(grant, self.caches[index], list(range(size)))

    def _ask(self, index: int, size: int, name: str, priority: Priority) -> Grant | None:
        try:
            return self.managers[index].request_grant(
                KEY, size, request_id=name, priority=priority, timeout_s=PATIENCE_S
            )
        except CreditExhausted as error:
            if f"and {MAX_WAITING} requests wait already" in str(error):
                return None
            raise

    def give_up(self) -> int:
        """Every sender asks for all blocks, in vain; how many had to give up."""
        return sum(self.pool.map(self._gives_up, self.managers))

    def _gives_up(self, manager: CacheManager) -> bool:
        try:
            manager.request_grant(KEY, BLOCKS, timeout_s=0.3)
        except (TransferTimeout, CreditExhausted):
            return True
        return False

    def begin_to_wait(self) -> None:
        offer_verbs.ASK_AGAIN_S = 5.0  # as it is by itself
        self.waiting = [
            self.pool.submit(self._send_one, index, 1, f"{index}", Priority.NORMAL) for index in range(SENDERS)
        ]

    def cpu_of(self, seconds: float) -> float:
        """Processor seconds of this whole process meanwhile."""
        began = time.process_time()
        time.sleep(seconds)
        return time.process_time() - began

    def join(self) -> None:
        for sent in self.waiting:
            sent.result(PATIENCE_S)

    def close(self) -> None:
        for manager in self.managers:
            manager.close()


def _content(cluster_id: int, tensor: int) -> int:
    return (4 * cluster_id + tensor) % 251


class Owner:
    """Offers the blocks, and counts by writer what landed in them."""

    def __init__(self, seed: int) -> None:
        desk = the_desk()
        peers = FaultyPeers(desk, FaultPlan(seed=seed, rates=LOSSES))
        self.manager = CacheManager(OWNER_ID, directory=Roads(), peers=peers, settings=SETTINGS)
        desk.register(self.manager)
        self.target = self.manager.allocate_blocks_cache(DESC, KEY, grants_only=True)
        self.offer = self.manager.offer_blocks(self.target, list(range(BLOCKS)), ttl_s=TTL_S, max_waiting=MAX_WAITING)
        self.route = Route(self.manager.endpoint, self.manager.caches()[0])
        self.landed: Counter[str] = Counter()
        self.is_over = threading.Event()
        self.thread = ThreadPoolExecutor(1)
        self.receiving = self.thread.submit(self._receive)

    def _receive(self) -> None:
        while not self.is_over.is_set():
            with suppress(TransferTimeout):
                landed = self.offer.received(0.1)
                (writer,) = landed.receipt.source_cluster_ids
                for tensor in range(4):
                    assert (self.target.numpy(tensor)[list(landed.blocks)] == _content(writer, tensor)).all()
                self.landed[landed.receipt.request_id] += 1
                assert self.offer.describe()["waiting"] <= MAX_WAITING
                self.offer._offers.check_integrity()
                self.offer.give_back(landed.ticket)

    def await_free(self) -> None:
        nothing = {"cache_id": self.target.cache_id, "free": BLOCKS, "granted": 0, "waiting": 0, "landed": 0}
        give_up = time.monotonic() + PATIENCE_S
        while self.offer.describe() != nothing:
            assert time.monotonic() < give_up, self.offer.describe()
            time.sleep(0.01)
        assert not self.offer._askers
        assert not self.offer._issued

    def close(self) -> None:
        self.is_over.set()
        self.receiving.result(PATIENCE_S)
        self.thread.shutdown()
        the_desk().forget(self.manager)
        self.manager.close()


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    monkeypatch.setattr(offer_verbs, "ASK_AGAIN_S", 0.1)
    owner = Owner(SEED)
    yield owner
    owner.close()


@pytest.fixture
def households(owner: Owner) -> Iterator[list[Spawned]]:
    made = [
        Spawned(f"household {index}", Household, SENDERS * index, owner.route, SEED + index)
        for index in range(PROCESSES)
    ]
    yield made
    for each in made:
        each.close()


def test_every_request_lands_once_though_questions_are_lost(owner: Owner, households: list[Spawned]) -> None:
    portions = max(RUNS // (PROCESSES * SENDERS * PORTION), 1)
    with ThreadPoolExecutor(PROCESSES) as pool:

        def send_all(household: Spawned) -> int:
            return sum(household.call("send", portion) for portion in range(portions))

        refused = sum(pool.map(send_all, households))
    owner.await_free()
    print(f"\nSEED={SEED}: {owner.landed.total()} landed, {refused} times too many waited")
    assert set(owner.landed.values()) == {1}
    assert len(owner.landed) == portions * PROCESSES * SENDERS * PORTION
    assert refused > 0


def test_who_gives_up_or_is_killed_leaves_nothing(owner: Owner, households: list[Spawned]) -> None:
    for number in range(3):
        *living, doomed = households
        marks = doomed.call("marks")
        with ThreadPoolExecutor(PROCESSES) as pool:
            dying = pool.submit(doomed.call, "send", number)
            sent = [pool.submit(each.call, "send", number) for each in living[1:]]
            gave_up = pool.submit(living[0].call, "give_up")
            time.sleep(random.Random(f"{SEED}/{number}").uniform(0.05, 0.5))
            doomed._process.kill()
            assert isinstance(dying.exception(PATIENCE_S), PeerLost | None)
            for cluster_id, incarnation in marks:
                owner.manager.peer_ended(cluster_id, incarnation, "was killed")
            for each in [*sent, gave_up]:
                each.result(2 * PATIENCE_S)
        doomed.close()
        owner.await_free()
        households[-1] = Spawned("household", Household, SENDERS * (PROCESSES - 1), owner.route, SEED + 100 + number)


def test_24_that_wait_cost_no_processor_time(owner: Owner, households: list[Spawned]) -> None:
    offered = owner.offer._offers.withdraw(range(BLOCKS))
    assert len(offered) == BLOCKS
    owner.offer._offers._queue._limit = PROCESSES * SENDERS
    for household in households:
        household.call("begin_to_wait")
    give_up = time.monotonic() + PATIENCE_S
    while owner.offer.describe()["waiting"] < PROCESSES * SENDERS:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    with ThreadPoolExecutor(PROCESSES) as pool:
        spent = list(pool.map(lambda household: household.call("cpu_of", 2.0), households))
    assert max(spent) < 2.0 * 0.01 * SENDERS
    print(f"\nof {SENDERS} waiting senders a process: {max(spent) / 2 / SENDERS:.3%} of a core each")
    owner.offer.add(sorted(offered))
    for household in households:
        household.call("join")
    owner.await_free()
