"""Actor: one endpoint in a process of its own, and what a run tells it to do.

A command that may wait for others is `begin`-ed: it runs in a thread of its own, and `outcome` fetches what became of
it. Pauses are laid out with `arm`, one for each of the next pushes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import numpy as np

from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheManager, DataType, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.identity import ANY_TRACER
from ray_kvfabric.grant import Grant
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo
from ray_kvfabric.testing.contents import read_tensor, write_tensor
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import Event, Fault, FaultKind, FaultPlan, FaultyTransport, Halt, Point
from ray_kvfabric.transport.base import Link, LocalEnd, Order, Transport
from tests.census.census import Census, books, take

PATIENCE_S = 20.0
SETTINGS = EndpointSettings.model_validate(
    {
        "mem_pool": {"memory_size": "128MiB"},
        "transports": ("shared_memory", "process_vm"),
        "sync_kv_timeout_ms": 20_000,
        "admission": {"moving_per_link": 2, "ageing_s": 60.0},  # who gave way stays so
    }
)

Announced = tuple[EndpointInfo, dict[int, CacheInfo]]


class Outcome(NamedTuple):
    """`kind` is the class of what was returned or raised; "pending" while it is under way."""

    kind: str
    text: str = ""


PENDING = Outcome("pending")


class Pauses:
    """A FaultPlan that is written while it is carried out, and its PauseHook."""

    max_delay_s = 0.0

    def __init__(self) -> None:
        self._armed: deque[tuple[Point, Halt]] = deque()
        self._mine = threading.local()  # a push decides and pauses in one thread
        self.halts: list[Halt] = []

    def arm(self, point: Point) -> int:
        self.halts.append(Halt(PATIENCE_S))
        self._armed.append((point, self.halts[-1]))
        return len(self.halts) - 1

    def decide(self, event: Event, number: int) -> Fault | None:
        if event is not Event.PUSH or not self._armed:
            return None
        point, self._mine.halt = self._armed.popleft()
        return Fault(FaultKind.PAUSE, point)

    def __call__(self, point: Point, order: Order) -> None:
        self._mine.halt(point, order)


class PausingTransport(FaultyTransport):
    """Keeps no link: one that was closed would hold its peer's memory until the next is opened."""

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        link = super().open_link(local, peer, peers, deadline)
        self._links.clear()
        return link


class Actor:
    """What a Peer may call by name; one endpoint at a time."""

    manager: CacheManager

    def __init__(self) -> None:
        self._directory = DictDirectory()
        self._pauses = Pauses()
        self._begun: dict[str, Any] = {}  # threads and transfers by name
        self._begun_at: dict[str, float] = {}

    # ---- the endpoint --------------------------------------------------------------------------------

    def open(self, cluster_id: int) -> None:
        self._directory, self._pauses = DictDirectory(), Pauses()
        self._begun = {}
        pauses = self._pauses

        def wrap(inner: Transport) -> Transport:
            return PausingTransport(inner, cast(FaultPlan, pauses), pause=pauses)

        self.manager = CacheManager(
            cluster_id, directory=self._directory, settings=SETTINGS, tracer_pid=ANY_TRACER, wrap_transport=wrap
        )

    def close(self) -> None:
        self.manager.close()

    def announced(self) -> Announced | None:
        endpoint = self.manager.endpoint
        held = self._directory.held.get(endpoint.cluster_id)
        return None if held is None else (endpoint, held)

    def learn(self, announced: list[Announced]) -> None:
        """These are all the others that the directory knows from now on."""
        own = self.announced()
        everybody = [*announced, *([] if own is None else [own])]
        self._directory.endpoints = {endpoint.cluster_id: endpoint for endpoint, _ in everybody}
        self._directory.held = {endpoint.cluster_id: held for endpoint, held in everybody}

    def peer_ended(self, cluster_id: int, incarnation: int) -> None:
        self.manager.peer_ended(cluster_id, incarnation, "was ended by the test")

    def census(self) -> Census:
        return take(self.manager)

    def books(self) -> Census:
        return books(self.manager)

    # ---- caches --------------------------------------------------------------------------------------

    def make_cache(self, tensors: int, blocks: int, block_nbytes: int, seed: int | None, is_foreign: bool) -> int:
        """`seed` None: for pushes into it, all zero."""
        desc = CacheDesc(tensors, [blocks, block_nbytes], DataType.DT_INT8, Placement.HOST)
        key = BlocksCacheKey(0, 0) if seed is None else None
        if is_foreign:
            memory: list[object] = [np.zeros(desc.size, np.uint8) for _ in range(tensors)]
            cache = self.manager.register_blocks_cache(desc, memory, key)
        else:
            cache = self.manager.allocate_blocks_cache(desc, key)
        if seed is not None:
            content = np.random.default_rng(seed).integers(0, 256, desc.size, np.uint8)
            for tensor in range(tensors):
                write_tensor(cache, tensor, np.roll(content, tensor))
        return cache.cache_id

    def free_cache(self, cache_id: int) -> None:
        self.manager.unregister_cache(cache_id)

    def has_cache(self, cache_id: int) -> bool:
        return self.manager._caches.look_up(cache_id) is not None

    def digest(self, cache_id: int, blocks: Sequence[int]) -> str:
        cache = self.manager.cache(cache_id)
        shape = cache.cache_desc.shape
        digest = hashlib.blake2b()
        for tensor in range(cache.cache_desc.num_tensors):
            digest.update(read_tensor(cache, tensor).reshape(shape[0], -1)[list(blocks)].tobytes())
        return digest.hexdigest()

    # ---- the receiver --------------------------------------------------------------------------------

    def grant(self, cache_id: int, blocks: list[int], **wishes: Any) -> Grant:
        return self.manager.grant_blocks(self.manager.cache(cache_id), blocks, **wishes).grant

    def wait(self, grant_id: str, timeout_s: float) -> object:
        return self.manager.issued(grant_id).wait(timeout_s)

    def revoke(self, grant_id: str, timeout_s: float | None) -> None:
        self.manager.issued(grant_id).revoke(timeout_s)

    def grant_state(self, grant_id: str) -> tuple[str | None, str | None, list[int]]:
        """Phase, None when it is released; ending; the writers' states on its board."""
        issued = self.manager.issued(grant_id)
        held = self.manager._grants._book.find(grant_id)
        if held is None:
            return None, issued.state, []
        page, grant = self.manager._identity.page, issued.grant
        states = [page.writer(grant.board, index)[0] for index in range(grant.writers)]
        return held.phase.value, None if held.ending is None else held.ending.value, states

    # ---- the writer ----------------------------------------------------------------------------------

    def arm(self, point: Point) -> int:
        """The number of the pause that the next push comes to."""
        return self._pauses.arm(point)

    def await_pause(self, index: int) -> None:
        self._pauses.halts[index].await_reached()

    def go_on(self, index: int | None = None) -> None:
        for halt in self._pauses.halts if index is None else [self._pauses.halts[index]]:
            halt.go_on()

    def start(
        self, name: str, target: Grant | int, cache_id: int, source: list[int], target_blocks: list[int], **wishes: Any
    ) -> None:
        """A push that `outcome` and `state` know by name, under a grant or to the endpoint of that cluster_id."""
        cache = self.manager.cache(cache_id)
        if isinstance(target, Grant):
            self._begun[name] = self.manager.start_push_granted(target, cache, source, **wishes)
        else:
            key = BlocksCacheKey(target, 0)
            self._begun[name] = self.manager.start_push(key, cache, source, target_blocks, **wishes)
        self._begun_at[name] = time.monotonic()

    def seconds_since(self, name: str) -> float:
        """Since it was started."""
        return time.monotonic() - self._begun_at[name]

    def push(self, target: Grant | int, cache_id: int, source: list[int], target_blocks: list[int]) -> object:
        wishes = {"writer": 0} if isinstance(target, Grant) else {}
        self.start("late", target, cache_id, source, target_blocks, **wishes)
        return self._begun.pop("late").wait(PATIENCE_S)

    def cancel(self, name: str) -> bool:
        return bool(self._begun[name].cancel())

    def is_stopping(self, name: str) -> bool:
        """Whether it has ended, or was told to."""
        transfer = self._begun[name]
        return bool(transfer.done() or transfer._stop.is_set)

    def fail_granted(self, grant: Grant, writer: int) -> None:
        self.manager.fail_granted(grant, "given up by the test", writer=writer)

    def transfer_state(self, name: str) -> str:
        return str(self._begun[name].state)

    def gate(self) -> dict[int, dict[str, int]]:
        return self.manager._gate.describe()

    # ---- waiting -------------------------------------------------------------------------------------

    def begin(self, name: str, verb: str, *arguments: Any) -> None:
        self._begun[name] = Doing(lambda: getattr(self, verb)(*arguments))

    def outcome(self, name: str, timeout_s: float) -> Outcome:
        """Of what was begun or started; once it has one, the name is forgotten."""
        begun = self._begun[name]
        until = time.monotonic() + timeout_s
        while not begun.done():
            if time.monotonic() > until:
                return PENDING
            time.sleep(0.002)
        del self._begun[name]
        try:
            return Outcome(type(begun.wait(0)).__name__)
        except Exception as error:
            return Outcome(type(error).__name__, str(error))

    def peek(self, name: str) -> Outcome:
        """PENDING, or something else; its outcome can still be fetched."""
        return Outcome("ended") if self._begun[name].done() else PENDING

    def try_(self, verb: str, *arguments: Any) -> Outcome:
        """What a call comes to, at once."""
        try:
            return Outcome(type(getattr(self, verb)(*arguments)).__name__)
        except Exception as error:
            return Outcome(type(error).__name__, str(error))


class Doing:
    """A call in a thread of its own, with the surface of a Transfer that is waited for."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="census-doing", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:
            self._error = error.with_traceback(None)

    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> object:
        if self._error is not None:
            raise self._error
        return self._result


def serve(pipe: Connection) -> None:
    logging.disable(logging.WARNING)  # what it would warn of is meant
    actor = Actor()
    while True:
        try:
            verb, arguments, wishes = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(actor, verb)(*arguments, **wishes)
        except Exception as error:
            answer = error
        pipe.send(answer)
