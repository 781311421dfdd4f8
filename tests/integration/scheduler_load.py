"""Pushes that several threads launch through one Fabric while its scheduler is killed, with every effect visible.

Each target block is written twice, each time from a source block of its own: should the first push come late, or twice,
its payload would be back in place of the second, which was acknowledged.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import ray

from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import eventually

THREADS = 4
WIDTH = 16
BACK_S = 5.0
PAUSE_S = 0.02
MODEL = 7


class Load:
    """`pairs` target blocks for each thread; a thread that has used all of its own ends."""

    def __init__(self, fabric: Fabric, pairs: int) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.surprises: list[Exception] = []
        self._fabric = fabric
        self._pairs = pairs
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last: dict[int, int] = {}  # by target block: the source block that was pushed to it last
        self._num_sources = 2 * THREADS * pairs
        fabric.add_workers(1, 2)
        self._source, self._target = (
            fabric.allocate_blocks_cache(cluster_id, _desc(num_blocks), BlocksCacheKey(cluster_id, MODEL))
            for cluster_id, num_blocks in ((1, self._num_sources), (2, THREADS * pairs))
        )
        self._payloads = np.random.default_rng(1).random((self._num_sources, WIDTH), dtype=np.float32)
        write = fabric.worker(1).write_blocks
        ray.get(write.remote(self._source.cache_id, 0, list(range(self._num_sources)), self._payloads))
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]

    def kill_scheduler(self, deaths: int) -> list[float]:
        """Kills it under load; how long each time until the target is resolved again."""
        for thread in self._threads:
            thread.start()
        try:
            return [self._kill_once() for _ in range(deaths)]
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(120)

    def _kill_once(self) -> float:
        before = self.acknowledged
        eventually(lambda: self.acknowledged > before + 10 or not self._is_running(), 60, "pushes go on")
        assert self._is_running(), f"all pairs are used up; {self.surprises}"
        client, deadline = self._fabric._client, Deadline.after(60)
        pid = client.call("status", deadline=deadline)["pid"]
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        client.call("resolve", 2, CacheName("model", 0, MODEL), deadline=deadline)
        back = time.monotonic() - start
        assert client.call("status", deadline=deadline)["pid"] != pid
        return back

    def check(self) -> None:
        """All outcomes were true ones, and what was acknowledged last is what lies in each block."""
        assert self.surprises == []
        assert self.acknowledged == 2 * len(self._last)
        assert self.refused > 0
        time.sleep(1.0)  # for whatever may come late
        written = sorted(self._last)
        call = self._fabric.worker(2).read_blocks.remote(self._target.cache_id, 0, written)
        wanted = self._payloads[[self._last[block] for block in written]]
        assert np.array_equal(ray.get(call, timeout=30), wanted)

    def _is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _run(self, number: int) -> None:
        try:
            for target in range(number * self._pairs, (number + 1) * self._pairs):
                if self._stop.is_set():
                    return
                self._push(2 * target, target)
                self._push(2 * target + 1, target)
                if target % 4 == 0:
                    self._be_refused(target)
                time.sleep(PAUSE_S)
        except Exception as error:
            self.surprises.append(error)

    def _push(self, src_block: int, target: int) -> None:
        self._fabric.push_blocks(BlocksCacheKey(2, MODEL), self._source, [src_block], [target], timeout_s=30)
        with self._lock:
            self.acknowledged += 1
            self._last[target] = src_block

    def _be_refused(self, target: int) -> None:
        try:
            self._fabric.push_blocks(
                BlocksCacheKey(2, MODEL), self._source, [self._num_sources], [target], timeout_s=30
            )
        except ParamInvalid:
            with self._lock:
                self.refused += 1


def _desc(num_blocks: int) -> CacheDesc:
    return CacheDesc(1, [num_blocks, WIDTH], DataType.DT_FLOAT, Placement.HOST)
