"""The scheduler dies at any moment: nobody loses an outcome, and its next life knows all endpoints again."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import psutil
import pytest

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.errors import CacheNotFound, NotLinked, ParamInvalid
from ray_kvfabric.route import CacheRef, Receipt
from tests.integration.conftest import BLOCKS, desc, eventually, pair, process_of, read, scramble
from tests.integration.scheduler_load import BACK_S, Load

pytestmark = pytest.mark.ray

PUSHES = 100
DEATHS = 3


@pytest.fixture
def kill_scheduler(fabric):
    """Kills this fabric's scheduler process with SIGKILL; the fixture's fabric must be the only new one."""
    [process] = [each for each in process_of("ray::SchedulerActor") if _serves(each, fabric)]
    return lambda: os.kill(process.pid, signal.SIGKILL)


def _serves(process: psutil.Process, fabric) -> bool:
    return process.pid == fabric.status()["scheduler"]["pid"]


def test_each_of_100_launched_pushes_learns_its_true_outcome(fabric, kill_scheduler) -> None:
    source, target = pair(fabric)
    transfers = []
    for number in range(PUSHES):
        if number == PUSHES // 2:
            kill_scheduler()
        must_fail = number % 5 == 0
        src_block = BLOCKS if must_fail else number % BLOCKS
        # the first opens the link: its time limit is longer than the scheduler is away
        transfers.append(fabric.start_push(BlocksCacheKey(2), source, [src_block], [number % BLOCKS], timeout_s=30))

    outcomes = [_outcome(transfer) for transfer in transfers]
    for number, outcome in enumerate(outcomes):
        wanted = ParamInvalid if number % 5 == 0 else Receipt
        assert isinstance(outcome, wanted), f"push {number}: {outcome!r}"
    written = sorted({number % BLOCKS for number in range(PUSHES) if number % 5})
    assert np.array_equal(read(fabric, target, written), read(fabric, source, written))
    assert fabric.status()["scheduler"]["restarted"] is True


def test_pushes_that_had_ended_before_are_asked_of_their_source(fabric, kill_scheduler) -> None:
    source, _ = pair(fabric)
    good = fabric.start_push(BlocksCacheKey(2), source, [0], [0])
    bad = fabric.start_push(BlocksCacheKey(2), source, [BLOCKS], [0])
    receipt = good.result()
    assert isinstance(_outcome(bad), ParamInvalid)
    kill_scheduler()
    eventually(lambda: fabric.status()["scheduler"]["restarted"] is True, 20, "a new scheduler")
    assert good.result() == receipt
    assert isinstance(_outcome(bad), ParamInvalid)


def test_an_endpoint_that_polls_tells_outcomes_again_after_the_death(fabric, kill_scheduler) -> None:
    fabric.add_workers(1)
    target = fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
    with fabric.join(2) as here:
        cache = here.allocate_blocks_cache(desc(), BlocksCacheKey(2))
        cache.numpy(0)[:] = 7
        transfers = []
        for number in range(20):
            if number == 10:
                kill_scheduler()
            block = BLOCKS if number % 5 == 0 else number
            source = CacheRef(2, cache.cache_id)
            transfers.append(fabric.start_push(BlocksCacheKey(1), source, [block], [number], timeout_s=30))
        for number, transfer in enumerate(transfers):
            assert isinstance(_outcome(transfer), ParamInvalid if number % 5 == 0 else Receipt)
        written = [number for number in range(20) if number % 5]
        assert (read(fabric, target, written)[0] == 7).all()


def test_the_next_life_knows_endpoints_caches_and_freed_names(fabric, kill_scheduler) -> None:
    source, target = pair(fabric)
    freed = fabric.allocate_blocks_cache(2, desc(), BlocksCacheKey(2, 5))
    fabric.deallocate_blocks_cache(freed)
    scramble(fabric, source, seed=3)
    kill_scheduler()
    # an unknown cluster is waited for, not refused, while endpoints may come back
    fabric.push_blocks(BlocksCacheKey(2), source, [1], [1], timeout_s=30)
    eventually(lambda: set(fabric.caches()) == {source, target}, 10, "both endpoints and their caches")
    with pytest.raises(CacheNotFound):
        fabric.push_blocks(BlocksCacheKey(2, 5), source, [0], [0])
    with pytest.raises(NotLinked):
        fabric.push_blocks(BlocksCacheKey(9), source, [0], [0])


def test_links_in_use_go_on_while_there_is_no_scheduler(fabric, kill_scheduler) -> None:
    fabric.add_workers(1)
    fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
    with fabric.join(2) as here:
        cache = here.allocate_blocks_cache(desc(), BlocksCacheKey(2))
        here.push_blocks(BlocksCacheKey(1), cache, [0], [0])
        killer = threading.Timer(0.05, kill_scheduler)
        killer.start()
        for number in range(2000):
            here.push_blocks(BlocksCacheKey(1), cache, [number % BLOCKS], [0])
        killer.join()
        here.push_blocks(BlocksCacheKey(1), cache, [0], [0])


@pytest.mark.slow
def test_three_deaths_under_load_lose_and_repeat_no_push(fabric) -> None:
    load = Load(fabric, pairs=1024)
    back = load.kill_scheduler(DEATHS)
    print(f"{load.acknowledged} pushes, {load.refused} refusals, resolved again after {back} s")
    load.check()
    assert max(back) < BACK_S


def _outcome(transfer) -> Receipt | Exception:
    try:
        return transfer.result(60)
    except Exception as error:
        return error
