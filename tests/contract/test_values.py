"""Section 8: CacheDesc, the keys, Cache, KvCache, MemInfo."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.integrations.llm_datadist.compatibility import CLASSES
from tests.contract.conftest import NATIVE, NOT_INTS, deviates, invalid, native, refused, wrong_ints

UNSET = 2**64 - 1
INTS_ONLY = [value for value in NOT_INTS if value is not None]


def desc_of(api: Any, **changed: Any) -> Any:
    wanted = {"num_tensors": 2, "shape": [4, 8], "data_type": api.DataType.DT_FLOAT16, **changed}
    return api.CacheDesc(**wanted)


def host_desc(api: Any, num_tensors: int = 2) -> Any:
    return desc_of(api, num_tensors=num_tensors, placement=api.Placement.HOST)


class TestCacheDesc:
    def test_defaults(self, api: Any) -> None:
        desc = desc_of(api)
        assert (desc.num_tensors, desc.shape, desc.data_type) == (2, [4, 8], api.DataType.DT_FLOAT16)
        assert desc.placement is api.Placement.DEVICE
        assert (desc.batch_dim, desc.batch_size, desc.seq_len_dim_index, desc.kv_tensor_format) == (0, 4, -1, None)

    def test_positional_order(self, api: Any) -> None:
        desc = api.CacheDesc(0, (4, 8, 2), api.DataType.DT_INT8, api.Placement.HOST, 1, 2, "NHWC")
        assert (desc.num_tensors, desc.shape, desc.data_type) == (0, (4, 8, 2), api.DataType.DT_INT8)
        assert (desc.placement, desc.batch_dim, desc.batch_size) == (api.Placement.HOST, 1, 8)
        assert (desc.seq_len_dim_index, desc.kv_tensor_format) == (2, "NHWC")

    def test_the_shape_is_the_caller_s_own(self, api: Any) -> None:
        shape = [4, 8]
        assert desc_of(api, shape=shape).shape is shape

    @pytest.mark.parametrize("name", ["num_tensors", "shape", "data_type", "placement", "batch_dim", "batch_size"])
    def test_properties_are_read_only(self, api: Any, name: str) -> None:
        with pytest.raises(AttributeError):
            setattr(desc_of(api), name, 1)

    @pytest.mark.parametrize(("value", "kind"), wrong_ints("uint32"))
    def test_num_tensors_is_a_uint32(self, api: Any, value: object, kind: type[Exception]) -> None:
        with refused(kind, "num_tensors"):
            desc_of(api, num_tensors=value)

    @pytest.mark.parametrize("value", [None, 4, range(1, 3), "48", {4}, np.array([4, 8])])
    def test_shape_is_a_list_or_tuple(self, api: Any, value: object) -> None:
        with refused(TypeError, "shape"):
            desc_of(api, shape=value)

    @pytest.mark.parametrize(("value", "kind"), wrong_ints("int64"))
    def test_dims_are_int64(self, api: Any, value: object, kind: type[Exception]) -> None:
        with refused(kind, "shape[1]"):
            desc_of(api, shape=[4, value])

    def test_an_empty_shape_is_invalid(self, api: Any) -> None:
        with invalid("batch_dim_index"):
            desc_of(api, shape=[])

    @pytest.mark.parametrize("shape", [[0, 8], [4, -1], [2**62, 8]])
    def test_a_shape_without_a_size_is_refused_when_size_is_read(self, api: Any, shape: list[int]) -> None:
        desc = desc_of(api, shape=shape)
        with pytest.raises(api.LLMException) as caught:
            _ = desc.size
        assert caught.value.status_code is api.LLMStatusCode.LLM_SUCCESS

    @pytest.mark.parametrize("value", [1, "DT_INT8", np.float16])
    def test_data_type_is_a_data_type(self, api: Any, value: object) -> None:
        with refused(TypeError, "data_type"):
            desc_of(api, data_type=value)

    def test_no_data_type(self, api: Any) -> None:
        assert deviates("none_data_type")
        with refused(TypeError, "data_type"):
            desc_of(api, data_type=None)

    @pytest.mark.parametrize("value", [0, 1, "HOST"])
    def test_placement_is_a_placement(self, api: Any, value: object) -> None:
        with refused(TypeError, "placement"):
            desc_of(api, placement=value)

    def test_no_placement(self, api: Any) -> None:
        assert deviates("none_placement")
        with refused(TypeError, "placement"):
            desc_of(api, placement=None)

    @pytest.mark.parametrize("value", NOT_INTS)
    def test_batch_dim_index_is_an_int(self, api: Any, value: object) -> None:
        with refused(TypeError, "batch_dim_index"):
            desc_of(api, batch_dim_index=value)

    @pytest.mark.parametrize("value", [-1, 2, 2**40])
    def test_batch_dim_index_lies_in_the_shape(self, api: Any, value: int) -> None:
        with invalid("batch_dim_index"):
            desc_of(api, batch_dim_index=value)

    @pytest.mark.parametrize(("value", "kind"), wrong_ints("int32"))
    def test_seq_len_dim_index_is_an_int32(self, api: Any, value: object, kind: type[Exception]) -> None:
        with refused(kind, "seq_len_dim_index"):
            desc_of(api, seq_len_dim_index=value)

    @pytest.mark.parametrize("value", [-2, 2])
    def test_seq_len_dim_index_is_minus_one_or_in_the_shape(self, api: Any, value: int) -> None:
        with invalid("seq_len_dim_index"):
            desc_of(api, seq_len_dim_index=value)

    @pytest.mark.parametrize("value", [1, b"NHWC"])
    def test_kv_tensor_format_is_text_or_none(self, api: Any, value: object) -> None:
        with refused(TypeError, "kv_tensor_format"):
            desc_of(api, kv_tensor_format=value)

    def test_bool_counts_as_an_int(self, api: Any) -> None:
        desc = desc_of(api, num_tensors=True, batch_dim_index=True)
        assert (desc.num_tensors, desc.batch_size) == (1, 8)
        assert "num_tensors=1, " in repr(desc)
        assert "batch_dim_index=1, " in repr(desc)

    def test_size_is_one_tensor_s(self, api: Any) -> None:
        assert desc_of(api).size == 4 * 8 * 2

    def test_update_dim_changes_size_but_not_batch_size(self, api: Any) -> None:
        shape = [4, 8]
        desc = desc_of(api, shape=shape)
        assert desc.size == 64
        desc.update_dim(0, 6)
        assert (shape, desc.size, desc.batch_size) == ([6, 8], 96, 4)

    def test_size_is_computed_once(self, api: Any) -> None:
        shape = [4, 8]
        desc = desc_of(api, shape=shape)
        shape[0] = 5
        assert desc.size == 80
        shape[0] = 6
        assert desc.size == 80
        desc.update_dim(1, 4)
        assert desc.size == 48

    @pytest.mark.parametrize(
        ("dim_index", "dim_value", "kind"),
        [("0", 9, TypeError), (None, 9, TypeError), *((0, value, kind) for value, kind in wrong_ints("int64"))],
    )
    def test_update_dim_checks_types_and_widths(
        self, api: Any, dim_index: Any, dim_value: Any, kind: type[Exception]
    ) -> None:
        desc = desc_of(api)
        with refused(kind, "dim_"):
            desc.update_dim(dim_index, dim_value)
        assert desc.shape == [4, 8]

    @pytest.mark.parametrize("dim_index", [-1, 2])
    def test_update_dim_stays_in_the_shape(self, api: Any, dim_index: int) -> None:
        desc = desc_of(api)
        with invalid("dim_index"):
            desc.update_dim(dim_index, 9)
        assert desc.shape == [4, 8]

    def test_update_dim_of_a_tuple_is_a_type_error(self, api: Any) -> None:
        with refused(TypeError, "shape"):
            desc_of(api, shape=(4, 8)).update_dim(0, 6)

    def test_repr(self, api: Any) -> None:
        assert repr(desc_of(api)) == (
            "CacheDesc(num_tensors=2, shape=[4, 8], data_type=DataType.DT_FLOAT16, placement=Placement.DEVICE, "
            "batch_dim_index=0, seq_len_dim_index=-1,kv_tensor_format=None)"
        )
        assert repr(api.CacheDesc(0, (4, 8, 2), api.DataType.DT_INT8, api.Placement.HOST, 1, 2, "NHWC")) == (
            "CacheDesc(num_tensors=0, shape=(4, 8, 2), data_type=DataType.DT_INT8, placement=Placement.HOST, "
            "batch_dim_index=1, seq_len_dim_index=2,kv_tensor_format=NHWC)"
        )


class TestBlocksCacheKey:
    def test_positional_order_and_defaults(self, api: Any) -> None:
        key = api.BlocksCacheKey(3, 5)
        assert (key.cluster_id, key.prompt_cluster_id, key.model_id) == (3, 3, 5)
        assert api.BlocksCacheKey(3).model_id == 0

    def test_keywords(self, api: Any) -> None:
        assert api.BlocksCacheKey(model_id=5, cluster_id=3).cluster_id == 3
        assert api.BlocksCacheKey(prompt_cluster_id=3).cluster_id == 3
        assert api.BlocksCacheKey(3, model_id=5).model_id == 5

    def test_a_positional_wins_over_a_keyword(self, api: Any) -> None:
        assert api.BlocksCacheKey(3, cluster_id=4).cluster_id == 3
        assert api.BlocksCacheKey(3, prompt_cluster_id=4).cluster_id == 3

    def test_cluster_id_wins_over_its_other_spelling(self, api: Any) -> None:
        assert api.BlocksCacheKey(prompt_cluster_id=4, cluster_id=3).cluster_id == 3

    @pytest.mark.parametrize(
        "given",
        [
            ((1, 2, 3), {}),
            ((1, 2), {"cluster_id": 1}),
            ((1,), {"model": 1}),
            ((), {"cluster_id": 1, "prompt_cluster_id": 2, "model_id": 3}),
        ],
    )
    def test_what_it_does_not_take(self, api: Any, given: Any) -> None:
        args, kwargs = given
        with invalid("Unsupported"):
            api.BlocksCacheKey(*args, **kwargs)

    @pytest.mark.parametrize("kwargs", [{}, {"model_id": 1}])
    def test_cluster_id_is_required(self, api: Any, kwargs: Any) -> None:
        with invalid("cluster_id is required"):
            api.BlocksCacheKey(**kwargs)

    @pytest.mark.parametrize("name", ["cluster_id", "model_id"])
    @pytest.mark.parametrize("value", INTS_ONLY)
    def test_fields_are_ints(self, api: Any, name: str, value: object) -> None:
        with refused(TypeError, f"{name} only support"):
            api.BlocksCacheKey(**{"cluster_id": 1, name: value})

    @pytest.mark.parametrize("name", ["cluster_id", "model_id"])
    @pytest.mark.parametrize("value", [-1, 2**64, True])
    def test_an_int_of_any_size_is_taken(self, api: Any, name: str, value: int) -> None:
        assert getattr(api.BlocksCacheKey(**{"cluster_id": 1, name: value}), name) == value

    @pytest.mark.parametrize("name", ["cluster_id", "model_id"])
    def test_no_id(self, api: Any, name: str) -> None:
        assert deviates("none_blocks_key_id")
        with refused(TypeError, name):
            api.BlocksCacheKey(**{"cluster_id": 1, name: None})

    def test_repr_keeps_the_spelling(self, api: Any) -> None:
        assert repr(api.BlocksCacheKey(3)) == "BlocksCacheKey(cluster_id=3, model_id=0)"
        assert repr(api.BlocksCacheKey(cluster_id=3, model_id=1)) == "BlocksCacheKey(cluster_id=3, model_id=1)"
        assert repr(api.BlocksCacheKey(prompt_cluster_id=3)) == "BlocksCacheKey(prompt_cluster_id=3, model_id=0)"


class TestCacheKey:
    def test_positional_order_and_defaults(self, api: Any) -> None:
        key = api.CacheKey(1, 2, 3, 4)
        assert (key.cluster_id, key.req_id, key.model_id, key.prefix_id) == (1, 2, 3, 4)
        key = api.CacheKey(1, 2)
        assert (key.prompt_cluster_id, key.model_id, key.prefix_id) == (1, 0, UNSET)

    def test_keywords(self, api: Any) -> None:
        key = api.CacheKey(prompt_cluster_id=1, req_id=2, prefix_id=4)
        assert (key.cluster_id, key.req_id, key.model_id, key.prefix_id) == (1, 2, 0, 4)

    @pytest.mark.parametrize("given", [((1, 2, 3, 4, 5), {}), ((1, 2, 3, 4), {"req_id": 1}), ((1, 2), {"model": 1})])
    def test_what_it_does_not_take(self, api: Any, given: Any) -> None:
        args, kwargs = given
        with invalid("Unsupported"):
            api.CacheKey(*args, **kwargs)

    @pytest.mark.parametrize(("kwargs", "missing"), [({"req_id": 1}, "cluster_id"), ({"cluster_id": 1}, "req_id")])
    def test_what_is_required(self, api: Any, kwargs: Any, missing: str) -> None:
        with invalid(f"{missing} is required"):
            api.CacheKey(**kwargs)

    @pytest.mark.parametrize("name", ["cluster_id", "req_id", "model_id", "prefix_id"])
    @pytest.mark.parametrize(("value", "kind"), wrong_ints("uint64"))
    def test_fields_are_uint64(self, api: Any, name: str, value: object, kind: type[Exception]) -> None:
        with refused(kind, name):
            api.CacheKey(**{"cluster_id": 1, "req_id": 2, name: value})

    def test_repr(self, api: Any) -> None:
        expected = "CacheKey(cluster_id=1, req_id=2, prefix_id=4, model_id=3)"
        assert repr(api.CacheKey(1, 2, 3, 4)) == repr(api.CacheKey(1, 2, prefix_id=4, model_id=3)) == expected
        assert repr(api.CacheKey(prompt_cluster_id=1, req_id=2, prefix_id=4, model_id=3)) == expected


class TestCacheKeyByIdAndIndex:
    def test_fields_and_repr(self, api: Any) -> None:
        key = api.CacheKeyByIdAndIndex(1, -2)
        assert (key.cluster_id, key.cache_id, key.batch_index) == (1, -2, 0)
        key = api.CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)
        assert repr(key) == "CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=3)"

    @pytest.mark.parametrize(
        ("name", "value", "kind"),
        [
            (name, value, kind)
            for name, width in [("cluster_id", "uint64"), ("cache_id", "int64"), ("batch_index", "uint32")]
            for value, kind in wrong_ints(width)
        ],
    )
    def test_widths(self, api: Any, name: str, value: object, kind: type[Exception]) -> None:
        with refused(kind, name):
            api.CacheKeyByIdAndIndex(**{"cluster_id": 1, "cache_id": 2, name: value})


class TestCpuCache:
    def test_fields_and_text(self, api: Any) -> None:
        desc = host_desc(api)
        cache = api.Cache.create_cpu_cache(desc, [4096, 8192])
        assert (cache.cache_id, cache.cache_desc, cache.tensor_addrs) == (-1, desc, [4096, 8192])
        assert cache.is_blocks_cache is True
        assert str(cache) == repr(cache) == "Cache(cache_id = -1, device_tensor_addrs = 2, is_blocks_cache = True)"

    @pytest.mark.parametrize("name", ["cache_id", "cache_desc", "tensor_addrs", "is_blocks_cache"])
    def test_properties_are_read_only(self, api: Any, name: str) -> None:
        with pytest.raises(AttributeError):
            setattr(api.Cache.create_cpu_cache(host_desc(api), [1, 2]), name, 1)

    @pytest.mark.parametrize("value", ["desc", 1])
    def test_desc_is_a_cache_desc(self, api: Any, value: object) -> None:
        with refused(TypeError, "cache_desc"):
            api.Cache.create_cpu_cache(value, [1, 2])

    @pytest.mark.parametrize("value", [(1, 2), 1, range(2), *([1, each] for each in NOT_INTS)])
    def test_addrs_is_a_list_of_int(self, api: Any, value: object) -> None:
        with refused(TypeError, "addrs"):
            api.Cache.create_cpu_cache(host_desc(api), value)

    @pytest.mark.parametrize("value", [-1, 2**64])
    def test_an_address_is_a_uint64(self, api: Any, value: int) -> None:
        assert deviates("cpu_cache_address_width")
        with refused(TypeError, "addrs[1]"):
            api.Cache.create_cpu_cache(host_desc(api), [1, value])

    def test_none_is_an_attribute_error(self, api: Any) -> None:
        with refused(AttributeError, "cache_desc"):
            api.Cache.create_cpu_cache(None, [1, 2])
        with refused(AttributeError, "addrs"):
            api.Cache.create_cpu_cache(host_desc(api), None)

    def test_placement_is_host(self, api: Any) -> None:
        with invalid("placement"):
            api.Cache.create_cpu_cache(desc_of(api), [1, 2])

    @pytest.mark.parametrize("addrs", [[], [1], [1, 2, 3]])
    def test_there_are_as_many_addresses_as_tensors(self, api: Any, addrs: list[int]) -> None:
        with invalid("num_tensors"):
            api.Cache.create_cpu_cache(host_desc(api), addrs)


class Manager:
    """Stands for the v1 manager."""

    def __init__(self) -> None:
        self.freed: list[int] = []

    def deallocate_cache(self, cache: Any) -> None:
        self.freed.append(cache.cache_id)


class TestKvCache:
    def test_one_list_is_one_device(self, llm_datadist: Any) -> None:
        cache = llm_datadist.KvCache.create_cpu_cache(host_desc(llm_datadist), [1, 2])
        assert (cache.cache_id, cache.per_device_tensor_addrs) == (-1, [[1, 2]])
        assert repr(cache) == "KvCache(cache_id = -1, num_devices = 1)"

    def test_lists_of_equal_length_are_devices(self, llm_datadist: Any) -> None:
        desc = host_desc(llm_datadist)
        cache = llm_datadist.KvCache.create_cpu_cache(desc, [[1, 2], [3, 4]])
        assert cache.cache_desc is desc
        assert cache.per_device_tensor_addrs == [[1, 2], [3, 4]]

    def test_refusals(self, llm_datadist: Any) -> None:
        create, desc = llm_datadist.KvCache.create_cpu_cache, host_desc(llm_datadist)
        for addrs in [[[1, 2], [3]], [1], [[1]], [], [1, [2]], [[1], 1]]:
            with invalid("addrs"):
                create(desc, addrs)
        for addrs in [[1, "2"], (1, 2)]:
            with refused(TypeError, "addrs"):
                create(desc, addrs)
        with invalid("placement"):
            create(desc_of(llm_datadist), [1, 2])

    def test_its_manager_s_memory_goes_with_it_but_not_with_a_copy(self, llm_datadist: Any) -> None:
        manager = Manager()
        cache = llm_datadist.KvCache(7, host_desc(llm_datadist), [[1, 2]], manager)
        assert pickle.loads(pickle.dumps(cache)).cache_id == 7
        assert manager.freed == []
        del cache
        assert manager.freed == [7]

    @pytest.mark.filterwarnings("error")
    def test_one_that_was_never_made_frees_nothing(self, llm_datadist: Any) -> None:
        with pytest.raises(TypeError):
            llm_datadist.KvCache()


class TestMemInfo:
    def test_fields_and_repr(self, api: Any) -> None:
        info = api.MemInfo(api.Memtype.MEM_TYPE_HOST, 4096, 64)
        assert (info.mem_type, info.addr, info.size) == (api.Memtype.MEM_TYPE_HOST, 4096, 64)
        assert repr(info) == "MemInfo(mem_type=Memtype.MEM_TYPE_HOST, addr=4096, size=64)"

    @pytest.mark.parametrize("wrong", [{"mem_type": 0}, {"addr": "1"}, {"addr": 1.0}, {"size": np.int64(1)}])
    def test_types(self, api: Any, wrong: dict[str, Any]) -> None:
        with refused(TypeError, next(iter(wrong))):
            api.MemInfo(**{"mem_type": api.Memtype.MEM_TYPE_HOST, "addr": 1, "size": 1, **wrong})

    @pytest.mark.parametrize("name", ["mem_type", "addr", "size"])
    def test_none_passes(self, api: Any, name: str) -> None:
        info = api.MemInfo(**{"mem_type": api.Memtype.MEM_TYPE_HOST, "addr": 1, "size": 1, name: None})
        assert getattr(info, name) is None


def values(api: Any) -> list[Any]:
    """One of each, made anew at each call."""
    return [
        desc_of(api),
        api.BlocksCacheKey(prompt_cluster_id=3, model_id=1),
        api.CacheKey(1, 2, 3, 4),
        api.CacheKeyByIdAndIndex(1, 2, 3),
        api.Cache.create_cpu_cache(host_desc(api), [1, 2]),
        api.MemInfo(api.Memtype.MEM_TYPE_HOST, 1, 2),
        api.TransferConfig(1, [1, 2], range(1)),
        api.TransferWithCacheKeyConfig(api.CacheKeyByIdAndIndex(1, 2), range(1), range(2, 3)),
    ]


class TestTransferConfig:
    @pytest.mark.parametrize(
        ("field", "value", "kind"),
        [
            *(("dst_cluster_id", value, kind) for value, kind in wrong_ints("uint64")),
            *(("dst_addrs", value, TypeError) for value in (None, range(2), {1}, 1, [1, "2"], [None])),
            *(("dst_addrs", [1, value], ValueError) for value in (-2, 2**64)),
            *(("src_layer_range", value, TypeError) for value in ([0, 1], 1, "0")),
            *(("src_batch_index", value, kind) for value, kind in wrong_ints("uint32")),
        ],
    )
    def test_fields_are_checked_when_made_and_when_set(
        self, api: Any, field: str, value: Any, kind: type[Exception]
    ) -> None:
        with refused(kind, field):
            api.TransferConfig(**{"dst_cluster_id": 2, "dst_addrs": [1, 2], field: value})
        config = api.TransferConfig(2, [1, 2])
        with refused(kind, field):
            setattr(config, field, value)
        assert repr(config) == repr(api.TransferConfig(2, [1, 2]))

    @pytest.mark.parametrize("layers", [range(2, 2), range(3, 1), range(-1, 2), range(0, 4, 2)])
    def test_a_layer_range_rises_by_one_and_has_a_layer(self, api: Any, layers: range) -> None:
        with invalid("src_layer_range"):
            api.TransferConfig(2, [1, 2], layers)

    def test_defaults_text_and_what_can_be_set(self, api: Any) -> None:
        config = api.TransferConfig(2, (16, 2**64 - 1))
        assert repr(config) == (
            "TransferConfig(dst_cluster_id=2, dst_addrs=(16, 18446744073709551615), src_layer_range=None, "
            "src_batch_index=0)"
        )
        assert config.dst_layer_range is None
        config.dst_cluster_id, config.dst_addrs, config.src_layer_range, config.src_batch_index = 5, [1], range(1, 2), 7
        assert (config.dst_cluster_id, config.dst_addrs) == (5, [1])
        assert (config.src_layer_range, config.src_batch_index) == (range(1, 2), 7)
        config.src_layer_range = None
        assert config.src_layer_range is None


class TestTransferWithCacheKeyConfig:
    @pytest.mark.parametrize(
        ("field", "value", "kind"),
        [
            *(("cache_key", value, TypeError) for value in (None, 1, "key")),
            *(
                (field, value, TypeError)
                for field in ("src_layer_range", "dst_layer_range")
                for value in (None, 2, [0])
            ),
            *(("src_batch_index", value, kind) for value, kind in wrong_ints("uint32")),
        ],
    )
    def test_fields_are_checked_when_made_and_when_set(
        self, api: Any, field: str, value: Any, kind: type[Exception]
    ) -> None:
        given = {"cache_key": api.BlocksCacheKey(2), "src_layer_range": range(2), "dst_layer_range": range(2)}
        with refused(kind, field):
            api.TransferWithCacheKeyConfig(**{**given, field: value})
        config = api.TransferWithCacheKeyConfig(**given)
        before = repr(config)
        with refused(kind, field):
            setattr(config, field, value)
        assert repr(config) == before

    def test_a_cache_key_is_none_of_its_keys(self, api: Any) -> None:
        with refused(TypeError, "cache_key"):
            api.TransferWithCacheKeyConfig(api.CacheKey(2, 1), range(1), range(1))

    def test_both_ranges_are_needed(self, api: Any) -> None:
        with refused(TypeError, "src_layer_range"):
            api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2))
        with refused(TypeError, "dst_layer_range"):
            api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), range(1))

    @pytest.mark.parametrize("field", ["src_layer_range", "dst_layer_range"])
    @pytest.mark.parametrize("layers", [range(2, 2), range(3, 1), range(-1, 2), range(0, 4, 2)])
    def test_a_layer_range_rises_by_one_and_has_a_layer(self, api: Any, field: str, layers: range) -> None:
        given = {"src_layer_range": range(1), "dst_layer_range": range(1), field: layers}
        with invalid(field):
            api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), **given)

    def test_ranges_are_equally_long_when_made_but_not_when_set(self, api: Any) -> None:
        with invalid("dst_layer_range"):
            api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), range(2), range(3))
        config = api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), range(2), range(2))
        config.src_layer_range = range(1)
        config.dst_layer_range = range(4, 9)
        assert (config.src_layer_range, config.dst_layer_range) == (range(1), range(4, 9))

    def test_a_row_is_only_for_a_key_by_id(self, api: Any) -> None:
        with invalid("src_batch_index"):
            api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), range(1), range(1), 1)
        config = api.TransferWithCacheKeyConfig(api.BlocksCacheKey(2), range(1), range(1))
        with invalid("src_batch_index"):
            config.src_batch_index = 1
        config.cache_key = api.CacheKeyByIdAndIndex(3, 1)
        config.src_batch_index = 1
        assert config.src_batch_index == 1

    def test_text_and_the_cluster_of_the_first_key(self, api: Any) -> None:
        config = api.TransferWithCacheKeyConfig(api.CacheKeyByIdAndIndex(3, 1), range(1, 3), range(4, 6), 7)
        assert repr(config) == (
            "TransferWithCacheKeyConfig(cache_key=CacheKeyByIdAndIndex(cluster_id=3, cache_id=1, batch_index=0), "
            "src_layer_range=range(1, 3), dst_layer_range=range(4, 6), src_batch_index=7)"
        )
        assert config.dst_cluster_id == 3
        config.cache_key = api.CacheKeyByIdAndIndex(4, 1)
        assert config.dst_cluster_id == 3


class TestLayerSynchronizer:
    def test_it_must_say_how(self, api: Any) -> None:
        with refused(TypeError, "synchronize_layer"):
            api.LayerSynchronizer()

    def test_its_one_method_makes_it(self, api: Any) -> None:
        class Ready(api.LayerSynchronizer):  # type: ignore[misc]
            def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
                return True

        assert Ready().synchronize_layer(0, None) is True


class TestAllValues:
    def test_properties_are_read_only_but_for_the_configs(self, llm_datadist: Any) -> None:
        kv_cache = llm_datadist.KvCache.create_cpu_cache(host_desc(llm_datadist), [1, 2])
        fixed = [each for each in values(llm_datadist) if not type(each).__name__.startswith("Transfer")]
        for value in (*fixed, kv_cache):
            for name in CLASSES[type(value).__name__]:
                if not callable(getattr(value, name)):
                    with pytest.raises(AttributeError):
                        setattr(value, name, 1)

    def test_those_that_look_alike_compare_unequal(self, api: Any) -> None:
        assert [one for one, other in zip(values(api), values(api), strict=True) if one == other] == []

    def test_they_pickle(self, api: Any) -> None:
        for value in values(api):
            again = pickle.loads(pickle.dumps(value))
            assert type(again) is type(value)
            assert repr(again) == repr(value)

    def test_a_manager_s_cache_pickles_without_its_memory(self, api: Any) -> None:
        cache = api.Cache(1, host_desc(api), [1, 2], False, lambda index: memoryview(bytearray(64)))
        assert len(cache.numpy(0)) == 4
        again = pickle.loads(pickle.dumps(cache))
        assert repr(again) == repr(cache)
        with pytest.raises(api.LLMException) as caught:
            again.numpy(0)
        assert caught.value.status_code is api.LLMStatusCode.LLM_KV_CACHE_NOT_EXIST

    @pytest.mark.parametrize("name", [name for names in NATIVE.values() for name in names])
    def test_both_faces_are_one_class(self, llm_datadist: ModuleType, name: str) -> None:
        assert getattr(native(), name) is getattr(llm_datadist, name)

    def test_the_classes_are_at_home_in_llm_types(self, llm_datadist: Any) -> None:
        types = llm_datadist.v2.llm_types
        for name in NATIVE["cache.keys"] + NATIVE["cache.layer_transfer"]:
            assert getattr(types, name) is getattr(llm_datadist, name)
        for name in ("Cache", "CacheDesc", "CacheTask", "KvCache", "Placement", "RegisterMemStatus"):
            assert getattr(types, name) is getattr(llm_datadist, name)
