"""Section 5: every limit that LLM-DataDist enforces, and those that it only writes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.integrations.llm_datadist import _limits, _options
from ray_kvfabric.integrations.llm_datadist._engine_options import parse_options
from ray_kvfabric.transport import _shared_page as shared_page
from tests.contract.conftest import deviates, invalid, refused
from tests.contract.instances import OK, Instances, instances
from tests.contract.moves import answers
from tests.contract.world import Ends, MemoryWorld, describe, memory_world

UNSET = 2**64 - 1
FULL_TABLE_TENSORS = 131_061  # 24 + 64 + 8 * this is 1 MiB
TABLE_TENSORS = 1013  # and this 8 KiB
ENTRY = 8  # a cache without its tensors takes the room of eight
KEY = BlocksCacheKey(2)
ROW = CacheKeyByIdAndIndex(2, 1)


@pytest.fixture
def cast(llm_datadist: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    with instances(llm_datadist, world) as made:
        yield made


@pytest.fixture
def mirrored(llm_datadist: ModuleType) -> Iterator[Instances]:
    """Any number of peers: those that are absent are mirrors."""
    aids = _options.Options(emulated_device="host", absent_peers="loopback")
    with memory_world(aids) as world, instances(llm_datadist, world) as made:
        yield made


class TestShapes:
    """Both faces: what describes a cache."""

    @pytest.mark.parametrize("verb", ["register_cache", "register_blocks_cache"])
    def test_rank_1_to_31_and_dimensions_from_1(self, ends: Ends, verb: str) -> None:
        register = getattr(ends.open(1).manager, verb)
        for rank in (1, 31):
            register(describe(1, (1,) * rank), [1])
        for shape in [(1,) * 32, (1, 0), (0,), (1, -1), (2**62, 2), (2**63 - 1, 1, 2)]:
            with invalid("shape" if len(shape) == 32 else "cache_desc"):
                register(describe(1, shape), [1])

    def test_bytes_fit_an_int64(self, ends: Ends) -> None:
        manager = ends.open(1).manager
        manager.register_cache(describe(1, (2**63 - 2,)), [1])
        with invalid("cache_desc"):
            manager.register_cache(describe(1, (2**62,), "DT_FLOAT16"), [1])

    @pytest.mark.parametrize("verb", ["allocate_cache", "allocate_blocks_cache"])
    def test_an_allocation_has_tensors_and_a_shape(self, ends: Ends, verb: str) -> None:
        allocate = getattr(ends.open(1).manager, verb)
        with invalid("num_tensors"):
            allocate(describe(0))
        for shape in [(1,) * 32, (1, 0)]:
            with invalid():
                allocate(describe(1, shape))

    def test_an_allocation_has_no_more_keys_than_rows(self, ends: Ends) -> None:
        manager = ends.open(1).manager
        keys = [CacheKey(0, req_id) for req_id in range(9)]
        manager.allocate_cache(describe(), keys[:8])
        manager.unregister_cache(1)
        with invalid("cache_keys"):
            manager.allocate_cache(describe(), keys)
        manager.register_cache(describe(1), [1], keys)  # only allocations are checked

    def test_num_tensors_is_a_uint32(self) -> None:
        assert describe(2**32 - 1).num_tensors == 2**32 - 1
        for value in (2**32, -1):
            with refused(ValueError, "num_tensors"):
                describe(value)


class TestCounts:
    def test_an_endpoint_holds_so_many_caches(self, ends: Ends) -> None:
        assert deviates("cache_slots").ours.startswith(f"an endpoint holds {shared_page.SLOTS} caches")
        manager = ends.open(1).manager
        native = manager if ends.face == "native" else manager._manager
        for _ in range(shared_page.SLOTS - 1):
            native._caches._page.publish_slot()  # as each cache does
        manager.register_cache(describe(1), [1])
        with pytest.raises(LLMException) as caught:
            manager.register_cache(describe(1), [1])
        assert caught.value.status_code is LLMStatusCode.LLM_FAILED
        manager.unregister_cache(1)
        manager.register_cache(describe(1), [1])

    def test_more_addresses_than_the_240_of_the_docs(self, ends: Ends) -> None:
        ends.open(1).manager.register_cache(describe(241), list(range(1, 242)))

    def test_more_clusters_a_call_than_the_16_of_the_docs(self, cast: Instances) -> None:
        made = cast.open()
        infos = []
        for cluster_id in range(2, 22):
            cast.engine(cluster_id, 26000 + cluster_id)
            infos.append(cast.info(cluster_id, 26000 + cluster_id))
        assert made.link_clusters(infos) == (OK, [OK] * 20)
        assert made.unlink_clusters(infos) == (OK, [OK] * 20)

    @pytest.mark.parametrize("one_sided", ["0", "1"])
    def test_any_number_of_clusters_may_be_linked(self, mirrored: Instances, one_sided: str) -> None:
        assert deviates("no_message_buffers")
        made = mirrored.open(llm__EnableRemoteCacheAccessible=one_sided)
        infos = [mirrored.info(cluster_id, 26001 + cluster_id) for cluster_id in range(2, 602)]
        assert made.link_clusters(infos) == (OK, [OK] * 600)

    def test_native_peers_are_not_counted(self, world: MemoryWorld) -> None:
        assert deviates("no_message_buffers")
        ends = Ends("native", world)
        near = ends.open(1, one_sided=False)
        target = near.manager.allocate_cache(describe())
        for cluster_id in range(2, 52):
            far = ends.open(cluster_id, one_sided=False)
            far.manager.allocate_cache(describe(), [CacheKey(0, 7)])
            near.manager.pull_cache(CacheKey(cluster_id, 7), target)
        ends.close()

    def test_512_communicators(self, mirrored: Instances) -> None:
        made = mirrored.open()
        ids = [made.link(f"name {number}", {1: 0, 2: 1}, "") for number in range(512)]
        assert ids == list(range(1, 513))
        with invalid("512 communicators"):
            made.link("one more", {1: 0, 2: 1}, "")
        made.unlink(17)
        assert made.link("one more", {1: 0, 2: 1}, "") == 513

    def test_comm_names_and_members(self, mirrored: Instances) -> None:
        made = mirrored.open()
        members = {1: 0, 2: 1, 3: 2, 4: 3}
        for name in ("n", "n" * 127):
            made.link(name, members, "")
        for name in ("", "n" * 128):
            with invalid("comm_name"):
                made.link(name, members, "")
        for wrong in ({1: 0}, members | {5: 4}):
            with invalid("cluster_rank_info"):
                made.link("n", wrong, "")


def test_a_transfer_has_a_second_where_nothing_else_was_said() -> None:
    """Section 10.6."""
    assert parse_options({}).settings.sync_kv_timeout_ms == 1000


def test_the_table_has_1_mib(cast: Instances) -> None:
    made = cast.open()
    with invalid("table"):
        register(made, FULL_TABLE_TENSORS + 1)
    register(made, FULL_TABLE_TENSORS)


class TestTable:
    """One-sided mode: 24 + sum(64 + 8 tensors) + 24 keys <= 1 MiB; a smaller one here."""

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_limits, "TABLE_NBYTES", 1 << 13)

    def test_a_cache_that_fills_it_leaves_no_room(self, cast: Instances) -> None:
        made = cast.open()
        register(made, TABLE_TENSORS)
        with invalid("table"):
            register(made, 1)

    @pytest.mark.parametrize(
        "add",
        [
            lambda manager, desc: manager.register_cache(desc, _addresses(desc), [CacheKey(0, 1)]),
            lambda manager, desc: manager.register_blocks_cache(desc, _addresses(desc), BlocksCacheKey(0)),
            lambda manager, desc: manager.allocate_cache(desc, [CacheKey(0, 1)]),
            lambda manager, desc: manager.allocate_blocks_cache(desc, BlocksCacheKey(0)),
        ],
    )
    def test_a_key_takes_the_room_of_three_tensors(self, cast: Instances, add: Callable[[Any, Any], Any]) -> None:
        made = cast.open()
        register(made, TABLE_TENSORS - ENTRY - 12 - 3)
        with invalid("table"):
            add(made.cache_manager, describe(13, (8, 1)))
        add(made.cache_manager, describe(12, (8, 1)))

    @pytest.mark.parametrize("kind", ["request", "model"])
    def test_keys_that_are_held_count(self, cast: Instances, kind: str) -> None:
        made = cast.open()
        manager = made.cache_manager
        tensors = TABLE_TENSORS - 3 - ENTRY - 1
        if kind == "request":
            register(made, tensors, [CacheKey(0, 1)])
        else:
            manager.register_blocks_cache(describe(tensors, (8, 1)), [1] * tensors, BlocksCacheKey(0))
        with invalid("table"):
            register(made, 2)
        register(made, 1)
        assert len(manager._manager.caches()) == 2

    def test_a_key_that_is_bound_or_of_no_row_takes_no_more_room(self, cast: Instances) -> None:
        made = cast.open()
        manager, desc = made.cache_manager, describe(1, (8, 1))
        register(made, 1, [CacheKey(0, 1)])
        manager.register_blocks_cache(desc, [1], BlocksCacheKey(0))
        register(made, TABLE_TENSORS - 2 * (ENTRY + 1 + 3) - 3 * (ENTRY + 1))
        manager.register_blocks_cache(desc, [1], BlocksCacheKey(0))
        register(made, 1, [CacheKey(0, 1)])
        placeholders = [CacheKey(0, UNSET)] * 8
        register(made, 1, [*placeholders, CacheKey(0, 2)])
        with invalid("table"):
            register(made, 1)

    def test_a_wrong_key_is_a_type_error_in_a_full_table_too(self, cast: Instances) -> None:
        made = cast.open()
        register(made, TABLE_TENSORS)
        for verb in ("allocate_cache", "allocate_blocks_cache"):
            with refused(TypeError, "key"):
                getattr(made.cache_manager, verb)(describe(1), "key")

    @pytest.mark.parametrize("keys", [[CacheKey(0, UNSET)], [CacheKey(0, UNSET, 0, 3)]])
    def test_placeholders_and_prefixes_do_not_count(self, cast: Instances, keys: list[CacheKey]) -> None:
        made = cast.open()
        register(made, TABLE_TENSORS - ENTRY - 1, keys)
        register(made, 1, keys)

    def test_a_refused_cache_leaves_nothing_behind(self, cast: Instances) -> None:
        assert deviates("table_refuses_before")
        made = cast.open()
        with invalid("table"):
            register(made, TABLE_TENSORS + 1)
        assert cast.world.directory.held[1] == {}
        assert register(made, TABLE_TENSORS).cache_id == 1
        for desc in (describe(1), describe(1, (2**30, 2**10))):  # the second is larger than the pool
            with invalid("table"):
                made.cache_manager.allocate_blocks_cache(desc)
        made.cache_manager.unregister_cache(1)
        made.cache_manager.allocate_blocks_cache(describe(1))

    def test_request_mode_has_no_table(self, cast: Instances) -> None:
        register(cast.open(llm__EnableRemoteCacheAccessible="0"), TABLE_TENSORS + 1)

    def test_the_native_manager_has_none(self, world: MemoryWorld) -> None:
        assert deviates("no_table_no_messages").where == "native"
        ends = Ends("native", world)
        manager = ends.open(1).manager
        manager.register_cache(describe(FULL_TABLE_TENSORS + 1, (1,)), [1] * (FULL_TABLE_TENSORS + 1))
        ends.close()


def register(made: Any, num_tensors: int, keys: list[CacheKey] | tuple[()] = ()) -> Any:
    return made.cache_manager.register_cache(describe(num_tensors, (8, 1)), [1] * num_tensors, keys)


def _addresses(desc: Any) -> list[int]:
    return [1] * desc.num_tensors


def scattered(number: int) -> list[int]:
    """No two of these blocks are neighbours: each is a run of its own."""
    return list(range(0, 2 * number, 2))


class TestPulls:
    """What fits into one request: drop-in only, except that the native manager takes all of it."""

    @pytest.fixture
    def pull(self, ends: Ends) -> Callable[..., None]:
        """pull(one_sided, tensors, blocks, placement): from a blocks cache of the peer's into one of ours."""

        def run(
            one_sided: bool, tensors: int, blocks: list[int], placement: str = "DEVICE", layers: range | None = None
        ) -> None:
            limit = {"llm.SyncKvCacheWaitTime": "20000"}
            near = ends.open(1, one_sided=one_sided, **limit)
            far = ends.open(2, one_sided=one_sided, **limit)
            ends.link(near, far)
            shape = (max(blocks) + 1, 1)
            far.manager.allocate_blocks_cache(describe(tensors, shape), BlocksCacheKey(0))
            target = near.manager.allocate_blocks_cache(describe(tensors, shape, placement=placement))
            ranges = {} if layers is None else {"src_layer_range": layers, "dst_layer_range": layers}
            near.manager.pull_blocks(KEY, target, blocks, blocks, tensor_num_per_layer=1, **ranges)

        return run

    @pytest.fixture
    def rows(self, ends: Ends) -> Callable[[int], tuple[Any, Any, Any]]:
        """rows(tensors): a manager in request mode, and a continuous and a blocks cache of its; the peer has these."""

        def make(tensors: int) -> tuple[Any, Any, Any]:
            pool = {"llm.MemPoolConfig": '{"memory_size": 33554432, "page_shift": 10}'}
            near = ends.open(1, one_sided=False, device_pool=False, **pool)
            far = ends.open(2, one_sided=False, device_pool=False, **pool)
            ends.link(near, far)
            desc = describe(tensors, (2, 1))
            far.manager.allocate_cache(desc)
            far.manager.allocate_cache(desc)
            return near.manager, near.manager.allocate_cache(desc), near.manager.allocate_blocks_cache(desc)

        return make

    def check(self, ends: Ends, says: str, call: Callable[[], None]) -> None:
        """Refused by the drop-in alone."""
        if ends.face == "native":
            assert deviates("no_table_no_messages")
            call()
        else:
            with invalid(says):
                call()

    def test_one_sided_runs_that_fit(self, pull: Any) -> None:
        pull(True, 2, scattered(65_531))

    def test_one_sided_runs_that_do_not(self, ends: Ends, pull: Any) -> None:
        self.check(ends, "at most 131064", lambda: pull(True, 2, scattered(65_532)))

    @pytest.mark.parametrize(
        ("changes", "refusal"),
        [
            ({"src_cache_key": "key"}, TypeError),
            ({"src_cache_key": None}, AttributeError),
            ({"dst_blocks": [*scattered(65_531), "1"]}, TypeError),
            ({"dst_blocks": [*scattered(65_531), -1]}, TypeError),
            ({"tensor_num_per_layer": "2"}, TypeError),
            ({"src_layer_range": 1}, TypeError),
            ({"src_cache_key": BlocksCacheKey(99)}, "LLM_NOT_YET_LINK"),
            ({"src_cache_key": BlocksCacheKey(1)}, "LLM_PARAM_INVALID"),
        ],
    )
    def test_of_a_pull_that_is_too_large_other_mistakes_are_named_first(
        self, ends: Ends, changes: Any, refusal: Any
    ) -> None:
        near, far = ends.open(1), ends.open(2)
        ends.link(near, far)
        target, blocks = near.manager.allocate_blocks_cache(describe(2, (131_064, 1))), scattered(65_532)
        given = {"src_cache_key": KEY, "dst_cache": target, "src_blocks": blocks, "dst_blocks": blocks}
        with answers(refusal, "this endpoint itself" if refusal == "LLM_PARAM_INVALID" else ""):
            near.manager.pull_blocks(**{**given, **changes})

    def test_neighbours_are_one_run(self, pull: Any) -> None:
        pull(True, 2, list(range(70_000)))

    def test_requested_runs_that_fit(self, pull: Any) -> None:
        pull(False, 2, scattered(3579))

    def test_requested_runs_that_do_not(self, ends: Ends, pull: Any) -> None:
        self.check(ends, "at most 7160", lambda: pull(False, 2, scattered(3580)))

    def test_requested_neighbours_are_one_run(self, pull: Any) -> None:
        pull(False, 2, list(range(7160)))

    def test_requested_blocks_into_host_memory_that_fit(self, pull: Any) -> None:
        pull(False, 1, list(range(7158)), "HOST")

    def test_requested_blocks_into_host_memory_count_one_by_one(self, ends: Ends, pull: Any) -> None:
        self.check(ends, "at most 7158", lambda: pull(False, 1, list(range(7159)), "HOST"))

    def test_requested_tensors(self, ends: Ends, rows: Any) -> None:
        near, target, blocks = rows(2043)
        near.pull_cache(ROW, target)
        near.pull_blocks(ROW, blocks, (), [0])

    def test_requested_tensors_too_many(self, ends: Ends, rows: Any) -> None:
        near, target, blocks = rows(2044)
        self.check(ends, "at most 2043", lambda: near.pull_cache(ROW, target))
        self.check(ends, "at most 2043", lambda: near.pull_blocks(ROW, blocks, (), [0]))
        few = {"src_layer_range": range(2043), "dst_layer_range": range(2043), "tensor_num_per_layer": 1}
        near.pull_cache(ROW, target, **few)
        near.pull_blocks(ROW, blocks, (), [0], **few)

    def test_a_row_cut_into_blocks_has_a_run_for_each(self, ends: Ends) -> None:
        near, far = ends.open(1, one_sided=False), ends.open(2, one_sided=False)
        ends.link(near, far)
        far.manager.allocate_cache(describe(2, (1, 4000)))
        target = near.manager.allocate_blocks_cache(describe(2, (4000, 1)))
        self.check(
            ends,
            "at most 7160",
            lambda: near.manager.pull_blocks(ROW, target, (), list(range(4000))),
        )

    def test_a_layer_range_of_any_size_is_checked_as_one(self, ends: Ends, rows: Any) -> None:
        """It must not be taken for too many tensors."""
        near, _, blocks = rows(2)
        with refused(ValueError, "src_layer_range"):
            near.pull_blocks(KEY, blocks, [0], [0], src_layer_range=range(2**70))

    def test_pushes_have_no_limit(self, ends: Ends) -> None:
        near, far = ends.open(1, **{"llm.SyncKvCacheWaitTime": "20000"}), ends.open(2)
        ends.link(near, far)
        blocks = scattered(70_000)
        far.manager.allocate_blocks_cache(describe(2, (140_000, 1)), BlocksCacheKey(0))
        source = near.manager.allocate_blocks_cache(describe(2, (140_000, 1)))
        near.manager.push_blocks(KEY, source, blocks, blocks)
