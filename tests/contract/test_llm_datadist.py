"""Sections 9.1 to 9.4, 9.11 and 18: the life of an LLMDataDist."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer, MemInfo, Memtype, TransferWithCacheKeyConfig
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException, LLMStatusCode, NotLinked, PeerLost
from tests.contract.conftest import deviates, invalid, python, refused, wrong_ints
from tests.contract.instances import Background, Hold, Instances, instances, manager_of, offer, reaches, texts
from tests.contract.world import MemoryWorld, content, describe, fill

FAILED = LLMStatusCode.LLM_FAILED
INVALID = LLMStatusCode.LLM_PARAM_INVALID


class Ready(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


@pytest.fixture
def cast(llm_datadist: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    with instances(llm_datadist, world) as made:
        yield made


def fails_with(code: LLMStatusCode, call: Callable[[], object]) -> None:
    with pytest.raises(LLMException) as caught:
        call()
    assert caught.value.status_code is code


class TestConstruction:
    """Section 9.1."""

    @pytest.mark.parametrize("role", [1, "MIX", 0])
    def test_a_role_is_an_llm_role(self, cast: Instances, role: object) -> None:
        with refused(TypeError, "role"):
            cast.package.LLMDataDist(role, 1)

    def test_a_role_of_none_fails_at_init(self, cast: Instances) -> None:
        made = cast.package.LLMDataDist(None, 1)
        with refused(KeyError):
            made.init(texts())

    def test_the_cluster_id_is_a_uint64(self, cast: Instances) -> None:
        for value, kind in wrong_ints("uint64"):
            with refused(kind, "cluster_id"):
                cast.make(value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("cluster_id", [0, 2**64 - 1])
    def test_the_cluster_id_is_known_at_any_time(self, cast: Instances, cluster_id: int) -> None:
        made = cast.make(cluster_id)
        assert made.cluster_id == cluster_id
        made.init(texts())
        assert made.cluster_id == cluster_id
        made.finalize()
        assert made.cluster_id == cluster_id


class TestOrderOfInit:
    """Section 9.2: whatever else is wrong too, the first check in this order answers."""

    def test_an_initialised_instance_returns_before_any_check(self, cast: Instances) -> None:
        made = cast.open()
        assert made.init("not even a dict") is None

    def test_another_instance_is_refused_before_the_options(self, cast: Instances) -> None:
        cast.open()
        other = cast.make(2)
        fails_with(FAILED, lambda: other.init("not even a dict"))
        assert cast.package.LLMDataDist.llm_engine_instance.cluster_id == 1

    def test_options_must_be_a_dict(self, cast: Instances) -> None:
        for options, kind in [([], TypeError), ("", TypeError), (None, AttributeError)]:
            with refused(kind, "options"):  # type: ignore[arg-type]
                cast.make().init(options)

    def test_the_options_one_after_another(self, cast: Instances) -> None:
        """All mistakes at once, each then mended; the last init succeeds: a failed one may be retried."""
        options: dict[str, Any] = {
            "ge.flowGraphMemMaxSize": "1.23",
            "llm.LocalCommRes": "",
            "llm.EnableCacheManager": "0",
            "llm.EnableRemoteCacheAccessible": "0",
            "llm.TransferBackend": "nothing",
            "ge.exec.deviceId": "0;1",
            "llm.MemPoolConfig": "{",
            "any": 1,
        }
        steps: list[tuple[str, type[Exception], dict[str, str]]] = [
            ("ge.flowGraphMemMaxSize", LLMException, {"ge.flowGraphMemMaxSize": "123"}),
            ("EnableCacheManager", LLMException, {"llm.EnableCacheManager": "1"}),
            ("EnableRemoteCacheAccessible", LLMException, {"llm.EnableRemoteCacheAccessible": "1"}),
            ("listenIpInfo", LLMException, {"llm.listenIpInfo": "127.0.0.1"}),
            ("listenIpInfo", LLMException, {"llm.listenIpInfo": "127.0.0.1:http"}),
            ("listenIpInfo", ValueError, {"llm.listenIpInfo": "127.0.0.1:26001"}),
            ("options", TypeError, {"any": "1"}),  # from here on the native half
            ("ge.exec.deviceId", LLMException, {"ge.exec.deviceId": "0"}),
            ("llm.TransferBackend", LLMException, {"llm.TransferBackend": "hixl"}),
            ("llm.MemPoolConfig", LLMException, {"llm.MemPoolConfig": '{"memory_size": 65536}'}),
        ]
        made = cast.make()
        for says, kind, mended in steps:
            with refused(kind, says):
                made.init(options)
            assert cast.package.LLMDataDist.llm_engine_instance is None
            with refused(RuntimeError, "not initialized"):
                _ = made.cache_manager
            options |= mended
        made.init(options)
        assert cast.package.LLMDataDist.llm_engine_instance is made

    def test_the_caller_s_options_stay_as_they_were(self, cast: Instances) -> None:
        options = {"llm.LocalCommRes": "", "llm.listenIpInfo": "127.0.0.1:26001"}
        given = dict(options)
        cast.make().init(options)
        assert options == given


class TestOptions:
    """Section 9.2, points 4 to 7."""

    @pytest.mark.parametrize("value", ["1,2", "1.23", "-1", "", "x"])
    def test_the_memory_size_is_one_number_in_digits(self, cast: Instances, value: str) -> None:
        with invalid("ge.flowGraphMemMaxSize"):
            cast.make().init(texts(ge__flowGraphMemMaxSize=value))

    def test_the_memory_size_is_a_text(self, cast: Instances) -> None:
        with refused(TypeError, "ge.flowGraphMemMaxSize"):
            cast.make().init(texts() | {"ge.flowGraphMemMaxSize": 1})

    def test_a_local_comm_res_implies_both_modes(self, cast: Instances) -> None:
        made = cast.make()
        made.init({"llm.LocalCommRes": "", "llm.MemPoolConfig": '{"memory_size": 262144}'})
        with pytest.raises(NotLinked):  # the option gate of push_blocks is behind us
            made.cache_manager.push_blocks(BlocksCacheKey(2), offer(made), [0], [0])

    def test_a_local_comm_res_allows_request_mode_when_told(self, cast: Instances) -> None:
        made = cast.open(llm__LocalCommRes="", llm__EnableRemoteCacheAccessible="0")
        with invalid("push_blocks needs enable_remote_cache_accessible"):
            made.cache_manager.push_blocks(BlocksCacheKey(2), offer(made), [0], [0])

    def test_a_backend_needs_the_cache_manager(self, cast: Instances) -> None:
        with invalid("EnableCacheManager"):
            cast.make().init({"llm.TransferBackend": "hixl", "llm.listenIpInfo": "127.0.0.1:26001"})

    def test_a_backend_implies_one_sided_mode(self, cast: Instances) -> None:
        made = cast.make()
        made.init({"llm.TransferBackend": "hixl", "llm.listenIpInfo": "127.0.0.1:26001", "llm.EnableCacheManager": "1"})
        assert made._engine_options["llm.EnableRemoteCacheAccessible"] == "1"

    @pytest.mark.parametrize("name", ["", "comm", "HIXL"])
    def test_another_backend_is_invalid(self, cast: Instances, name: str) -> None:
        with invalid("llm.TransferBackend"):
            cast.open(llm__TransferBackend=name)

    def test_listen_addresses_are_for_the_cache_manager(self, cast: Instances) -> None:
        """Without it v1 is asked, which is not there."""
        with pytest.raises(ModuleNotFoundError, match="llm_datadist_v1"):
            cast.make().init({"llm.listenIpInfo": "no address"})

    def test_what_init_adds(self, cast: Instances) -> None:
        made = cast.open(26001)
        added = {key: made._engine_options[key] for key in ("llm.Role", "llm.ListenIp", "llm.ListenPort")}
        assert added == {"llm.Role": "Mix", "llm.ListenIp": "16777343", "llm.ListenPort": "26001"}


POOLS = ["llm.MemPoolConfig", "llm.HostMemPoolConfig"]


class TestNativeInit:
    """Section 9.2, point 9, and the pools of section 6."""

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("llm.EnableRemoteCacheAccessible", "2"),
            ("llm.EnableRemoteCacheAccessible", ""),
            ("ge.exec.deviceId", "0;1"),
            ("ge.exec.deviceId", "x"),
            ("ge.exec.deviceId", str(2**31)),
            ("llm.SyncKvCacheWaitTime", "1s"),
            ("llm.SyncKvCacheWaitTime", "0"),
            ("llm.SyncKvCacheWaitTime", str(2**31)),
            ("llm.LinkTotalTime", str(2**31)),
            ("llm.LinkRetryCount", "0"),
            ("llm.LinkRetryCount", "101"),
        ],
    )
    def test_a_bad_value_is_named(self, cast: Instances, option: str, value: str) -> None:
        with invalid(option):
            cast.make().init(texts() | {option: value})

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("ge.exec.deviceId", str(2**31 - 1)),
            ("llm.SyncKvCacheWaitTime", "1"),
            ("llm.SyncKvCacheWaitTime", str(2**31 - 1)),
            ("llm.LinkTotalTime", "0"),
            ("llm.LinkTotalTime", str(2**31 - 1)),
            ("llm.LinkRetryCount", "100"),
        ],
    )
    def test_the_bounds_are_inside(self, cast: Instances, option: str, value: str) -> None:
        cast.make().init(texts() | {option: value})

    def test_nothing_but_the_cache_manager_has_to_be_given(self, cast: Instances) -> None:
        made = cast.make()
        made.init({"llm.EnableCacheManager": "1"})
        with invalid("remote_cache_accessible"):  # "0" when it is absent
            made.cache_manager.push_blocks(BlocksCacheKey(2), None, [0], [0])

    @pytest.mark.parametrize("option", POOLS)
    @pytest.mark.parametrize(
        "pool",
        [
            "",
            "{",
            "65536",
            '[{"memory_size": 65536}]',
            "{}",
            '{"memory_size": "65536"}',
            '{"memory_size": 65536.0}',
            '{"memory_size": -65536}',
            '{"memory_size": true}',
            '{"memory_size": 65535}',
            '{"memory_size": 65536, "page_shift": 17}',
            '{"memory_size": 65536, "page_shift": 9}',
            '{"memory_size": 4294967296, "page_shift": 31}',
            '{"memory_size": 65536, "page_shift": "16"}',
            f'{{"memory_size": {(2**32 - 1) << 10}, "page_shift": 10}}',
        ],
    )
    def test_a_bad_pool_is_named(self, cast: Instances, option: str, pool: str) -> None:
        with invalid(option):
            cast.make().init(texts() | {option: pool})

    @pytest.mark.parametrize("option", POOLS)
    @pytest.mark.parametrize(
        "pool",
        [
            '{"memory_size": 65536}',
            '{"memory_size": 102428800}',
            '{"memory_size": 1024, "page_shift": 10, "more": 1}',
            '{"memory_size": 1073741824, "page_shift": 30}',
            f'{{"memory_size": {(2**32 - 2) << 10}, "page_shift": 10}}',
        ],
    )
    def test_a_good_pool(self, cast: Instances, option: str, pool: str) -> None:
        cast.make().init(texts() | {option: pool})

    def test_an_ip_that_is_none(self, cast: Instances) -> None:
        with refused(RuntimeError, "host"):
            cast.make().init(texts() | {"llm.listenIpInfo": "host:26001"})

    def test_a_pool_larger_than_the_host_is_only_a_budget(self, cast: Instances) -> None:
        assert deviates("pools_fill_as_used")
        made = cast.open(llm__MemPoolConfig='{"memory_size": 4398046509056, "page_shift": 10}')
        made.cache_manager.allocate_blocks_cache(describe())

    def test_every_tensor_takes_whole_pages(self, cast: Instances) -> None:
        manager = cast.open(llm__MemPoolConfig='{"memory_size": 4096, "page_shift": 10}').cache_manager
        manager.allocate_blocks_cache(describe(4, (1, 1)))
        fails_with(LLMStatusCode.LLM_OUT_OF_MEMORY, lambda: manager.allocate_blocks_cache(describe(1, (1, 1))))

    def test_a_taken_listen_address_fails_and_another_may_be_tried(self, cast: Instances) -> None:
        assert deviates("listen_alias")
        cast.engine(2, 26002)
        made = cast.make()
        fails_with(FAILED, lambda: made.init(texts(26002)))
        made.init(texts(26003))
        assert reaches(made, 2) is False

    def test_a_listen_address_needs_no_port_of_the_host(self, cast: Instances) -> None:
        """Two ips of the same port do not exclude each other, and no ip must be this host's."""
        assert deviates("listen_alias")
        cast.open(llm__listenIpInfo="10.1.2.3:1")
        cast.engine(2, None, llm__listenIpInfo="10.1.2.4:1")

    def test_a_taken_cluster_id_fails(self, cast: Instances) -> None:
        assert deviates("cluster_id_taken")
        cast.engine(1)
        made = cast.make(1)
        fails_with(FAILED, lambda: made.init(texts()))
        assert cast.package.LLMDataDist.llm_engine_instance is None

    def test_options_that_choose_hardware_are_not_read(self, cast: Instances) -> None:
        assert deviates("unread_options")
        more = {
            "llm.RdmaTrafficClass": "x",
            "llm.RdmaServiceLevel": "x",
            "llm.LocalCommRes": "{",
            "llm.GlobalResourceConfig": "{",
            "llm.BufPoolCfg": "{",
        }
        cast.make().init(texts() | more)


class TestBeforeInit:
    @pytest.fixture(params=["never", "finalized"])
    def outside(self, request: pytest.FixtureRequest, cast: Instances) -> Any:
        """An LLMDataDist that is not initialised, or no more."""
        made = cast.make()
        if request.param == "finalized":
            made.init(texts())
            made.finalize()
        return made

    @pytest.mark.parametrize("name", ["cache_manager", "kv_cache_manager"])
    def test_properties_are_runtime_errors(self, outside: Any, name: str) -> None:
        with refused(RuntimeError, "not initialized"):
            getattr(outside, name)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("link_clusters", ["wrong", "too"]),
            ("unlink_clusters", ["wrong", "too"]),
            ("switch_role", ["wrong"]),
            ("check_link_status", ["wrong"]),
            ("link", [1, 2, 3]),
            ("unlink", ["wrong"]),
            ("query_register_mem_status", ["wrong"]),
        ],
    )
    def test_methods_are_runtime_errors_before_any_check(self, outside: Any, name: str, arguments: list[Any]) -> None:
        with refused(RuntimeError, "not initialized"):
            getattr(outside, name)(*arguments)

    def test_finalize_does_nothing(self, outside: Any) -> None:
        outside.finalize()
        outside.finalize()


class TestFinalize:
    """Section 9.3."""

    def test_the_same_instance_may_start_again(self, cast: Instances) -> None:
        made = cast.open()
        made.finalize()
        assert cast.package.LLMDataDist.llm_engine_instance is None
        made.init(texts())
        assert offer(made).cache_id == 1

    def test_another_instance_may_start(self, cast: Instances) -> None:
        cast.open(cluster_id=1).finalize()
        made = cast.open(cluster_id=1)
        assert cast.package.LLMDataDist.llm_engine_instance is made

    def test_cache_ids_start_at_1_again(self, cast: Instances) -> None:
        made = cast.open()
        assert [offer(made, model).cache_id for model in range(3)] == [1, 2, 3]
        made.finalize()
        made.init(texts())
        assert [offer(made, model).cache_id for model in range(3)] == [1, 2, 3]

    def test_links_are_gone(self, cast: Instances) -> None:
        made = cast.open()
        offer(cast.engine(2))
        made.link_clusters([cast.info(2)])
        assert reaches(made, 2)
        made.finalize()
        made.init(texts(26001))
        assert not reaches(made, 2)

    def test_the_pools_are_freed(self, cast: Instances) -> None:
        made = cast.open(llm__MemPoolConfig='{"memory_size": 262144}')
        cache = offer(made)
        made.finalize()
        assert cache.tensor_addrs == []
        made.init(texts(llm__MemPoolConfig='{"memory_size": 262144}'))
        offer(made)

    def test_the_listen_address_is_free_again(self, cast: Instances) -> None:
        cast.open(26001).finalize()
        cast.engine(2, 26001)

    def test_peers_find_nobody(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine(2)
        offer(made)
        made.link_clusters([cast.info(2)])
        assert reaches(peer, 1)
        made.finalize()
        assert not reaches(peer, 1)

    def test_a_call_that_is_inside_ends_first(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine(2)
        source, target = offer(made), offer(peer)
        fill(source, 1)
        wanted = content(source)[:, 0]
        made.link_clusters([cast.info(2)])
        hold = Hold(cast.world)
        push = Background(lambda: made.cache_manager.push_blocks(BlocksCacheKey(2), source, [0], [0]))
        assert hold.came.wait(5)
        end = Background(made.finalize)
        assert end.lasts(0.2)
        hold.release()
        push.result()
        end.result()
        assert (content(target)[:, 0] == wanted).all()

    @pytest.mark.parametrize("verb", ["push_cache", "pull_blocks", "pull_cache", "transfer_cache_async"])
    @pytest.mark.parametrize("end", ["finalize", "unlink"])
    def test_each_transfer_is_waited_for(self, cast: Instances, verb: str, end: str) -> None:
        made, peer = cast.open(), cast.engine(2)
        manager = made.cache_manager
        caches = SimpleNamespace(rows=manager.allocate_cache(describe()), blocks=offer(made))
        rows, _ = manager_of(peer).allocate_cache(describe()), offer(peer)
        assert rows.cache_id == 1
        made.link_clusters([cast.info(2)])
        hold = Hold(cast.world)
        call = Background(lambda: KEPT[verb](manager, caches))
        assert hold.came.wait(5)
        ends = Background(made.finalize if end == "finalize" else lambda: made.unlink_clusters([cast.info(2)], 5000))
        assert ends.lasts(0.2)
        hold.release()
        task = call.result()
        assert task is None or task.synchronize(10_000) is LLMStatusCode.LLM_SUCCESS
        ends.result()

    def test_a_link_that_is_being_made_ends_first(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine(2)
        ask, inside, go = cast.world.peers.ask, threading.Event(), threading.Event()

        def wait(*arguments: Any) -> Any:
            inside.set()
            assert go.wait(10)
            return ask(*arguments)

        cast.world.peers.ask = wait  # type: ignore[method-assign]
        link = Background(lambda: made.link_clusters([cast.info(2)]))
        assert inside.wait(5)
        end = Background(made.finalize)
        assert end.lasts(0.1)
        go.set()
        assert link.result()[0] is LLMStatusCode.LLM_SUCCESS
        end.result()
        assert not peer.manager._is_closed

    def test_a_role_that_is_being_switched_leaves_no_endpoint(self, cast: Instances) -> None:
        made = cast.open()
        announce, inside, go = cast.world.directory.announce, threading.Event(), threading.Event()

        def wait(*arguments: Any) -> None:
            inside.set()
            assert go.wait(10)
            announce(*arguments)

        cast.world.directory.announce = wait  # type: ignore[method-assign]
        switch = Background(lambda: made.switch_role(made._role, {"llm.listenIpInfo": "127.0.0.1:26009"}))
        assert inside.wait(5)
        end = Background(made.finalize)
        assert end.lasts(0.1)
        go.set()
        switch.result()
        end.result()
        assert cast.world.directory.endpoints == {}

    def test_a_link_that_waits_for_its_members_is_given_up(self, cast: Instances) -> None:
        made = cast.open(llm__LinkTotalTime="60")
        link = Background(lambda: made.link("name", {1: 0, 2: 1}, "{}"))
        assert link.lasts(0.1)
        made.finalize()
        fails_with(INVALID, link.result)

    def test_of_two_instances_that_start_at_once_one_does(self, cast: Instances) -> None:
        join, inside = cast.world.join, threading.Event()

        def slow(*arguments: Any) -> Any:
            inside.set()
            time.sleep(0.2)
            return join(*arguments)

        cast.world.join = slow  # type: ignore[method-assign]
        first, second = cast.make(1), cast.make(5)
        start = Background(lambda: first.init(texts()))
        assert inside.wait(5)
        fails_with(FAILED, lambda: second.init(texts()))
        start.result()
        assert list(cast.world.directory.endpoints) == [1]

    def test_another_instance_starts_when_the_first_has_left(self, cast: Instances) -> None:
        made, other = cast.open(), cast.make(5)
        with made._llm_datadist.calls.enter():
            end = Background(made.finalize)
            start = Background(lambda: other.init(texts()))
            assert start.lasts(0.1)
        end.result()
        start.result()
        assert list(cast.world.directory.endpoints) == [5]

    def test_no_call_enters_while_it_waits(self, cast: Instances) -> None:
        made = cast.open()
        manager, source = made.cache_manager, offer(made)
        offer(cast.engine(2))
        made.link_clusters([cast.info(2)])
        hold = Hold(cast.world)
        push = Background(lambda: manager.push_blocks(BlocksCacheKey(2), source, [0], [0]))
        assert hold.came.wait(5)
        end = Background(made.finalize)
        assert end.lasts(0.1)
        fails_with(INVALID, lambda: manager.copy_blocks(source, {0: [1]}))
        hold.release()
        push.result()
        end.result()

    def test_a_call_that_does_not_end_is_not_waited_for_forever(self, cast: Instances) -> None:
        assert deviates("bounded_waits")
        made = cast.open()
        with mock.patch.object(type(made._llm_datadist), "_patience", _no_patience), made._llm_datadist.calls.enter():
            fails_with(LLMStatusCode.LLM_TIMEOUT, made.finalize)
        assert cast.package.LLMDataDist.llm_engine_instance is None
        cast.open()  # cluster 1 has left

    def test_an_engine_that_ends_ends_a_link_that_waits(self, cast: Instances) -> None:
        """Nobody comes: it would wait for minutes."""
        made = cast.open(llm__LinkTotalTime="600")
        link = Background(lambda: made.link("name", {1: 0, 2: 1}, "{}"))
        assert link.lasts(0.1)
        made.finalize()
        with invalid("finalized"):
            link.result()


def _no_patience(_: object) -> Deadline:
    return Deadline.after(0.05)


KEPT: dict[str, Callable[[Any, Any], object]] = {
    "register_cache": lambda manager, _: manager.register_cache(describe(1), [1]),
    "register_blocks_cache": lambda manager, _: manager.register_blocks_cache(describe(1), [1]),
    "unregister_cache": lambda manager, _: manager.unregister_cache(1),
    "allocate_cache": lambda manager, _: manager.allocate_cache(describe()),
    "allocate_blocks_cache": lambda manager, _: manager.allocate_blocks_cache(describe()),
    "deallocate_cache": lambda manager, caches: manager.deallocate_cache(caches.rows),
    "deallocate_blocks_cache": lambda manager, caches: manager.deallocate_blocks_cache(caches.blocks),
    "remove_cache_key": lambda manager, _: manager.remove_cache_key(CacheKey(1, 1)),
    "remap_registered_memory": lambda manager, _: manager.remap_registered_memory(
        MemInfo(Memtype.MEM_TYPE_DEVICE, 1, 1)
    ),
    "copy_cache": lambda manager, caches: manager.copy_cache(caches.rows, caches.rows),
    "copy_blocks": lambda manager, caches: manager.copy_blocks(caches.blocks, {0: [1]}),
    "swap_blocks": lambda manager, caches: manager.swap_blocks(caches.blocks, caches.blocks, {0: 1}),
    "push_blocks": lambda manager, caches: manager.push_blocks(BlocksCacheKey(2), caches.blocks, [0], [0]),
    "push_cache": lambda manager, caches: manager.push_cache(CacheKeyByIdAndIndex(2, 1), caches.rows),
    "pull_blocks": lambda manager, caches: manager.pull_blocks(BlocksCacheKey(2), caches.blocks, [0], [0]),
    "pull_cache": lambda manager, caches: manager.pull_cache(CacheKeyByIdAndIndex(2, 1), caches.rows),
    "transfer_cache_async": lambda manager, caches: manager.transfer_cache_async(
        caches.blocks, Ready(), [TransferWithCacheKeyConfig(BlocksCacheKey(2), range(1), range(1))], [0], [0]
    ),
}


class TestKeptManager:
    """Section 9.3: a CacheManager that outlives its LLMDataDist."""

    @pytest.mark.parametrize("verb", KEPT)
    def test_every_verb_is_refused(self, cast: Instances, verb: str) -> None:
        made = cast.open()
        manager = made.cache_manager
        caches = SimpleNamespace(
            rows=manager.allocate_cache(describe()), blocks=manager.allocate_blocks_cache(describe())
        )
        made.finalize()
        code = FAILED if verb in ("register_cache", "register_blocks_cache", "unregister_cache") else INVALID
        fails_with(code, lambda: KEPT[verb](manager, caches))

    def test_that_it_has_ended_is_said_before_what_is_wrong_with_the_arguments(self, cast: Instances) -> None:
        assert deviates("finalized_before_arguments")
        made = cast.open()
        kept = made.cache_manager
        made.finalize()
        fails_with(FAILED, lambda: kept.register_cache("desc", [1]))
        fails_with(INVALID, lambda: kept.copy_blocks(1, None))

    def test_no_verb_is_left_out(self, cast: Instances) -> None:
        verbs = {name for name in vars(type(cast.open().cache_manager)) if not name.startswith("_")}
        assert verbs == set(KEPT)

    def test_a_later_engine_does_not_bring_it_back(self, cast: Instances) -> None:
        made = cast.open()
        kept = made.cache_manager
        made.finalize()
        made.init(texts())
        assert made.cache_manager is not kept
        fails_with(INVALID, lambda: kept.allocate_blocks_cache(describe()))


class TestProperties:
    """Sections 9.4 and 9.11."""

    def test_the_cache_manager_is_one_object(self, cast: Instances) -> None:
        made = cast.open()
        assert made.cache_manager is made.cache_manager
        assert type(made.cache_manager) is cast.package.v2.cache_manager.CacheManager

    def test_the_v1_manager_is_invalid_in_this_mode(self, cast: Instances) -> None:
        with invalid("kv_cache_manager"):
            _ = cast.open().kv_cache_manager

    @pytest.mark.parametrize("cluster_id", [2, "wrong"])
    def test_check_link_status_is_invalid_in_this_mode(self, cast: Instances, cluster_id: object) -> None:
        with invalid("check_link_status"):
            cast.open().check_link_status(cluster_id)


class TestAtExit:
    """Section 18."""

    @pytest.fixture
    def handler(self, cast: Instances) -> Any:
        return cast.package.v2.llm_datadist._shutdown_handler

    def test_it_finalizes_and_clears_the_instance(self, cast: Instances, handler: Any) -> None:
        made = cast.open()
        handler()
        assert cast.package.LLMDataDist.llm_engine_instance is None
        with refused(RuntimeError):
            _ = made.cache_manager

    def test_it_is_quiet_without_an_instance(self, handler: Any) -> None:
        handler()
        handler()

    def test_it_swallows_an_llm_exception(self, cast: Instances, handler: Any) -> None:
        made = cast.open()
        with (
            mock.patch.object(made, "finalize", side_effect=PeerLost("gone")),
            mock.patch.object(cast.package.utils.log, "warning") as warning,
        ):
            handler()
        warning.assert_called_once()
        assert cast.package.LLMDataDist.llm_engine_instance is None
        made.finalize()

    def test_it_passes_another_error_on(self, cast: Instances, handler: Any) -> None:
        made = cast.open()
        with mock.patch.object(made, "finalize", side_effect=ZeroDivisionError), refused(ZeroDivisionError):
            handler()

    def test_the_interpreter_s_end_finalizes(self) -> None:
        """The printing handler was registered first, so it runs last."""
        assert deviates("exit_handler_at_init")
        told = python(
            "import atexit\n"
            "from ray_kvfabric.integrations.llm_datadist import LLMDataDist, LLMRole\n"
            "from tests.contract.world import memory_world\n"
            "context = memory_world()\n"
            "world = context.__enter__()\n"
            "atexit.register(lambda: print(LLMDataDist.llm_engine_instance, world.directory.endpoints))\n"
            "engine = LLMDataDist(LLMRole.MIX, 1)\n"
            "engine.init({'llm.EnableCacheManager': '1'})\n"
            "print(sorted(world.directory.endpoints))\n"
        )
        assert told.splitlines() == ["[1]", "None {}"]


class FakeV1:
    """What stands under the name llm_datadist_v1."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        self.module: Any = ModuleType("llm_datadist_v1")
        self.module.llm_wrapper = self
        self.module.KvCacheManager = FakeV1Manager

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return self.answers.get(name, 0)

        return call


class FakeV1Manager:
    def __init__(self, wrapper: FakeV1, role: Any) -> None:
        self.wrapper = wrapper
        self.role = role
        self._initialized = True

    def _switch_role(self, role: Any) -> None:
        self.role = role


class TestV1:
    """Sections 9.2.8, 16 and 18: without cache-manager mode, what stands under the name llm_datadist_v1 runs."""

    @pytest.fixture
    def v1(self, monkeypatch: pytest.MonkeyPatch) -> FakeV1:
        fake = FakeV1()
        monkeypatch.setitem(sys.modules, "llm_datadist_v1", fake.module)
        return fake

    @pytest.fixture
    def made(self, cast: Instances, v1: FakeV1) -> Any:
        made = cast.package.LLMDataDist(cast.package.LLMRole.PROMPT, 1)
        made.init({"llm.listenIpInfo": "1.2.3.4:26000"})
        return made

    def test_without_it_init_is_an_import_error_and_may_be_retried(self, cast: Instances) -> None:
        made = cast.make()
        with pytest.raises(ModuleNotFoundError, match="llm_datadist_v1"):
            made.init({})
        assert cast.package.LLMDataDist.llm_engine_instance is None
        made.init(texts())

    @pytest.mark.parametrize("value", ["0", "2", ""])
    def test_only_a_1_is_cache_manager_mode(self, cast: Instances, value: str) -> None:
        with pytest.raises(ModuleNotFoundError, match="llm_datadist_v1"):
            cast.open(llm__EnableCacheManager=value)

    def test_init_gives_it_the_options(self, made: Any, v1: FakeV1) -> None:
        (name, cluster_id, options) = v1.calls[0]
        assert (name, cluster_id) == ("initialize", 1)
        assert options["llm.Role"] == "Prompt"
        assert '"ip": 67305985, "port": 26000' in options["llm.ClusterInfo"]

    def test_a_failed_init_shows_its_code(self, cast: Instances, v1: FakeV1) -> None:
        v1.answers["initialize"] = int(LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY)
        made = cast.make()
        fails_with(LLMStatusCode.LLM_DEVICE_OUT_OF_MEMORY, lambda: made.init({}))
        with refused(RuntimeError, "not initialized"):
            _ = made.kv_cache_manager

    def test_its_manager_is_handed_out(self, made: Any, v1: FakeV1) -> None:
        assert isinstance(made.kv_cache_manager, FakeV1Manager)
        assert made.kv_cache_manager.wrapper is v1

    def test_what_needs_the_cache_manager_is_invalid(self, made: Any) -> None:
        for call in (
            lambda: made.cache_manager,
            lambda: made.link("name", {1: 0, 2: 1}, ""),
            lambda: made.unlink("wrong"),
            lambda: made.query_register_mem_status("wrong"),
        ):
            with invalid("EnableCacheManager"):
                call()

    def test_link_clusters_needs_no_local_address(self, made: Any, v1: FakeV1, cast: Instances) -> None:
        info = cast.package.LLMClusterInfo()
        info.remote_cluster_id = 2
        info.append_remote_ip_info("1.2.3.4", 26002)
        v1.answers["link_clusters"] = (int(LLMStatusCode.LLM_LINK_FAILED), [int(LLMStatusCode.LLM_LINK_FAILED)])
        failed = LLMStatusCode.LLM_LINK_FAILED
        assert made.link_clusters([info], 100) == (failed, [failed])
        assert v1.calls[-1] == ("link_clusters", [(2, 0, [], [(67305985, 26002)])], 100)

    def test_unlink_clusters(self, made: Any, v1: FakeV1, cast: Instances) -> None:
        v1.answers["unlink_clusters"] = (0, [0])
        success = LLMStatusCode.LLM_SUCCESS
        assert made.unlink_clusters([cast.info(2)], 100, True) == (success, [success])
        assert v1.calls[-1][2:] == (100, True)

    def test_check_link_status(self, made: Any, v1: FakeV1) -> None:
        made.check_link_status(2)
        assert v1.calls[-1] == ("check_link_status", 2)
        v1.answers["check_link_status"] = int(LLMStatusCode.LLM_NOT_YET_LINK)
        fails_with(LLMStatusCode.LLM_NOT_YET_LINK, lambda: made.check_link_status(2))

    def test_a_role_is_switched_to_another_only(self, made: Any, v1: FakeV1, cast: Instances) -> None:
        role = cast.package.LLMRole
        with invalid("role"):
            made.switch_role(role.PROMPT)
        made.switch_role(role.DECODER)
        assert v1.calls[-1] == ("switch_role", "Decoder", {})
        assert made.kv_cache_manager.role is role.DECODER
        with invalid("llm.listenIpInfo"):
            made.switch_role(role.PROMPT, {})
        made.switch_role(role.PROMPT, {"llm.listenIpInfo": "1.2.3.4:26001"})
        assert v1.calls[-1][2]["llm.ListenPort"] == "26001"

    def test_finalize_ends_it(self, made: Any, v1: FakeV1, cast: Instances) -> None:
        manager = made.kv_cache_manager
        made.finalize()
        assert v1.calls[-1] == ("finalize",)
        assert not manager._initialized
        assert cast.package.LLMDataDist.llm_engine_instance is None


class TestPrivateNames:
    """Section 18: what clients' tests reach for."""

    def test_the_class_has_the_instance(self, cast: Instances) -> None:
        assert cast.package.LLMDataDist.llm_engine_instance is None
        made = cast.open()
        assert cast.package.LLMDataDist.llm_engine_instance is made

    def test_the_roles_texts(self, cast: Instances) -> None:
        role = cast.package.LLMRole
        made = cast.make()
        assert [made._role_to_str(each) for each in role] == ["Prompt", "Decoder", "Mix"]

    def test_before_and_after_init(self, cast: Instances) -> None:
        made = cast.make()
        assert (made._is_initialized, made._enable_cache_mgr, made._enable_local_comm_res) == (False, False, False)
        assert (made._llm_datadist, made._kv_cache_manager, made._engine_options) == (None, None, {})
        made.init(texts(llm__LocalCommRes=""))
        assert (made._is_initialized, made._enable_cache_mgr, made._enable_local_comm_res) == (True, True, True)
        assert made._llm_datadist is not None
        assert made._kv_cache_manager is None
        assert made._engine_options["llm.Role"] == "Mix"
        assert made._role is cast.package.LLMRole.MIX

    def test_the_engine_config_can_be_patched(self, cast: Instances) -> None:
        made = cast.open()
        with mock.patch("llm_datadist.v2.llm_datadist.EngineConfig") as patched:
            patched.from_engine_options.return_value.cluster_config = "patched"
            assert made._cluster_config() == "patched"

    def test_the_engine_config_is_that_of_the_last_init(self, cast: Instances) -> None:
        made = cast.open(llm__ClusterInfo='{"cluster_id": 7}')
        assert made._cluster_config() == {"cluster_id": 7}
        made.finalize()
        made.init(texts(llm__ClusterInfo='{"cluster_id": 8}'))
        assert made._cluster_config() == {"cluster_id": 8}

    def test_a_config_s_flag_may_be_written(self, cast: Instances) -> None:
        config = cast.package.LlmConfig()
        config._enable_remote_cache_accessible = True
        assert config.generate_options()["llm.EnableRemoteCacheAccessible"] == "1"


class TestCorners:
    """Section 18."""

    @pytest.mark.parametrize("placement", ["DEVICE", "HOST"])
    def test_address_1_may_be_registered(self, cast: Instances, placement: str) -> None:
        manager = cast.open().cache_manager
        assert manager.register_cache(describe(1, placement=placement), [1]).cache_id == 1
        assert manager.register_blocks_cache(describe(1, placement=placement), [1]).cache_id == 2

    def test_a_manager_of_an_engine_is_that_of_an_instance(self, cast: Instances) -> None:
        assert type(manager_of(cast.engine(2))) is type(cast.open().cache_manager)
