"""COMPATIBILITY.md: every name of LLM-DataDist, and whether it is here. A test compares page, table and package.

python -m ray_kvfabric.integrations.llm_datadist.compatibility > COMPATIBILITY.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ray_kvfabric.integrations.llm_datadist.deviations import DEVIATIONS, Deviation

V1 = ("TensorDesc", "Tensor", "KvCacheManager")

# What programs reach as llm_datadist.<name>, and the members of what they find there. Those with an underscore are
# no interface of LLM-DataDist, but programs and their tests lean on them.
CLASSES: dict[str, tuple[str, ...]] = {
    "LLMDataDist": (
        "init",
        "finalize",
        "cluster_id",
        "cache_manager",
        "kv_cache_manager",
        "link_clusters",
        "unlink_clusters",
        "check_link_status",
        "switch_role",
        "link",
        "unlink",
        "query_register_mem_status",
        "llm_engine_instance",
        "_role_to_str",
        "_cluster_config",
        "_is_initialized",
        "_enable_cache_mgr",
        "_enable_local_comm_res",
        "_llm_datadist",
        "_kv_cache_manager",
        "_engine_options",
        "_role",
    ),
    "v2.cache_manager.CacheManager": (
        "register_cache",
        "register_blocks_cache",
        "unregister_cache",
        "allocate_cache",
        "allocate_blocks_cache",
        "deallocate_cache",
        "deallocate_blocks_cache",
        "remove_cache_key",
        "remap_registered_memory",
        "copy_cache",
        "copy_blocks",
        "swap_blocks",
        "push_blocks",
        "push_cache",
        "pull_blocks",
        "pull_cache",
        "transfer_cache_async",
    ),
    "LlmConfig": (
        "device_id",
        "sync_kv_timeout",
        "ge_options",
        "listen_ip_info",
        "enable_cache_manager",
        "enable_remote_cache_accessible",
        "mem_pool_cfg",
        "host_mem_pool_cfg",
        "rdma_traffic_class",
        "rdma_service_level",
        "local_comm_res",
        "link_total_time",
        "link_retry_count",
        "transfer_backend",
        "global_resource_config",
        "enable_switch_role",
        "deploy_res_path",
        "buf_pool_cfg",
        "output_max_size",
        "mem_utilization",
        "cluster_info",
        "options",
        "generate_options",
        "gen_options",
        "_enable_remote_cache_accessible",
    ),
    "LLMClusterInfo": (
        "remote_cluster_id",
        "remote_role_type",
        "local_ip_info_list",
        "remote_ip_info_list",
        "append_local_ip_info",
        "append_remote_ip_info",
    ),
    "CacheDesc": (
        "num_tensors",
        "shape",
        "data_type",
        "placement",
        "batch_dim",
        "batch_size",
        "seq_len_dim_index",
        "kv_tensor_format",
        "size",
        "update_dim",
    ),
    "BlocksCacheKey": ("cluster_id", "prompt_cluster_id", "model_id"),
    "CacheKey": ("cluster_id", "prompt_cluster_id", "req_id", "prefix_id", "model_id"),
    "CacheKeyByIdAndIndex": ("cluster_id", "cache_id", "batch_index"),
    "Cache": ("cache_id", "cache_desc", "tensor_addrs", "is_blocks_cache", "create_cpu_cache"),
    "KvCache": ("cache_id", "cache_desc", "per_device_tensor_addrs", "create_cpu_cache"),
    "MemInfo": ("mem_type", "addr", "size"),
    "LayerSynchronizer": ("synchronize_layer",),
    "TransferConfig": ("dst_cluster_id", "dst_addrs", "src_layer_range", "src_batch_index", "dst_layer_range"),
    "TransferWithCacheKeyConfig": (
        "cache_key",
        "src_layer_range",
        "dst_layer_range",
        "src_batch_index",
        "dst_cluster_id",
    ),
    "CacheTask": ("synchronize", "get_results"),
    "LLMException": ("status_code",),
    "Status": ("is_ok", "status_code"),
}
ENUMS: dict[str, tuple[str, ...]] = {
    "LLMRole": ("PROMPT", "DECODER", "MIX"),
    "Placement": ("HOST", "DEVICE"),
    "Memtype": ("MEM_TYPE_DEVICE", "MEM_TYPE_HOST"),
    "RegisterMemStatus": ("OK", "PREPARING", "FAILED"),
    "DataType": (
        "DT_FLOAT",
        "DT_FLOAT16",
        "DT_BF16",
        "DT_INT8",
        "DT_INT16",
        "DT_UINT16",
        "DT_UINT8",
        "DT_INT32",
        "DT_INT64",
        "DT_UINT32",
        "DT_UINT64",
        "DT_BOOL",
        "DT_DOUBLE",
        "DT_STRING",
    ),
    "LLMStatusCode": (
        "LLM_SUCCESS",
        "LLM_FAILED",
        "LLM_WAIT_PROCESS_TIMEOUT",
        "LLM_KV_CACHE_NOT_EXIST",
        "LLM_REPEAT_REQUEST",
        "LLM_REQUEST_ALREADY_COMPLETED",
        "LLM_PARAM_INVALID",
        "LLM_ENGINE_FINALIZED",
        "LLM_NOT_YET_LINK",
        "LLM_ALREADY_LINK",
        "LLM_LINK_FAILED",
        "LLM_UNLINK_FAILED",
        "LLM_NOTIFY_PROMPT_UNLINK_FAILED",
        "LLM_CLUSTER_NUM_EXCEED_LIMIT",
        "LLM_PROCESSING_LINK",
        "LLM_DEVICE_OUT_OF_MEMORY",
        "LLM_PREFIX_ALREADY_EXIST",
        "LLM_PREFIX_NOT_EXIST",
        "LLM_SEQ_LENOVERLIMIT",
        "LLM_NO_FREE_BLOCK",
        "LLM_BLOCKS_OUT_OF_MEMORY",
        "LLM_EXIST_LINK",
        "LLM_FEATURE_NOT_ENABLED",
        "LLM_TIMEOUT",
        "LLM_LINK_BUSY",
        "LLM_OUT_OF_MEMORY",
        "LLM_DEVICE_MEM_ERROR",
        "LLM_SUSPECT_REMOTE_ERROR",
        "LLM_UNKNOWN_ERROR",
    ),
}
OTHERS: dict[str, tuple[str, ...]] = {  # modules and what is in them, beside the above
    "LLMConfig": (),
    "v2_list": (),
    "configs": (),
    "status": ("code_2_status",),
    "data_type": ("dtype_to_np_dtype", "valid_np_dtypes", "np_dtype_to_dtype"),
    "utils.utils": (
        "check_isinstance",
        "check_dict",
        "check_list_int32",
        "check_int32",
        "check_int64",
        "check_uint8",
        "check_uint16",
        "check_uint32",
        "check_uint64",
    ),
    "utils.log": ("debug", "info", "warning", "error", "_find_caller"),
    "v2.llm_types": ("PushType", "int_to_mem_status"),
    "v2.llm_utils": ("parse_listen_ip_info", "layer_range_to_tensor_indices"),
    "v2.cache_manager": ("CacheManager",),
    "v2.llm_datadist": ("_shutdown_handler", "EngineConfig"),
    "v2.config": ("EngineConfig",),
    "llm_datadist_wrapper": ("kSuccess",),
    "metadef_wrapper": (),
}

_HEAD = """\
# LLM-DataDist's names, and how they are here

Written by `python -m ray_kvfabric.integrations.llm_datadist.compatibility`; a test fails when it no longer fits the
package. *yes* means: same arguments, checks, order of checks, errors and codes as LLM-DataDist's CacheManager
interface ("v2"). A word under *differs* is explained [below](#differences). How it is reached: `install()` or
`kvfabric run`, then `import llm_datadist`.
"""
_V1_TEXT = "of the older engine's package `llm_datadist_v1`, where it is looked up; ImportError without that"
INTERNALS = ("v2.llm_utils.TransferCacheJob", "v2.llm_utils.TransferCacheParameters")
_INTERNALS_TEXT = "how LLM-DataDist's own transfer_cache_async works inside; no program can use it by itself"
# What our objects have besides; none of it changes what a program written for LLM-DataDist sees.
ADDITIONS: dict[str, tuple[str, ...]] = {
    "BlocksCacheKey": ("way",),
    "Cache": ("numpy", "torch", "read", "write", "forget_addresses", "forget_memory"),
    "CacheTask": ("errors",),
    "LLMException": ("default_code",),
}


def concerns(deviation: Deviation, name: str) -> bool:
    """Whether it shows in `name`, which is a class, or a class and a member."""
    return name.removeprefix("v2.cache_manager.") in deviation.names


def page() -> str:
    """COMPATIBILITY.md, in Markdown."""
    return "".join((_HEAD, *_classes(), *_enums(), *_others(), *_additions(), *_differences()))


def _classes() -> Iterator[str]:
    for name, members in CLASSES.items():
        short = name.rpartition(".")[2]
        yield _table_head(f"`{short}`", "name")
        yield _row(f"`{short}`", name)
        for member in members:
            yield _row(f"`{member}`", f"{name}.{member}")


def _enums() -> Iterator[str]:
    yield _table_head("Enums", "name and members")
    for name, members in ENUMS.items():
        yield _row(f"`{name}`: {', '.join(f'`{each}`' for each in members)}", name)


def _others() -> Iterator[str]:
    yield _table_head("Other names and modules", "name")
    for name, members in OTHERS.items():
        listed = f": {', '.join(f'`{each}`' for each in members)}" if members else ""
        yield _row(f"`{name}`{listed}", name)
    for name in V1:
        yield f"| `{name}` | no | {_V1_TEXT} |\n"
    for name in INTERNALS:
        yield f"| `{name}` | no | {_INTERNALS_TEXT} |\n"


def _additions() -> Iterator[str]:
    listed = ", ".join(f"`{name}.{member}`" for name, members in ADDITIONS.items() for member in members)
    yield f"\nAdded here: {listed}.\n"


def _table_head(title: str, column: str) -> str:
    return f"\n## {title}\n\n| {column} | here | differs |\n|---|---|---|\n"


def _row(shown: str, name: str) -> str:
    met = [each.name for each in DEVIATIONS if each.where != "native" and concerns(each, name)]
    return f"| {shown} | {'differs' if met else 'yes'} | {', '.join(f'[{each}](#{each})' for each in met)} |\n"


def _differences() -> Iterator[str]:
    yield "\n## Differences\n\n### In every name\n"
    yield from _entries(each for each in DEVIATIONS if each.where != "native" and not each.names)
    yield "\n### In those that refer to them\n"
    yield from _entries(each for each in DEVIATIONS if each.where != "native" and each.names)
    yield "\n### In `ray_kvfabric.CacheManager` besides\n\nThe project's own interface has the same verbs.\n"
    yield from _entries(each for each in DEVIATIONS if each.where == "native")


def _entries(deviations: Iterable[Deviation]) -> Iterator[str]:
    yield "\n| | LLM-DataDist | here | because |\n|---|---|---|---|\n"
    for each in deviations:
        yield f'| <a id="{each.name}"></a>{each.name} | {each.reference} | {each.ours} | {each.why} |\n'


if __name__ == "__main__":
    print(page(), end="")
