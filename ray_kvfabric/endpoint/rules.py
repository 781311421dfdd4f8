"""Which two caches may exchange bytes at all: pure checks of both descriptions (contract 10.7 and 12.3)."""

from __future__ import annotations

from ray_kvfabric.cache.types import DataType
from ray_kvfabric.errors import CacheNotFound, FeatureNotEnabled, GrantNeeded, ParamInvalid
from ray_kvfabric.route import CacheInfo, EndpointInfo


def check_accessible(here: CacheInfo, there: CacheInfo, peer: str, *, is_requested: bool) -> None:
    """In request mode the owner serves the pull itself, so remote_accessible does not matter there."""
    if not is_requested:
        if not here.remote_accessible:
            raise ParamInvalid(f"cache {here.cache_id} was registered with remote_accessible=False")
        if not there.remote_accessible:
            raise ParamInvalid(f"cache {there.cache_id} of {peer} was registered with remote_accessible=False")


def check_pushable(there: CacheInfo, peer: str) -> None:
    """A push without a grant."""
    if there.grants_only:
        raise GrantNeeded(f"cache {there.cache_id} of {peer} is written under grants only")


def check_requested_pull(here: CacheInfo, there: CacheInfo, owner: EndpointInfo, has_device_pool: bool) -> None:
    """Request mode: host and device meet over a device pool of the host's side; two hosts do not meet."""
    pair = (there.placement, here.placement)
    if pair == ("HOST", "HOST"):
        raise FeatureNotEnabled(
            f"request mode does not pull from host to host: cache {there.cache_id} of {owner} and cache "
            f"{here.cache_id} are both HOST"
        )
    if pair == ("DEVICE", "HOST") and not has_device_pool:
        raise ParamInvalid(f"cache {here.cache_id} is HOST: pulling from a DEVICE cache needs a device_pool here")
    if pair != ("HOST", "DEVICE"):
        return
    if not owner.has_device_pool:
        raise ParamInvalid(
            f"cache {there.cache_id} of {owner} is HOST: pulling it into a DEVICE cache needs a device_pool there"
        )
    if here.is_blocks != there.is_blocks:
        raise ParamInvalid(
            f"from HOST to DEVICE the layouts must be equal: cache {there.cache_id} of {owner} is "
            f"{_layout(there)}, cache {here.cache_id} is {_layout(here)}"
        )


def check_rows_meet(source: CacheInfo, target: CacheInfo, names: tuple[str, str]) -> None:
    """From host memory to a device only blocks of blocks caches move (the first constraint of push_blocks)."""
    if (source.memory, target.memory) == ("host", "device"):
        raise ParamInvalid(
            f"from HOST to DEVICE only blocks caches exchange, block by block: {names[0]} is HOST, {names[1]} DEVICE"
        )


def check_element_width(source: str, target: str, names: tuple[str, str]) -> None:
    if DataType[source].element_nbytes != DataType[target].element_nbytes:
        raise ParamInvalid(f"element widths differ: {names[0]} holds {source}, {names[1]} {target}")


def check_row(row: int, cache: CacheInfo, field: str, name: str, *, must_exist: bool = False) -> None:
    """`must_exist`: in request mode a missing row of the owner is a missing cache."""
    rows = num_rows(cache)
    if row >= rows:
        text = f"{field} is {row}, {name} has rows [0, {rows})"
        raise CacheNotFound(text) if must_exist else ParamInvalid(text)


def num_rows(cache: CacheInfo) -> int:
    """Batch rows; a blocks cache counts as one (contract section 1)."""
    return 1 if cache.is_blocks else cache.regions[0].num_blocks


def _layout(cache: CacheInfo) -> str:
    return "a blocks cache" if cache.is_blocks else "a continuous cache"
