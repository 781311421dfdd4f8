"""Section 18: programs that test LLM-DataDist in one process, and the aid `install(absent_peers="loopback")`."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer, TransferConfig, TransferWithCacheKeyConfig
from ray_kvfabric.errors import LLMException, LLMStatusCode, NotLinked
from ray_kvfabric.integrations.llm_datadist import _options, _world, install
from tests.contract.conftest import deviates, invalid
from tests.contract.instances import OK, Instances, instances, manager_of, offer, reaches, texts
from tests.contract.world import MemoryWorld, content, describe, fill, memory_world

MIRRORS = _options.Options(emulated_device="host", absent_peers="loopback")
LINK_FAILED = LLMStatusCode.LLM_LINK_FAILED
UNLINK_FAILED = LLMStatusCode.LLM_UNLINK_FAILED
PAIR = {1: 0, 2: 1}


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


@pytest.fixture
def alone(llm_datadist: ModuleType) -> Iterator[Instances]:
    """A world in which absent peers are mirrors."""
    with memory_world(MIRRORS) as world, instances(llm_datadist, world) as made:
        yield made


@pytest.fixture
def strict(llm_datadist: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    """The usual world."""
    with instances(llm_datadist, world) as made:
        yield made


class TestCorners:
    """What clients' tests lean on, without any aid."""

    def test_comm_ids_are_1_then_2_after_each_init(self, alone: Instances) -> None:
        made = alone.make()
        for _ in range(2):
            made.init(texts())
            assert [made.link(name, PAIR, "{}") for name in ("one", "two")] == [1, 2]
            made.finalize()

    def test_a_link_s_status_is_ok(self, alone: Instances) -> None:
        made = alone.open()
        ok = alone.package.RegisterMemStatus.OK
        assert made.query_register_mem_status(made.link("name", PAIR, "{}")) is ok

    @pytest.mark.parametrize("placement", ["HOST", "DEVICE"])
    def test_a_pool_of_102428800_bytes(self, strict: Instances, placement: str) -> None:
        key = "llm.MemPoolConfig" if placement == "DEVICE" else "llm.HostMemPoolConfig"
        made = strict.make()
        made.init(texts() | {key: '{"memory_size": 102428800}'})
        made.cache_manager.allocate_blocks_cache(describe(2, (10, 1 << 20), placement=placement))

    def test_oneself_by_one_s_own_address(self, strict: Instances) -> None:
        made = strict.open(26001)
        assert made.link_clusters([strict.info(1, 26001)], 5000) == (OK, [OK])
        assert made.unlink_clusters([strict.info(1, 26001)], 5000) == (OK, [OK])

    def test_a_peer_that_was_never_linked(self, strict: Instances) -> None:
        strict.engine(2)
        assert strict.open().unlink_clusters([strict.info()]) == (OK, [OK])

    def test_nobody_listens(self, strict: Instances) -> None:
        """No exception."""
        made = strict.open()
        assert made.link_clusters([strict.info()]) == (LINK_FAILED, [LINK_FAILED])
        assert made.unlink_clusters([strict.info()]) == (UNLINK_FAILED, [UNLINK_FAILED])
        assert made.unlink_clusters([strict.info()], force=True) == (OK, [OK])

    def test_one_description_for_both_kinds_of_caches(self, strict: Instances) -> None:
        """Section 8.1: in the reference the second one becomes a blocks cache, too."""
        assert deviates("kind_of_the_verb").where == "both"
        manager = strict.open().cache_manager
        desc = describe()
        blocks, rows = manager.allocate_blocks_cache(desc), manager.allocate_cache(desc)
        again = manager.allocate_blocks_cache(desc)
        for made in (manager, manager._manager):  # either face
            made.copy_blocks(blocks, {0: [1]})
            made.copy_blocks(again, {0: [1]})
            made.copy_cache(rows, rows, 0, 1)
            with invalid("not a blocks cache"):
                made.copy_blocks(rows, {0: [1]})

    def test_device_caches_without_a_device(self, llm_datadist: ModuleType) -> None:
        assert deviates("device_caches_need_a_device")
        with memory_world(_options.Options()) as world, instances(llm_datadist, world) as made:
            manager = made.open().cache_manager
            for face in (manager, manager._manager):
                with invalid("emulated_device=host"):
                    face.allocate_blocks_cache(describe())
                assert face.register_blocks_cache(describe(1), [1]).cache_id
            peer = made.engine(2)
            made.package.LLMDataDist.llm_engine_instance.link_clusters([made.info()])
            far = manager_of(peer).allocate_blocks_cache(describe(2, placement="HOST"), BlocksCacheKey(0))
            bytes_here = np.zeros(far.cache_desc.size * 2, np.uint8)
            base = bytes_here.ctypes.data
            cache = manager.register_blocks_cache(describe(2), [base, base + far.cache_desc.size])
            for face in (manager, manager._manager):
                with invalid("device memory"):
                    face.push_blocks(BlocksCacheKey(2), cache, [0], [0])


class TestMirrors:
    def test_the_remote_caches_are_one_s_own(self, alone: Instances) -> None:
        """Those allocated after the link but before the first transfer included."""
        made = alone.open()
        assert made.link_clusters([alone.info()]) == (OK, [OK])
        source, target = offer(made, 5), offer(made, 0)
        fill(source, 1)
        made.cache_manager.push_blocks(BlocksCacheKey(2), source, [3], [4])
        assert (content(target)[:, 4] == content(source)[:, 3]).all()

    def test_a_cache_may_be_its_own_remote(self, alone: Instances) -> None:
        made = alone.open()
        made.link_clusters([alone.info()])
        cache = offer(made)
        fill(cache, 1)
        before = content(cache)
        made.cache_manager.pull_blocks(BlocksCacheKey(2), cache, [0, 1], [2, 3])
        after = content(cache)
        assert (after[:, 2:4] == before[:, 0:2]).all()
        assert (after[:, [0, 1, 4, 5, 6, 7]] == before[:, [0, 1, 4, 5, 6, 7]]).all()

    def test_an_id_of_0_is_the_cache_of_request_0(self, alone: Instances) -> None:
        manager = alone.open().cache_manager
        alone.package.LLMDataDist.llm_engine_instance.link_clusters([alone.info()])
        named = manager.allocate_cache(describe(), [CacheKey(1, 0, 0)])
        source = manager.allocate_cache(describe())
        fill(source, 1)
        manager.push_cache(CacheKeyByIdAndIndex(2, 0, 0), source, 3)
        assert (content(named)[:, 0] == content(source)[:, 3]).all()

    def test_rows_and_layers(self, alone: Instances) -> None:
        manager = alone.open().cache_manager
        alone.package.LLMDataDist.llm_engine_instance.link_clusters([alone.info()])
        source, target = manager.allocate_cache(describe()), manager.allocate_cache(describe())
        fill(source, 1)
        manager.pull_cache(CacheKeyByIdAndIndex(2, source.cache_id, 1), target, 2)
        assert (content(target)[:, 2] == content(source)[:, 1]).all()
        config = TransferWithCacheKeyConfig(CacheKeyByIdAndIndex(2, target.cache_id, 5), range(2), range(2), 6)
        assert manager.transfer_cache_async(source, Ready(), [config]).synchronize(10_000) is OK
        assert (content(target)[:, 5] == content(source)[:, 6]).all()

    def test_request_mode(self, alone: Instances) -> None:
        """Keys are used up by pulls of the mirror, too, and raw addresses are one's own."""
        made = alone.open(llm__EnableRemoteCacheAccessible="0")
        manager = made.cache_manager
        made.link_clusters([alone.info()])
        source = manager.allocate_cache(describe(), [CacheKey(1, 7)])
        target = manager.allocate_cache(describe())
        fill(source, 1)
        manager.pull_cache(CacheKey(2, 7), target)
        assert (content(target)[:, 0] == content(source)[:, 0]).all()
        with pytest.raises(LLMException) as caught:
            manager.pull_cache(CacheKey(2, 7), target)
        assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        config = TransferConfig(2, target.tensor_addrs, range(2), 3)
        assert manager.transfer_cache_async(source, Ready(), [config]).synchronize(10_000) is OK
        assert (content(target)[:, 0] == content(source)[:, 3]).all()

    def test_by_link(self, alone: Instances) -> None:
        made = alone.open()
        offer(made)
        comm_id = made.link("name", {1: 0, 2: 1, 3: 2}, "{}")
        assert reaches(made, 2)
        assert reaches(made, 3)
        assert not reaches(made, 4)
        assert not reaches(made, 1)
        made.unlink(comm_id)
        assert not reaches(made, 2)

    def test_without_a_link_there_is_no_mirror(self, alone: Instances) -> None:
        made = alone.open()
        with pytest.raises(NotLinked):
            made.cache_manager.push_blocks(BlocksCacheKey(2), offer(made), [0], [0])

    def test_links_are_kept_as_ever(self, alone: Instances) -> None:
        made = alone.open()
        already = LLMStatusCode.LLM_ALREADY_LINK
        made.link_clusters([alone.info()])
        assert made.link_clusters([alone.info()]) == (already, [already])
        with pytest.raises(LLMException, match="still linked"):
            made.switch_role(alone.package.LLMRole.DECODER)
        assert made.unlink_clusters([alone.info()]) == (OK, [OK])
        assert not reaches(made, 2)
        assert made.unlink_clusters([alone.info()]) == (OK, [OK])

    def test_arguments_are_checked_as_ever(self, alone: Instances) -> None:
        made = alone.open()
        info = alone.info()
        info.append_remote_ip_info("127.0.0.1", 1)
        param_invalid = LLMStatusCode.LLM_PARAM_INVALID
        assert made.link_clusters([info]) == (param_invalid, [param_invalid])

    def test_a_peer_that_is_there_is_no_mirror(self, alone: Instances) -> None:
        made, peer = alone.open(), alone.engine(2)
        made.link_clusters([alone.info()])
        cache = offer(made)
        with pytest.raises(LLMException) as caught:
            made.cache_manager.push_blocks(BlocksCacheKey(2), cache, [0], [0])
        assert caught.value.status_code is LLMStatusCode.LLM_KV_CACHE_NOT_EXIST
        offer(peer)
        assert reaches(made, 2)

    def test_hixl(self, alone: Instances) -> None:
        made = alone.open(llm__TransferBackend="hixl")
        offer(made)
        assert made.link_clusters([alone.info()]) == (OK, [OK])
        assert reaches(made, 2)


class TestInstall:
    def test_the_aid_is_asked_for_by_name(self, llm_datadist: ModuleType, world: MemoryWorld) -> None:
        """`install` may come after the engine: the links look at what was chosen last."""
        assert _world.current() is world
        with instances(llm_datadist, world) as cast:
            made = cast.open()
            assert made.link_clusters([cast.info()]) == (LINK_FAILED, [LINK_FAILED])
            install(absent_peers="loopback", emulated_device="host")
            assert made.link_clusters([cast.info()]) == (OK, [OK])
            install(emulated_device="host")
            assert made.link_clusters([cast.info(3, 26003)]) == (LINK_FAILED, [LINK_FAILED])

    def test_it_is_off_by_default(self, strict: Any) -> None:
        made = strict.open(llm__LinkTotalTime="1")
        assert made.link_clusters([strict.info()]) == (LINK_FAILED, [LINK_FAILED])
        with pytest.raises(LLMException) as caught:
            made.link("name", PAIR, "{}")
        assert caught.value.status_code is LINK_FAILED
