"""What an urgent push takes on an idle link, under bulk on the same link, and under bulk that is as urgent.

Urgent pushes come at random moments, one after the other, under a grant that stands. Two threads keep the link full
of bulk meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from random import Random
from typing import NamedTuple

from ray_kvfabric.bench.cases import BULK, URGENT, Case
from ray_kvfabric.bench.contents import GrantedLedger, Held, fill_source
from ray_kvfabric.bench.endpoints import Roads, Target, describe, settings
from ray_kvfabric.bench.measure import Spawn
from ray_kvfabric.bench.rows import Row
from ray_kvfabric.bench.source import SOURCE_ID, TARGET_ID
from ray_kvfabric.bench.statistics import percentile
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.grant import Grant
from ray_kvfabric.route import Route

LOADS: dict[str, Priority | None] = {
    "idle link": None,
    "under bulk": Priority.BULK,
    "under bulk as urgent": Priority.INTERACTIVE,
}
BULK_THREADS = 2  # of which one waits for the other's end, or for the urgent push's
LONGEST_PAUSE_S = 0.004  # between two urgent pushes


class UrgentEffort(NamedTuple):
    rounds: int = 5
    reps: int = 100
    bulk: Case = BULK


QUICK_URGENT = UrgentEffort(rounds=1, reps=20)


class Load(NamedTuple):
    """One round under one load: nanoseconds of each urgent push, and what bulk moved in how many seconds."""

    samples: list[int]
    bulk_nbytes: int
    seconds: float


class UrgentSource:
    """The process that pushes both."""

    def __init__(self, bulk: Case, bulk_route: Route, urgent_route: Route, grant: Grant) -> None:
        roads = Roads()
        for route in (bulk_route, urgent_route):
            roads.put(route)
        self._case = bulk
        self._manager = CacheManager(SOURCE_ID, directory=roads, settings=settings())
        self._bulk, self._urgent = (self._manager.allocate_blocks_cache(describe(case)) for case in (bulk, URGENT))
        for cache, case in ((self._bulk, bulk), (self._urgent, URGENT)):
            fill_source(cache, case)
        self._grant = grant
        self._ledger = GrantedLedger(URGENT, grant.blocks)
        self._bulk_nbytes = 0
        self._lock = threading.Lock()
        self._push_bulk(Priority.NORMAL)
        self._push_urgent(Random(0))

    def round(self, load: str, reps: int, seed: int) -> Load:
        random = Random(seed)
        with self._loaded(LOADS[load]):
            started, before = time.perf_counter(), self._bulk_nbytes
            samples = [self._push_urgent(random) for _ in range(reps)]
            return Load(samples, self._bulk_nbytes - before, time.perf_counter() - started)

    def _push_urgent(self, random: Random) -> int:
        time.sleep(random.uniform(0, LONGEST_PAUSE_S))
        lists = URGENT.draw(random)
        push, at, priority = self._manager.push_granted, self._ledger.at(lists), Priority.INTERACTIVE
        started = time.perf_counter_ns()
        push(self._grant, self._urgent, lists[0], at=at, seal=False, priority=priority)
        taken = time.perf_counter_ns() - started
        self._ledger.write(lists)
        return taken

    def _push_bulk(self, priority: Priority) -> None:
        blocks = list(range(self._case.num_blocks))
        key = BlocksCacheKey(TARGET_ID, 0)
        self._manager.start_push(key, self._bulk, blocks, blocks, priority=priority).wait()
        with self._lock:
            self._bulk_nbytes += self._case.nbytes

    @contextmanager
    def _loaded(self, priority: Priority | None) -> Iterator[None]:
        is_over = threading.Event()

        def push_on_and_on(priority: Priority) -> None:
            while not is_over.is_set():
                self._push_bulk(priority)

        threads = [
            threading.Thread(target=push_on_and_on, args=(priority,))
            for _ in range(BULK_THREADS if priority is not None else 0)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    def held(self) -> tuple[Held, Held]:
        """What the two targets must hold by now."""
        return list(range(self._case.num_blocks)), self._ledger.held

    def close(self) -> None:
        self._manager.close()


def measure_urgent(effort: UrgentEffort, spawn: Spawn = Spawned) -> list[Row]:
    """A row a load. The loads take turns, in changing order; all bytes are compared after each round."""
    loads: dict[str, list[Load]] = {name: [] for name in LOADS}
    wrong: str | None = None
    with ExitStack() as stack:
        target = stack.enter_context(closing(spawn("target", Target, TARGET_ID)))
        routes = [target.call("open_cache", case, number) for number, case in enumerate((effort.bulk, URGENT))]
        grant = target.call("grant", 1, list(range(URGENT.num_blocks)), None)
        source = stack.enter_context(closing(spawn("source", UrgentSource, effort.bulk, *routes, grant)))
        for number in range(effort.rounds):
            for name in Random(number).sample(list(LOADS), len(LOADS)):
                loads[name].append(source.call("round", name, effort.reps, number))
            found = [target.call("first_wrong", index, held) for index, held in enumerate(source.call("held"))]
            wrong = wrong or next((each for each in found if each is not None), None)
    return [_row(name, found, loads["idle link"], wrong) for name, found in loads.items()]


def _row(name: str, loads: list[Load], idle: list[Load], wrong: str | None) -> Row:
    calls, rest = ([sample for load in each for sample in load.samples] for each in (loads, idle))
    p50, p99 = percentile(calls, 50), percentile(calls, 99)
    row: Row = {
        "contender": "urgent",
        "transport": "shared_memory",
        "case": URGENT.name,
        "bytes": URGENT.nbytes,
        "detail": name,
        "p50_us": round(p50 / 1000, 2),
        "p99_us": round(p99 / 1000, 2),
        "ratio_idle_p50": round(p50 / percentile(rest, 50), 3),
        "ratio_idle_p99": round(p99 / percentile(rest, 99), 3),
        "bulk_gbps": round(sum(load.bulk_nbytes for load in loads) / sum(load.seconds for load in loads) / 1e9, 3),
        "verified": wrong is None,
        "rounds": len(loads),
        "reps": len(calls),
    }
    if wrong is not None:
        row["wrong"] = wrong
    return row
