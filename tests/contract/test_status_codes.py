"""Section 4.1: who answers with which code. Every member is either produced here or cannot be, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.testing.peer import ChildPeer
from tests.contract.conftest import deviates
from tests.contract.instances import Instances, instances, offer
from tests.contract.world import Ends, MemoryWorld, describe

KEY = BlocksCacheKey(2)


@pytest.fixture
def cast(llm_datadist: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    with instances(llm_datadist, world) as made:
        yield made


def code_of(call: Callable[[], object]) -> LLMStatusCode:
    with pytest.raises(LLMException) as caught:
        call()
    return caught.value.status_code


def linked(ends: Ends, **options: Any) -> tuple[Any, Any]:
    """Two managers that may transfer; the far one has the blocks cache that KEY names."""
    near, far = ends.open(1, **options), ends.open(2, **options)
    ends.link(near, far)
    far.manager.allocate_blocks_cache(describe(), KEY)
    return near.manager, near.manager.allocate_blocks_cache(describe())


# ---- either face: by a manager ---------------------------------------------------------------------


def a_taken_cluster_id(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    ends.open(1)
    return code_of(lambda: ends.open(1))


def an_unknown_key(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, cache = linked(ends)
    return code_of(lambda: near.push_blocks(BlocksCacheKey(2, 9), cache, [0], [0]))


def a_freed_cache(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, cache = linked(ends)
    near.deallocate_blocks_cache(cache)
    return code_of(lambda: near.push_blocks(KEY, cache, [0], [0]))


def no_blocks(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, cache = linked(ends)
    return code_of(lambda: near.push_blocks(KEY, cache))


def a_cluster_that_is_not_linked(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, cache = linked(ends)
    return code_of(lambda: near.push_blocks(BlocksCacheKey(3), cache, [0], [0]))


def host_to_host_by_request(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, far = ends.open(1, one_sided=False), ends.open(2, one_sided=False)
    ends.link(near, far)
    far.manager.allocate_blocks_cache(describe(placement="HOST"), KEY)
    target = near.manager.allocate_blocks_cache(describe(placement="HOST"))
    return code_of(lambda: near.manager.pull_blocks(KEY, target, [0], [0]))


def nothing_to_deallocate_from(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    manager = ends.open(1, device_pool=False, host_pool=False).manager
    cache = manager.register_blocks_cache(describe(1), [1])
    return code_of(lambda: manager.deallocate_blocks_cache(cache))


def a_time_limit_that_passes(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    near, cache = linked(ends, **{"llm.SyncKvCacheWaitTime": "1"})
    resolve = world.directory.resolve
    world.directory.resolve = lambda *arguments: time.sleep(0.02) or resolve(*arguments)  # type: ignore
    return code_of(lambda: near.push_blocks(KEY, cache, [0], [0]))


def a_pool_that_is_used_up(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    manager = ends.open(1).manager
    return code_of(lambda: manager.allocate_blocks_cache(describe(1, (1, 1 << 25))))


def a_peer_that_dies(ends: Ends, world: MemoryWorld) -> LLMStatusCode:
    """Killed after a push had opened the way to it."""
    assert deviates("dead_peer_code")
    near = ends.open(1)
    peer = ChildPeer(2, world.directory)
    try:
        peer.allocate(4, (8, 16), "DT_INT8", 0)
        if near.engine is not None:
            near.engine.links.add(2)
        cache = near.manager.allocate_blocks_cache(describe())
        near.manager.push_blocks(KEY, cache, [0], [0])
        peer.kill()
        code = code_of(lambda: near.manager.push_blocks(KEY, cache, [0], [0]))
        del world.directory.endpoints[2]  # as the fabric's scheduler does when it learns of it
        assert code_of(lambda: near.manager.push_blocks(KEY, cache, [0], [0])) is LLMStatusCode.LLM_NOT_YET_LINK
        return code
    finally:
        peer.close()


BY_A_MANAGER = [
    ("LLM_FAILED", a_taken_cluster_id),
    ("LLM_KV_CACHE_NOT_EXIST", an_unknown_key),
    ("LLM_KV_CACHE_NOT_EXIST", a_freed_cache),
    ("LLM_PARAM_INVALID", no_blocks),
    ("LLM_NOT_YET_LINK", a_cluster_that_is_not_linked),
    ("LLM_FEATURE_NOT_ENABLED", host_to_host_by_request),
    ("LLM_FEATURE_NOT_ENABLED", nothing_to_deallocate_from),
    ("LLM_TIMEOUT", a_time_limit_that_passes),
    ("LLM_OUT_OF_MEMORY", a_pool_that_is_used_up),
    ("LLM_SUSPECT_REMOTE_ERROR", a_peer_that_dies),
]


# ---- the drop-in: by an LLMDataDist ----------------------------------------------------------------


def a_link(cast: Instances) -> LLMStatusCode:
    cast.engine(2)
    return cast.open().link_clusters([cast.info()])[0]


def a_second_instance(cast: Instances) -> LLMStatusCode:
    cast.open()
    return code_of(lambda: cast.open(26003, 3))


def a_second_link(cast: Instances) -> LLMStatusCode:
    cast.engine(2)
    made = cast.open()
    made.link_clusters([cast.info()])
    return made.link_clusters([cast.info()])[0]


def a_link_to_nobody(cast: Instances) -> LLMStatusCode:
    return cast.open().link_clusters([cast.info()])[0]


def a_communicator_of_one(cast: Instances) -> LLMStatusCode:
    made = cast.open(llm__LinkTotalTime="1")
    return code_of(lambda: made.link("name", {1: 0, 2: 1}, ""))


def an_unlink_from_nobody(cast: Instances) -> LLMStatusCode:
    return cast.open().unlink_clusters([cast.info()])[0]


def a_role_while_linked(cast: Instances) -> LLMStatusCode:
    cast.engine(2)
    made = cast.open()
    made.link_clusters([cast.info()])
    return code_of(lambda: made.switch_role(cast.package.LLMRole.DECODER))


def an_unknown_communicator(cast: Instances) -> LLMStatusCode:
    return code_of(lambda: cast.open().unlink(1))


def a_communicator_with_hixl(cast: Instances) -> LLMStatusCode:
    made = cast.open(llm__TransferBackend="hixl")
    return code_of(lambda: made.link("name", {1: 0, 2: 1}, ""))


def a_manager_that_was_finalized(cast: Instances) -> LLMStatusCode:
    made = cast.open()
    manager = made.cache_manager
    made.finalize()
    return code_of(lambda: manager.allocate_blocks_cache(describe()))


def a_registration_after_finalize(cast: Instances) -> LLMStatusCode:
    made = cast.open()
    manager = made.cache_manager
    made.finalize()
    return code_of(lambda: manager.register_blocks_cache(describe(1), [1]))


BY_AN_INSTANCE = [
    ("LLM_SUCCESS", a_link),
    ("LLM_FAILED", a_second_instance),
    ("LLM_FAILED", a_registration_after_finalize),
    ("LLM_PARAM_INVALID", a_manager_that_was_finalized),
    ("LLM_NOT_YET_LINK", an_unknown_communicator),
    ("LLM_ALREADY_LINK", a_second_link),
    ("LLM_LINK_FAILED", a_link_to_nobody),
    ("LLM_LINK_FAILED", a_communicator_of_one),
    ("LLM_UNLINK_FAILED", an_unlink_from_nobody),
    ("LLM_EXIST_LINK", a_role_while_linked),
    ("LLM_FEATURE_NOT_ENABLED", a_communicator_with_hixl),
]

_NEVER = "no method of v2 returns it"
CANNOT_BE = {
    "LLM_WAIT_PROCESS_TIMEOUT": "of the v1 engine; a transfer of v2 answers LLM_TIMEOUT",
    "LLM_REPEAT_REQUEST": _NEVER,
    "LLM_REQUEST_ALREADY_COMPLETED": _NEVER,
    "LLM_ENGINE_FINALIZED": "a finalized engine answers LLM_PARAM_INVALID or LLM_FAILED (9.3)",
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": _NEVER,
    "LLM_CLUSTER_NUM_EXCEED_LIMIT": "the limit of 16 clusters a call is written about, not enforced (section 5)",
    "LLM_PROCESSING_LINK": _NEVER,
    "LLM_DEVICE_OUT_OF_MEMORY": "a pool that is used up answers LLM_OUT_OF_MEMORY",
    "LLM_PREFIX_ALREADY_EXIST": _NEVER,
    "LLM_PREFIX_NOT_EXIST": "an unknown prefix answers LLM_KV_CACHE_NOT_EXIST (10.2)",
    "LLM_SEQ_LENOVERLIMIT": _NEVER,
    "LLM_NO_FREE_BLOCK": _NEVER,
    "LLM_BLOCKS_OUT_OF_MEMORY": _NEVER,
    "LLM_LINK_BUSY": "calls on one link wait for each other (10.4)",
    "LLM_DEVICE_MEM_ERROR": "passed through from the device's runtime, which has no part here",
    "LLM_UNKNOWN_ERROR": _NEVER,
}


@pytest.mark.parametrize(("code", "produce"), BY_A_MANAGER, ids=lambda value: getattr(value, "__name__", str(value)))
def test_by_a_manager(
    ends: Ends, world: MemoryWorld, code: str, produce: Callable[[Ends, MemoryWorld], LLMStatusCode]
) -> None:
    assert produce(ends, world) is LLMStatusCode[code]


@pytest.mark.parametrize(("code", "produce"), BY_AN_INSTANCE, ids=lambda value: getattr(value, "__name__", str(value)))
def test_by_an_instance(cast: Instances, code: str, produce: Callable[[Instances], LLMStatusCode]) -> None:
    assert produce(cast) is LLMStatusCode[code]


def test_every_code_is_produced_or_cannot_be() -> None:
    produced = {code for code, _ in [*BY_A_MANAGER, *BY_AN_INSTANCE]}
    assert produced & set(CANNOT_BE) == set()
    assert produced | set(CANNOT_BE) == {code.name for code in LLMStatusCode}


class TestTexts:
    """Section 3.1."""

    def test_a_refusal_names_the_fields_of_both_sides(self, ends: Ends) -> None:
        assert deviates("refusal_texts")
        near, _ = linked(ends)
        other = near.allocate_blocks_cache(describe(shape=(8, 32)))
        with pytest.raises(LLMException) as caught:
            near.push_blocks(KEY, other, [0], [0])
        text = str(caught.value)
        assert not text.startswith("[")
        assert "LLMStatusCode" not in text
        assert f"cache {other.cache_id} of endpoint 1" in text
        assert "cache 1 of endpoint 2" in text
        assert "16" in text
        assert "32" in text

    def test_a_code_that_is_no_member_is_llm_failed(self, llm_datadist: Any) -> None:
        assert llm_datadist.status.code_2_status(0x5010B0FF) is LLMStatusCode.LLM_FAILED
        assert llm_datadist.status.code_2_status(507057) is LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR


class TestCodesOfTasks:
    def test_a_task_shows_the_code_of_what_failed(self, ends: Ends, llm_datadist: Any) -> None:
        near, cache = linked(ends)
        config = llm_datadist.TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(3, 1), range(1), range(1))

        class Ready(llm_datadist.LayerSynchronizer):  # type: ignore[misc]
            def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
                return True

        task = near.transfer_cache_async(cache, Ready(), [config])
        assert task.synchronize(10_000) is LLMStatusCode.LLM_NOT_YET_LINK
        assert task.get_results(10_000) == [LLMStatusCode.LLM_NOT_YET_LINK]


def test_a_code_in_a_tuple_is_a_member(cast: Instances) -> None:
    """Programs compare with `is`."""
    made = cast.open()
    cast.engine(2)
    overall, each = made.link_clusters([cast.info()])
    assert type(overall) is type(each[0]) is LLMStatusCode
    offer(made)
