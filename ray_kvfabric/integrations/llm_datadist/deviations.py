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
)
