"""Where this project differs from LLM-DataDist, on purpose, as data: the contract suite and the docs read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Deviation:
    """One difference. A test that meets it looks it up by `name`, so a difference that went away is noticed."""

    name: str
    where: Literal["native", "drop_in", "both"]
    contract: str  # the section, such as "8.1"
    names: tuple[str, ...]  # that it shows in; none: in all of them
    reference: str  # what LLM-DataDist does
    ours: str
    why: str


_EARLY = "a mistake is named where it is made"
_SAFE = "bytes would land in, or come from, the wrong place"

_PUSHES = ("CacheManager.push_blocks", "CacheManager.push_cache")
_PULLS = ("CacheManager.pull_blocks", "CacheManager.pull_cache")
_LAYERS = ("CacheManager.transfer_cache_async",)
_REGISTERS = ("CacheManager.register_cache", "CacheManager.register_blocks_cache")
_COPIES = ("CacheManager.copy_cache", "CacheManager.copy_blocks", "CacheManager.swap_blocks")
_ALLOCATES = ("CacheManager.allocate_cache", "CacheManager.allocate_blocks_cache")

DEVIATIONS = (
    Deviation(
        name="unlogged_refusals",
        where="drop_in",
        contract="2.2",
        names=(),
        reference="a failed check logs its message at error level, too",
        ours="the message is in the exception only",
        why="whoever catches the exception decides what is logged",
    ),
    Deviation(
        name="none_ip",
        where="drop_in",
        contract="7",
        names=("LLMClusterInfo.append_local_ip_info", "LLMClusterInfo.append_remote_ip_info"),
        reference="append_local_ip_info and append_remote_ip_info let an ip of None through; it fails later",
        ours="TypeError",
        why=_EARLY,
    ),
    Deviation(
        name="none_data_type",
        where="both",
        contract="8.1",
        names=("CacheDesc",),
        reference="CacheDesc accepts a data_type of None",
        ours="TypeError",
        why="a cache without an element type has no size",
    ),
    Deviation(
        name="none_placement",
        where="both",
        contract="8.1",
        names=("CacheDesc",),
        reference="CacheDesc accepts a placement of None",
        ours="TypeError",
        why=_EARLY,
    ),
    Deviation(
        name="none_blocks_key_id",
        where="both",
        contract="8.2",
        names=("BlocksCacheKey",),
        reference="BlocksCacheKey accepts None as cluster_id or model_id, and fails with TypeError when it is used",
        ours="TypeError when it is made",
        why=_EARLY,
    ),
    Deviation(
        name="cpu_cache_address_width",
        where="both",
        contract="8.5",
        names=("Cache.create_cpu_cache", "KvCache.create_cpu_cache"),
        reference="create_cpu_cache accepts an address that no uint64 holds; using it is a TypeError",
        ours="TypeError when the cache is made",
        why=_EARLY,
    ),
    Deviation(
        name="exit_handler_at_init",
        where="drop_in",
        contract="2.2",
        names=("LLMDataDist.init",),
        reference="the handler that finalizes at the end of the interpreter is registered by the import",
        ours="by the first init",
        why="importing does nothing",
    ),
    Deviation(
        name="refusal_texts",
        where="both",
        contract="3.1",
        names=(),
        reference=(
            "an engine's failure is text with the method's tag in brackets and the code's name first; argument checks "
            "have texts of their own"
        ),
        ours="the text says which field of which side did not fit; the code is in status_code",
        why="who reads it can mend it",
    ),
    Deviation(
        name="cluster_id_taken",
        where="both",
        contract="9.2",
        names=("LLMDataDist.init",),
        reference="nobody checks that a cluster_id is unique",
        ours="a second live endpoint of a cluster_id is refused with LLM_FAILED, a dead one is replaced",
        why="a key must name one endpoint",
    ),
    Deviation(
        name="listen_alias",
        where="drop_in",
        contract="9.2",
        names=("LLMDataDist.init", "LLMDataDist.switch_role", "LlmConfig.listen_ip_info"),
        reference="listenIpInfo opens a socket: the port must be free and the ip this host's",
        ours="it is an alias of the endpoint in the fabric; LLM_FAILED when another live endpoint has it",
        why="all control runs over the fabric's own connections",
    ),
    Deviation(
        name="unread_options",
        where="drop_in",
        contract="6",
        names=(
            "LlmConfig.device_id",
            "LlmConfig.rdma_traffic_class",
            "LlmConfig.rdma_service_level",
            "LlmConfig.global_resource_config",
            "LlmConfig.link_retry_count",
            "LlmConfig.local_comm_res",
        ),
        reference=(
            "options choose the device, the RDMA traffic class and level, the HIXL resources and how often to connect"
        ),
        ours="they are checked for their form where LLM-DataDist does so, and nothing reads them",
        why="the fabric picks the best way between two endpoints by itself",
    ),
    Deviation(
        name="pools_fill_as_used",
        where="drop_in",
        contract="6",
        names=("LLMDataDist.init", "LlmConfig.mem_pool_cfg", "LlmConfig.host_mem_pool_cfg"),
        reference="a pool is allocated by init, which fails with LLM_OUT_OF_MEMORY where there is not that much",
        ours="a pool is a budget: each cache takes its memory, and may find none left, when it is allocated",
        why="memory that no cache uses stays free for others",
    ),
    Deviation(
        name="bounded_waits",
        where="drop_in",
        contract="9.3",
        names=("LLMDataDist.finalize", "LLMDataDist.unlink", "LLMDataDist.unlink_clusters"),
        reference="finalize and unlinking wait for the calls that are under way, however long",
        ours=(
            "LLM_TIMEOUT after the control time limit (20 s), or the call's own; this end of the link, or the "
            "engine, has ended by then, unless the peer did not answer"
        ),
        why="every wait has a limit",
    ),
    Deviation(
        name="none_is_a_type_error",
        where="both",
        contract="3.1",
        names=(),
        reference="None for a key, a cache, a description or a dict fails late, as an AttributeError",
        ours="an error that is both an AttributeError and a TypeError, before anything else is looked at",
        why=_EARLY,
    ),
    Deviation(
        name="values_checked_with_types",
        where="both",
        contract="3.2",
        names=(*_PUSHES, *_PULLS, "CacheManager.register_cache", "CacheManager.copy_blocks"),
        reference=(
            "a negative block index, id or address, and a source of create_cpu_cache, is a TypeError once ranges and "
            "counts were checked"
        ),
        ours="the same TypeError, before them",
        why=_EARLY,
    ),
    Deviation(
        name="local_checks_first",
        where="both",
        contract="12.1",
        names=_PUSHES,
        reference="whether the tensors divide into layers is looked at after the link and the peer's cache",
        ours="before: the peer is not needed for it",
        why=_EARLY,
    ),
    Deviation(
        name="pulls_side_by_side",
        where="both",
        contract="10.4",
        names=(*_PUSHES, *_PULLS, *_LAYERS),
        reference="transfers over one link wait for each other, and pushes of one process too",
        ours="they run side by side; two pulls that begin before the first has used up their key both succeed",
        why="nothing is gained by waiting",
    ),
    Deviation(
        name="local_checks_with_the_peer_s",
        where="both",
        contract="12.4",
        names=(*_PUSHES, *_PULLS),
        reference=(
            "rows, pools and remote_accessible of the local cache are looked at before the peer's cache, rows of a "
            "pull before the link; a freed local cache before the ranges"
        ),
        ours="together with the peer's cache, once that was found; ranges first",
        why="whatever is wrong, the call is refused with the code for it",
    ),
    Deviation(
        name="no_staging",
        where="both",
        contract="10.7",
        names=_PULLS,
        reference=(
            "a request-mode pull between host and device goes through 64 MiB of the host side's device pool, and is "
            "LLM_OUT_OF_MEMORY where that does not come free in time"
        ),
        ours="the pool must be there, of whatever size: emulated device memory is reached without a detour",
        why="nothing has to be staged",
    ),
    Deviation(
        name="addresses_end_with_the_memory",
        where="both",
        contract="11.3",
        names=("CacheManager.unregister_cache", "LLMDataDist.finalize"),
        reference="unregister_cache and finalize leave a Cache its addresses, also where their memory was freed",
        ours="of an allocated cache tensor_addrs is empty, as after deallocate_*; of a registered one it stays",
        why="an address of freed memory is only good for mistakes",
    ),
    Deviation(
        name="finalized_before_arguments",
        where="drop_in",
        contract="9.3",
        names=(),
        reference="a cache manager that was kept beyond finalize still checks its arguments first",
        ours="that the LLMDataDist was finalized is said before anything else",
        why="it is what the caller must know",
    ),
    Deviation(
        name="prefix_is_no_placeholder",
        where="both",
        contract="10.2",
        names=("CacheManager.allocate_cache",),
        reference="a CacheKey without a req_id is a placeholder, one a model and call, whatever its prefix_id",
        ours="one with a prefix_id alone names its row by that, and is no placeholder",
        why="several rows may be prefixes",
    ),
    Deviation(
        name="no_option_gate",
        where="native",
        contract="12.1",
        names=_PUSHES,
        reference="push_* need enable_remote_cache_accessible",
        ours="transfer_mode only decides how pulls behave; pushes work in both",
        why="one endpoint may serve both kinds of programs",
    ),
    Deviation(
        name="links_open_by_themselves",
        where="native",
        contract="10.4",
        names=(*_PUSHES, *_PULLS, *_LAYERS),
        reference="a link must exist before a transfer, else LLM_NOT_YET_LINK",
        ours="every endpoint of the fabric can be reached; LLM_NOT_YET_LINK is for an unknown cluster_id",
        why="the fabric knows its members",
    ),
    Deviation(
        name="every_tensor_by_default",
        where="native",
        contract="12.1",
        names=_PUSHES,
        reference=(
            "a push without ranges moves the layers that fill the source cache, and none, with success, where "
            "tensor_num_per_layer is larger than its tensor count"
        ),
        ours=(
            "every tensor moves and the target must have as many; a tensor_num_per_layer beyond both them and 2 "
            "is LLM_PARAM_INVALID"
        ),
        why="whoever wants less than everything says so by ranges",
    ),
    Deviation(
        name="push_of_no_layer_is_logged",
        where="drop_in",
        contract="15.4",
        names=_PUSHES,
        reference="a push without ranges whose tensor_num_per_layer exceeds the tensor count succeeds in silence",
        ours="it succeeds with a warning in the log",
        why="nothing was moved, and somebody should know",
    ),
    Deviation(
        name="refused_push_moves_nothing",
        where="both",
        contract="12.1",
        names=_PUSHES,
        reference="layers are checked one by one, so that those before a refused one are written",
        ours="every layer is checked before the first byte moves",
        why="a refused call has changed nothing",
    ),
    Deviation(
        name="limit_of_the_whole_call",
        where="both",
        contract="10.6",
        names=(*_PUSHES, *_PULLS, *_LAYERS, "LlmConfig.sync_kv_timeout"),
        reference=(
            "sync_kv_timeout bounds each layer of a push, and a pull with 500 ms more from device to host; looking "
            "the cache up and waiting for other calls does not count"
        ),
        ours=(
            "it bounds the whole push or pull, with everything in it, and of transfer_cache_async each layer; only "
            "telling the owner that its key is used up, when the bytes are here, may take longer"
        ),
        why="a caller's time limit should hold",
    ),
    Deviation(
        name="no_snapshot",
        where="both",
        contract="10.3",
        names=(*_PUSHES, *_PULLS, *_LAYERS),
        reference="a peer's caches are read once a link: newer ones do not exist, removed ones are still written to",
        ours="caches are seen, and gone, at once; a removed one is LLM_KV_CACHE_NOT_EXIST",
        why="writing to freed memory destroys what lies there now",
    ),
    Deviation(
        name="equal_block_sizes",
        where="both",
        contract="15.1",
        names=("CacheManager.push_blocks", "CacheManager.pull_blocks", *_LAYERS),
        reference="blocks of unequal size are copied to wrong places",
        ours="LLM_PARAM_INVALID",
        why=_SAFE,
    ),
    Deviation(
        name="equal_element_widths",
        where="both",
        contract="4.3",
        names=(*_PUSHES, *_PULLS, *_LAYERS),
        reference="no transfer compares element types",
        ours="caches whose elements differ in width are refused with LLM_PARAM_INVALID",
        why="such a pair is a mistake that only shows in the model's output",
    ),
    Deviation(
        name="longer_row_refused",
        where="both",
        contract="15.1",
        names=("CacheManager.push_cache", *_LAYERS),
        reference="push_cache does not compare the rows' sizes: a longer source row is written beyond the target's",
        ours="LLM_PARAM_INVALID",
        why=_SAFE,
    ),
    Deviation(
        name="row_that_the_key_names",
        where="both",
        contract="12.3",
        names=_PULLS,
        reference=(
            "in one-sided mode a pull into blocks reads row 0 whatever its key names, and pull_cache takes the "
            "local row size for the distance of the peer's rows"
        ),
        ours="the row that the key names is read",
        why=_SAFE,
    ),
    Deviation(
        name="remainder_of_the_row",
        where="both",
        contract="12.3",
        names=("CacheManager.pull_blocks", *_LAYERS),
        reference="the last piece of a row cut into blocks is shortened by what is left of the whole tensor",
        ours="by what is left of the row",
        why=_SAFE,
    ),
    Deviation(
        name="pulls_stay_inside",
        where="both",
        contract="15.2",
        names=_PULLS,
        reference="a one-sided pull reads beyond the peer's row, layers or blocks",
        ours="LLM_PARAM_INVALID",
        why=_SAFE,
    ),
    Deviation(
        name="negative_cache_id",
        where="both",
        contract="15.7",
        names=_PULLS,
        reference="a request-mode pull by a negative cache id may end the peer's service thread",
        ours="LLM_PARAM_INVALID",
        why="nobody's typing error should stop the peer",
    ),
    Deviation(
        name="second_cache_by_id",
        where="both",
        contract="15.7",
        names=_PULLS,
        reference="of two registered caches with one key, a pull of the second by its id gives the first",
        ours="the second",
        why="an id is unique",
    ),
    Deviation(
        name="pull_cache_takes_every_key",
        where="native",
        contract="12.4",
        names=_PULLS,
        reference="in one-sided mode pull_cache takes no CacheKey, and prefixes are not seen by pull_blocks",
        ours="every key is taken in both modes",
        why="the fabric's directory knows all keys",
    ),
    Deviation(
        name="pull_keywords",
        where="native",
        contract="12.3",
        names=_PULLS,
        reference="pulls ignore unknown keyword arguments",
        ours="TypeError",
        why=_EARLY,
    ),
    Deviation(
        name="zeroed_memory",
        where="both",
        contract="11.4",
        names=_ALLOCATES,
        reference="allocated memory is not initialised",
        ours="it is zeroed",
        why="another owner's data must not show",
    ),
    Deviation(
        name="ordered_chains",
        where="both",
        contract="11.9",
        names=("CacheManager.copy_blocks",),
        reference="copy_blocks with a chain such as {0: [1], 1: [2]} has no defined order",
        ours="the dict's order, pair by pair: block 0 reaches block 2",
        why="a result should not depend on luck",
    ),
    Deviation(
        name="host_is_accessible",
        where="native",
        contract="11.1",
        names=_REGISTERS,
        reference=(
            "HOST caches are registered as not remote accessible by default, and every cache once link was called"
        ),
        ours="remote_accessible defaults to True",
        why="host memory is what this fabric is for",
    ),
    Deviation(
        name="null_address",
        where="both",
        contract="11.2",
        names=("CacheManager.register_blocks_cache",),
        reference="register_blocks_cache takes an address 0 for a cache that is not remote accessible",
        ours="LLM_PARAM_INVALID",
        why=_EARLY,
    ),
    Deviation(
        name="unmapped_addresses",
        where="both",
        contract="11.1",
        names=(*_REGISTERS, "CacheManager.swap_blocks"),
        reference="addresses are not validated: one that is not mapped ends the process when it is used",
        ours=(
            "LLM_PARAM_INVALID when the cache is first used, also in swap_blocks; when it is registered for one "
            "beyond 2**63, where no process has memory"
        ),
        why="a wrong number should not end a process",
    ),
    Deviation(
        name="buffers_are_registered",
        where="native",
        contract="11.1",
        names=_REGISTERS,
        reference="addrs are ints only",
        ours="buffers and DLPack tensors are taken as well, and kept alive while they are registered",
        why="an address does not keep its memory alive",
    ),
    Deviation(
        name="addresses_in_a_cache",
        where="both",
        contract="12.5",
        names=(*_LAYERS, "TransferConfig.dst_addrs"),
        reference="transfer_cache_async writes to the addresses of a TransferConfig unseen",
        ours=(
            "both addresses of a layer must lie in one remote_accessible cache of the peer: else "
            "LLM_KV_CACHE_NOT_EXIST or LLM_PARAM_INVALID"
        ),
        why=_SAFE,
    ),
    Deviation(
        name="destination_layers",
        where="both",
        contract="12.5",
        names=(*_LAYERS, "TransferWithCacheKeyConfig.dst_layer_range"),
        reference=(
            "dst_layer_range is indexed by the number of the source layer: a source range that does not start at "
            "0 reaches wrong layers, or none"
        ),
        ours="by the place in src_layer_range",
        why="the ranges pair up as in push_blocks",
    ),
    Deviation(
        name="result_of_each_config",
        where="both",
        contract="12.5",
        names=("CacheTask.get_results", "CacheTask.synchronize"),
        reference="two configs that go to one cluster share a result",
        ours="each config has its own",
        why="the first one's failure must not look like the second one's",
    ),
    Deviation(
        name="layer_errors",
        where="both",
        contract="15.5",
        names=("CacheTask.get_results", "CacheTask.synchronize", "LayerSynchronizer.synchronize_layer"),
        reference=(
            "an exception in the thread of transfer_cache_async or in its synchronizer is printed, and "
            "synchronize gives LLM_SUCCESS"
        ),
        ours="the config gets the error's code, LLM_FAILED or LLM_TIMEOUT for an error without one",
        why="bytes that did not arrive are no success",
    ),
    Deviation(
        name="layer_transfer_takes_more",
        where="native",
        contract="12.5",
        names=_LAYERS,
        reference="transfer_cache_async takes DEVICE sources only, and in each mode one kind of config",
        ours="HOST sources too, and both kinds of configs side by side",
        why="nothing in the fabric asks for less",
    ),
    Deviation(
        name="half_open_peer",
        where="drop_in",
        contract="15.8",
        names=("LLMDataDist.link_clusters",),
        reference="a peer that accepts the connection and stays silent holds link_clusters for ever",
        ours="LLM_TIMEOUT when the given timeout has passed",
        why="every wait has a limit",
    ),
    Deviation(
        name="newest_link_stays",
        where="drop_in",
        contract="9.9",
        names=("LLMDataDist.unlink",),
        reference="of two links to a cluster, unlinking the older one makes the newer one useless: LLM_NOT_YET_LINK",
        ours="each link ends by its own unlink",
        why="a defect of the reference",
    ),
    Deviation(
        name="link_is_ready",
        where="drop_in",
        contract="9.10",
        names=("LLMDataDist.link", "LLMDataDist.query_register_mem_status"),
        reference="link returns while memory is still exchanged: the status is PREPARING, then OK or FAILED",
        ours="the status is OK once link has returned",
        why="nothing has to be exchanged",
    ),
    Deviation(
        name="rank_table_not_read",
        where="drop_in",
        contract="9.8",
        names=("LLMDataDist.link",),
        reference="the rank table says where the members are",
        ours="any text will do",
        why="the fabric knows where its endpoints are",
    ),
    Deviation(
        name="restarted_peer_is_reached",
        where="both",
        contract="9.5",
        names=("LLMDataDist.link_clusters",),
        reference="a peer that was restarted must be unlinked and linked anew",
        ours="the link names the cluster: the next transfer finds its new process",
        why="a restart of one process needs no restart of its neighbours",
    ),
    Deviation(
        name="table_refuses_before",
        where="drop_in",
        contract="15.6",
        names=(*_REGISTERS, *_ALLOCATES),
        reference="a cache for which the table of 1 MiB has no room is refused and stays registered",
        ours="it is refused before the pool is asked for its memory, and leaves nothing behind",
        why="a refused call has changed nothing",
    ),
    Deviation(
        name="no_table_no_messages",
        where="native",
        contract="5",
        names=(*_REGISTERS, *_ALLOCATES, *_PULLS),
        reference="caches must fit into a table of 1 MiB, and a pull into one message",
        ours="neither is limited",
        why="the fabric has no such table and sends no such message",
    ),
    Deviation(
        name="no_message_buffers",
        where="both",
        contract="5",
        names=("LLMDataDist.link_clusters",),
        reference="in request mode the 513th link finds no message buffer: LLM_FAILED",
        ours="any number of links",
        why="there are no message buffers",
    ),
    Deviation(
        name="cache_slots",
        where="both",
        contract="5",
        names=(*_REGISTERS, *_ALLOCATES),
        reference="the number of caches is not limited by itself",
        ours="an endpoint holds 16384 caches at once, grants among them; one more is LLM_FAILED",
        why="each has a word in the endpoint's shared page, which tells peers that it was freed",
    ),
    Deviation(
        name="dead_peer_code",
        where="both",
        contract="4.1",
        names=("LLMStatusCode",),
        reference="LLM_SUSPECT_REMOTE_ERROR is what the device's runtime says of a broken path",
        ours="it says that the peer's process died; once the fabric has noticed the answer is LLM_NOT_YET_LINK",
        why="the operating system tells at once that a process ended",
    ),
    Deviation(
        name="kind_of_the_verb",
        where="both",
        contract="15.6",
        names=("CacheDesc", "CacheManager.register_cache", "CacheManager.allocate_cache"),
        reference="a CacheDesc that once made a blocks cache makes blocks caches for ever, also in register_cache",
        ours="the verb decides: a CacheDesc may be used again",
        why="a description describes, it does not remember",
    ),
    Deviation(
        name="device_caches_need_a_device",
        where="both",
        contract="11.4",
        names=(*_ALLOCATES, *_COPIES, *_PUSHES, *_PULLS, *_LAYERS, "Placement"),
        reference="DEVICE memory is the NPU's",
        ours=(
            "they lie on the device that torch has here, an NPU or a CUDA GPU; without one, allocating, copying and "
            "transferring DEVICE caches is LLM_PARAM_INVALID, and reaching a peer's is LLM_LINK_FAILED; "
            "emulated_device='host' lets them lie in host memory"
        ),
        why="programs written for NPUs can be tried where there is none",
    ),
)
