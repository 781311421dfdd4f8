"""Endpoints that begin or end badly: nothing stays behind, and what failed may be done again."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, CacheManager
from ray_kvfabric.actors.clients import RayDirectory, SchedulerClient
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.caches import CacheTable
from ray_kvfabric.errors import ClusterIdTaken, LLMException, LLMStatusCode, NotLinked, TransferTimeout
from ray_kvfabric.testing.directory import DictDirectory
from tests.unit.conftest import KEY, SETTINGS, Two, desc


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def failing(call: Any, *, is_made: bool) -> Any:
    """`call`, that fails the first time: its answer is lost, or it is not made at all."""
    left = [TransferTimeout("busy")]

    def fail_once(*arguments: Any) -> Any:
        if not left:
            return call(*arguments)
        if is_made:
            call(*arguments)
        raise left.pop()

    return fail_once


IS_MADE = pytest.mark.parametrize("is_made", [True, False])


def test_an_endpoint_that_is_refused_leaves_no_descriptor_and_the_other_in_peace(two: Two) -> None:
    before = open_fds()
    for _ in range(5):
        with pytest.raises(ClusterIdTaken):
            CacheManager(1, directory=two.directory, settings=SETTINGS)
    assert open_fds() == before
    assert two.directory.endpoints[1] == two.source.endpoint


@IS_MADE
def test_an_endpoint_whose_announcement_was_not_answered_may_begin_again(is_made: bool) -> None:
    directory = DictDirectory()
    directory.announce = failing(directory.announce, is_made=is_made)  # type: ignore[method-assign]
    with pytest.raises(TransferTimeout, match="busy"):
        CacheManager(1, directory=directory, settings=SETTINGS)
    assert directory.endpoints == {}
    with CacheManager(1, directory=directory, settings=SETTINGS) as manager:
        assert directory.endpoints == {1: manager.endpoint}


def test_an_end_takes_every_step_whatever_fails(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = [two.source.allocate_blocks_cache(desc()) for _ in range(3)]
    remove = CacheTable.remove

    def stuck(table: CacheTable, cache_id: int, deadline: Deadline) -> Any:
        if cache_id == 2:
            raise TransferTimeout("a writer does not leave")
        return remove(table, cache_id, deadline)

    before = open_fds()
    monkeypatch.setattr(CacheTable, "remove", stuck)
    two.directory.leave = failing(two.directory.leave, is_made=True)  # type: ignore[method-assign]
    with pytest.raises(TransferTimeout):
        two.source.close()
    assert [cache.tensor_addrs for cache in (caches[0], caches[2])] == [[], []]
    assert two.source._pools[caches[0].cache_desc.placement].used == 0
    assert open_fds() < before - 3  # the page too
    two.source.close()


@pytest.mark.parametrize("step", ["withdraw", "drain"])
def test_freeing_that_failed_may_be_tried_again(two: Two, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.zeros(1 << 10, np.uint8)
    cache = two.source.register_blocks_cache(desc(1), [memory.ctypes.data], BlocksCacheKey(1))
    if step == "withdraw":
        two.directory.withdraw = failing(two.directory.withdraw, is_made=False)  # type: ignore[method-assign]
    else:
        stuck = [False]
        monkeypatch.setattr(two.source._caches, "_page", Page(two.source._caches._page, stuck))
    with pytest.raises(TransferTimeout):
        two.source.unregister_cache(cache.cache_id)
    assert (cache.cache_id in two.directory.held[1]) == (step == "withdraw")
    two.source.unregister_cache(cache.cache_id)
    assert two.directory.held[1] == {}
    assert two.source._caches.all_ids() == []
    two.source.unregister_cache(cache.cache_id)


class Page:
    """The shared page, whose first drains answer what `answers` has."""

    def __init__(self, page: Any, answers: list[bool]) -> None:
        self._page = page
        self._answers = answers

    def drain_slot(self, *arguments: Any) -> bool:
        return self._answers.pop() if self._answers else self._page.drain_slot(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)


def test_a_cache_that_was_freed_meanwhile_is_not_published_again(two: Two) -> None:
    cache = two.source.allocate_blocks_cache(desc(), BlocksCacheKey(1))
    entry = two.source._caches.find(cache.cache_id)
    two.source.deallocate_blocks_cache(cache)
    two.source._tell(entry)
    assert two.directory.held[1] == {}


@IS_MADE
def test_a_model_whose_taking_over_was_not_published_stays_where_it_was(two: Two, is_made: bool) -> None:
    first, source = two.target.allocate_blocks_cache(desc(), KEY), two.source.allocate_blocks_cache(desc())
    second = np.zeros(1 << 10, np.uint8)
    source.numpy(0)[1] = 7
    two.source.push_blocks(KEY, source, [1], [2])  # the way is known, and becomes stale
    two.directory.publish = failing(two.directory.publish, is_made=is_made)  # type: ignore[method-assign]
    with pytest.raises(TransferTimeout):
        two.target.register_blocks_cache(desc(1), [second.ctypes.data], KEY)
    two.source.push_blocks(KEY, source, [1], [3])
    assert (first.numpy(0)[3] == 7).all()


class Scheduler(SchedulerClient):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__("none")
        self.told: list[str] = []

    def call(self, method: str, *arguments: object, deadline: Deadline) -> Any:
        self.told.append(method)


def test_an_endpoint_that_left_is_not_announced_again(two: Two) -> None:
    scheduler = Scheduler()
    directory, endpoint, deadline = RayDirectory(scheduler), two.source.endpoint, Deadline.after(1)
    directory.announce(endpoint, deadline)
    directory.leave(endpoint, deadline)
    with pytest.raises(NotLinked, match="has left"):
        directory.announce_again(deadline)
    with pytest.raises(NotLinked, match="has left"):
        directory.announce(endpoint, deadline)
    assert scheduler.told == ["announce", "leave"]


def test_a_device_cache_that_is_pushed_from_without_a_device_is_refused(two: Two) -> None:
    memory = np.zeros(1 << 10, np.uint8)
    device = desc(1)
    device._placement = type(device.placement).DEVICE
    two.target.allocate_blocks_cache(desc(1), KEY)
    source = two.source.register_blocks_cache(device, [memory.ctypes.data])
    with pytest.raises(LLMException, match="device memory") as caught:
        two.source.push_blocks(KEY, source, [0], [0], tensor_num_per_layer=1)
    assert caught.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


FREEING = """
import sys, threading
from ray_kvfabric import BlocksCacheKey, CacheDesc, CacheManager, DataType, LLMException, Placement
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.directory import DictDirectory

verb, end = sys.argv[1:]
directory = DictDirectory()
settings = EndpointSettings.model_validate({"mem_pool": {"memory_size": "512MiB"}, "sync_kv_timeout_ms": 20000})
near, far = (CacheManager(each, directory=directory, settings=settings) for each in (1, 2))
desc = CacheDesc(2, [64, 1 << 20], DataType.DT_INT8, Placement.HOST)
local, there = near.allocate_blocks_cache(desc), far.allocate_blocks_cache(desc, BlocksCacheKey(2))
every, told, begun = list(range(64)), [], threading.Event()

def move():
    for _ in range(20):
        try:
            getattr(near, verb)(BlocksCacheKey(2), local, every, every)
        except LLMException as error:
            told.append(error.status_code.name)
            return
        finally:
            begun.set()

thread = threading.Thread(target=move)
thread.start()
begun.wait(20)
far.close() if end == "close" else far.deallocate_blocks_cache(there)
thread.join(30)
print(told)
"""


@pytest.mark.parametrize("verb", ["push_blocks", "pull_blocks"])
@pytest.mark.parametrize(("end", "codes"), [("free", ["LLM_KV_CACHE_NOT_EXIST"]), ("close", ["LLM_NOT_YET_LINK"])])
def test_a_cache_that_is_freed_under_a_transfer_of_the_same_process(verb: str, end: str, codes: list[str]) -> None:
    """In a process of its own: it is about whether that survives."""
    done = subprocess.run(
        [sys.executable, "-c", FREEING, verb, end], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = ast.literal_eval(done.stdout)
    assert told in ([codes[0]], ["LLM_KV_CACHE_NOT_EXIST"])


def test_a_push_that_meets_the_end_of_its_link_finds_it_stale_and_leaves_its_cell(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the link's place before the end took it away: the place may be another's by now."""
    two.target.allocate_blocks_cache(desc(), KEY)
    cache = two.source.allocate_blocks_cache(desc())
    two.source.push_blocks(KEY, cache, [0], [0])
    (link,) = two.source._links.links()
    page = link.page
    monkeypatch.setattr(link, "page", Closing(page, lambda: two.source._links._close_dead(link)))
    two.source.push_blocks(KEY, cache, [0], [1])
    (other,) = two.source._links.links()
    assert other is not link
    assert page.is_idle(0)


class Closing(Page):
    """The shared page of a link that ends just before a transfer enters."""

    def __init__(self, page: Any, end: Any) -> None:
        super().__init__(page, [])
        self._ends = [end]

    def begin(self, *arguments: Any) -> int:
        if self._ends:
            self._ends.pop()()
        return self._page.begin(*arguments)
