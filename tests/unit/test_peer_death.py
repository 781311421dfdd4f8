"""What a SIGKILL leaves: nothing. And what a source learns of it: at once, and typed."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_kvfabric import BlocksCacheKey, Cache, LLMException
from ray_kvfabric.errors import CacheNotFound, PeerLost, StaleIncarnation, TransferTimeout
from ray_kvfabric.testing.conformance import KEY, TARGET_ID, Pair, child_pair
from ray_kvfabric.testing.peer import ChildPeer, LocalPeer

SHAPE = (64, 1 << 18)
BLOCKS = list(range(64))


@pytest.fixture
def pair() -> Iterator[Pair]:
    yield from child_pair("shared_memory")


def child(pair: Pair) -> ChildPeer:
    assert isinstance(pair.target, ChildPeer)
    return pair.target


def mapped(pid: int | str = "self") -> set[str]:
    """Fabric memory mapped by a process, by inode."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:kvfabric" in line}


def test_a_target_killed_during_pushes_is_lost_typed_and_nothing_stays(pair: Pair) -> None:
    files = set(os.listdir("/dev/shm"))
    source = pair.source_cache(SHAPE, 4)
    gc.collect()  # what errors of earlier tests still hold is not ours
    own = mapped()
    pair.target_cache(SHAPE, 4)
    transfers = [pair.manager.start_push(KEY, source, BLOCKS, BLOCKS) for _ in range(40)]
    transfers[0].wait(30)
    assert mapped() > own
    child(pair).kill()
    outcomes: list[LLMException | None] = []
    for transfer in transfers:
        try:
            transfer.wait(30)
            outcomes.append(None)
        except LLMException as error:
            outcomes.append(error)
    assert outcomes[0] is None
    assert isinstance(outcomes[-1], PeerLost)
    assert all(error is None or isinstance(error, PeerLost) for error in outcomes)
    del transfers, transfer, outcomes  # an error that the caller keeps holds the mapping
    gc.collect()
    assert mapped() == own
    assert set(os.listdir("/dev/shm")) == files
    assert pair.manager.status()["links"] == []


def test_a_push_into_a_dead_peer_asks_once_for_its_successor(pair: Pair) -> None:
    source, _ = pair.source_cache(), pair.target_cache()
    pair.manager.push_blocks(KEY, source, [0], [0])
    child(pair).kill()
    asked = pair.directory.calls["resolve"]
    with pytest.raises(PeerLost, match=f"endpoint {TARGET_ID} .*has died"):
        pair.manager.push_blocks(KEY, source, [0], [0])
    assert pair.directory.calls["resolve"] == asked + 1


def test_memory_of_a_dead_peer_is_let_go_without_another_push_to_it(pair: Pair) -> None:
    source = pair.source_cache()
    gc.collect()
    own = mapped()
    pair.target_cache()
    pair.manager.push_blocks(KEY, source, [0], [0])
    assert mapped() > own
    child(pair).kill()
    pair.manager.drop_dead_links()
    assert mapped() == own


def test_the_survivor_serves_others_after_a_death(pair: Pair) -> None:
    source, _ = pair.source_cache(), pair.target_cache()
    pair.manager.push_blocks(KEY, source, [0], [0])
    child(pair).kill()
    other = ChildPeer(33, pair.directory, pair.manager.settings)
    try:
        other.allocate(6, (24, 3, 50), "DT_INT8", 0)
        pair.manager.push_blocks(BlocksCacheKey(33, 0), source, [1], [1])
        assert other.read(1)[0][150:300] == source.numpy(0).reshape(24, 150)[1].tobytes()
    finally:
        other.close()


def test_a_restarted_peer_gets_the_next_push_without_a_restart_here(pair: Pair) -> None:
    source, _ = pair.source_cache(), pair.target_cache()
    pair.manager.push_blocks(KEY, source, [0], [0])
    child(pair).kill()
    with pytest.raises(PeerLost):
        pair.manager.push_blocks(KEY, source, [0], [0])
    again = ChildPeer(TARGET_ID, pair.directory, pair.manager.settings)
    try:
        again.allocate(6, (24, 3, 50), "DT_INT8", 0)
        pair.manager.push_blocks(KEY, source, [2], [2])
        assert again.read(1)[5][300:450] == source.numpy(5).reshape(24, 150)[2].tobytes()
    finally:
        again.close()


def test_a_route_to_a_replaced_incarnation_names_both(pair: Pair) -> None:
    pair.target_cache()
    stale = pair.directory.endpoints[TARGET_ID]
    pair.directory.endpoints[TARGET_ID] = type(stale)(
        **{field: getattr(stale, field) for field in stale.__slots__} | {"incarnation": 5}
    )
    with pytest.raises(StaleIncarnation, match=f"0000000000000005.*{stale.incarnation:016x}"):
        pair.manager.push_blocks(KEY, pair.source_cache(), [0], [0])


def test_registered_memory_is_not_given_back_under_a_stopped_writer(pair: Pair) -> None:
    """A stopped writer is not dead: unregistering waits, and says so when its time is over."""
    victim = child(pair)
    settings = pair.manager.settings.model_copy(update={"control_timeout_s": 0.3})
    local = LocalPeer(77, pair.directory, settings)
    cache_id = local.register(2, (8, 64), "DT_INT8", 0)
    info = local.manager.caches()[0]
    page = local.manager._identity.page
    link = page.claim_link(123, victim.pid)
    cell = page.begin(link, info.slot, info.generation, -1)
    assert cell >= 0
    with pytest.raises(TransferTimeout, match="still being used"):
        local.deallocate(cache_id)
    victim.kill()
    local.close()


def test_a_push_that_runs_while_the_target_frees_its_cache_never_reports_success_for_the_new_one(pair: Pair) -> None:
    source: Cache = pair.source_cache(SHAPE, 4)
    for _ in range(5):
        old = pair.target_cache(SHAPE, 4)
        transfers = [pair.manager.start_push(KEY, source, BLOCKS, BLOCKS) for _ in range(4)]
        time.sleep(0.01)
        pair.target.deallocate(old)
        new = pair.target_cache(SHAPE, 4, model_id=1)
        for transfer in transfers:
            try:
                receipt = transfer.wait(30)
                assert receipt.cache_id == old
            except CacheNotFound:
                pass
        assert (pair.target_bytes(new) == 0xEE).all()
        pair.target.deallocate(new)
