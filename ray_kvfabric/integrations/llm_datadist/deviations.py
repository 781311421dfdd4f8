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
    reference: str  # what LLM-DataDist does
    ours: str
    why: str


_EARLY = "a mistake is named where it is made"
_SAFE = "bytes would land in, or come from, the wrong place"

DEVIATIONS = (
    Deviation(
        name="unlogged_refusals",
        where="drop_in",
        contract="2.2",
        reference="a failed check logs its message at error level, too",
        ours="the message is in the exception only",
        why="whoever catches the exception decides what is logged",
    ),
    Deviation(
        name="none_ip",
        where="drop_in",
        contract="7",
        reference="append_local_ip_info and append_remote_ip_info let an ip of None through; it fails later",
        ours="TypeError",
        why=_EARLY,
    ),
    Deviation(
        name="none_data_type",
        where="both",
        contract="8.1",
        reference="CacheDesc accepts a data_type of None",
        ours="TypeError",
        why="a cache without an element type has no size",
    ),
    Deviation(
        name="none_placement",
        where="both",
        contract="8.1",
        reference="CacheDesc accepts a placement of None",
        ours="TypeError",
        why=_EARLY,
    ),
    Deviation(
        name="none_blocks_key_id",
        where="both",
        contract="8.2",
        reference="BlocksCacheKey accepts None as cluster_id or model_id, and fails with TypeError when it is used",
        ours="TypeError when it is made",
        why=_EARLY,
    ),
    Deviation(
        name="cpu_cache_address_width",
        where="both",
        contract="8.5",
        reference="create_cpu_cache accepts an address that no uint64 holds; using it is a TypeError",
        ours="TypeError when the cache is made",
        why=_EARLY,
    ),
    Deviation(
        name="exit_handler_at_init",
        where="drop_in",
        contract="2.2",
        reference="the handler that finalizes at the end of the interpreter is registered by the import",
        ours="by the first init",
        why="importing does nothing",
    ),
    Deviation(
        name="refusal_texts",
        where="both",
        contract="3.1",
        reference="an engine's failure is text with the method's tag in brackets and the code's name first",
        ours="the text says which field of which side did not fit; the code is in status_code",
        why="who reads it can mend it",
    ),
    Deviation(
        name="cluster_id_taken",
        where="both",
        contract="9.2",
        reference="nobody checks that a cluster_id is unique",
        ours="a second live endpoint of a cluster_id is refused with LLM_FAILED, a dead one is replaced",
        why="a key must name one endpoint",
    ),
    Deviation(
        name="listen_alias",
        where="drop_in",
        contract="9.2",
        reference="listenIpInfo opens a socket: the port must be free and the ip this host's",
        ours="it is an alias of the endpoint in the fabric; LLM_FAILED when another live endpoint has it",
        why="all control runs over the fabric's own connections",
    ),
    Deviation(
        name="unread_options",
        where="drop_in",
        contract="6",
        reference=(
            "options choose the device, the RDMA traffic class and level, the HIXL resources and how often to connect"
        ),
        ours="they are checked for their form where LLM-DataDist does so, and nothing reads them",
        why="the fabric picks the best way between two endpoints by itself",
    ),
    Deviation(
        name="bounded_waits",
        where="drop_in",
        contract="9.3",
        reference="finalize and unlinking wait for the calls that are under way, however long",
        ours=(
            "LLM_TIMEOUT after the control time limit (20 s), or the call's own; the link or the engine has "
            "ended by then"
        ),
        why="every wait has a limit",
    ),
    Deviation(
        name="none_is_a_type_error",
        where="both",
        contract="3.1",
        reference="None for a key, a cache, a description or a dict fails late, as an AttributeError",
        ours="an error that is both an AttributeError and a TypeError, before anything else is looked at",
        why=_EARLY,
    ),
    Deviation(
        name="values_checked_with_types",
        where="both",
        contract="3.2",
        reference=(
            "a negative block index or id, and a cache of create_cpu_cache, is a TypeError once ranges and sizes "
            "were checked"
        ),
        ours="the same TypeError, before them",
        why=_EARLY,
    ),
    Deviation(
        name="local_checks_first",
        where="both",
        contract="12.1",
        reference="whether the tensors divide into layers is looked at after the link and the peer's cache",
        ours="before: the peer is not needed for it",
        why=_EARLY,
    ),
    Deviation(
        name="no_option_gate",
        where="native",
        contract="12.1",
        reference="push_* need enable_remote_cache_accessible",
        ours="transfer_mode only decides how pulls behave; pushes work in both",
        why="one endpoint may serve both kinds of programs",
    ),
    Deviation(
        name="links_open_by_themselves",
        where="native",
        contract="10.4",
        reference="a link must exist before a transfer, else LLM_NOT_YET_LINK",
        ours="every endpoint of the fabric can be reached; LLM_NOT_YET_LINK is for an unknown cluster_id",
        why="the fabric knows its members",
    ),
    Deviation(
        name="every_tensor_by_default",
        where="native",
        contract="12.1",
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
        reference="a push without ranges whose tensor_num_per_layer exceeds the tensor count succeeds in silence",
        ours="it succeeds with a warning in the log",
        why="nothing was moved, and somebody should know",
    ),
    Deviation(
        name="refused_push_moves_nothing",
        where="both",
        contract="12.1",
        reference="layers are checked one by one, so that those before a refused one are written",
        ours="every layer is checked before the first byte moves",
        why="a refused call has changed nothing",
    ),
    Deviation(
        name="limit_of_the_whole_call",
        where="both",
        contract="10.6",
        reference=(
            "sync_kv_timeout bounds each layer of a push; looking the cache up and waiting for other calls does "
            "not count"
        ),
        ours="it bounds the whole push, with everything in it; of transfer_cache_async each layer",
        why="a caller's time limit should hold",
    ),
    Deviation(
        name="no_snapshot",
        where="both",
        contract="10.3",
        reference="a peer's caches are read once a link: newer ones do not exist, removed ones are still written to",
        ours="caches are seen, and gone, at once; a removed one is LLM_KV_CACHE_NOT_EXIST",
        why="writing to freed memory destroys what lies there now",
    ),
    Deviation(
        name="equal_block_sizes",
        where="both",
        contract="15.1",
        reference="blocks of unequal size are copied to wrong places",
        ours="LLM_PARAM_INVALID",
        why=_SAFE,
    ),
    Deviation(
        name="equal_element_widths",
        where="both",
        contract="4.3",
        reference="no transfer compares element types",
        ours="caches whose elements differ in width are refused with LLM_PARAM_INVALID",
        why="such a pair is a mistake that only shows in the model's output",
    ),
)
