"""What a use of a grant may be: pure checks, made by the writer before it asks and by a receiver that takes part."""

from __future__ import annotations

from collections.abc import Sequence

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.errors import GrantForged, ParamInvalid, StaleIncarnation
from ray_kvfabric.grant import DIGESTS, Grant
from ray_kvfabric.plan import LayerSpan
from ray_kvfabric.route import EndpointInfo

MAX_WRITERS = 1024
MAX_TTL_S = 30 * 86_400.0


def check_ttl(ttl_s: float | None) -> None:
    """Raises TypeError, ParamInvalid. None is the setting's."""
    if ttl_s is None:
        return
    if not isinstance(ttl_s, int | float):
        raise TypeError(f"ttl_s must be a number of seconds, got {type(ttl_s).__name__}")
    if not 0 < ttl_s <= MAX_TTL_S:
        raise ParamInvalid(f"ttl_s must be above 0 and at most {MAX_TTL_S:g}, got {ttl_s}")


def granted_blocks(grant: Grant, at: int, count: int) -> tuple[int, ...]:
    """The receiver's blocks for `count` blocks from position `at` on. Raises ParamInvalid beyond the grant's end."""
    check_int(at, "uint32", "at")
    if not 0 < count <= len(grant.blocks) - at:
        raise ParamInvalid(
            f"src_blocks has {count} entries from position {at} on, {grant} has {len(grant.blocks)} blocks"
        )
    return grant.blocks[at : at + count]


def check_span(grant: Grant, span: LayerSpan) -> None:
    """Raises ParamInvalid for tensors that were not granted."""
    first, stop = grant.first_tensor, grant.first_tensor + grant.num_tensors
    if span.target_first < first or span.target_first + span.num_regions > stop:
        raise ParamInvalid(
            f"the push is to tensors [{span.target_first}, {span.target_first + span.num_regions}) of the target, "
            f"{grant} covers [{first}, {stop})"
        )


def writer_index(grant: Grant, writer: int | None, cluster_id: int) -> int:
    """Which of the grant's writers an endpoint is. Raises ParamInvalid for one that it does not name."""
    if grant.sources:
        if cluster_id not in grant.sources:
            raise ParamInvalid(f"{grant} lets endpoints {list(grant.sources)} write, not {cluster_id}")
        named = grant.sources.index(cluster_id)
        if writer not in (None, named):
            raise ParamInvalid(f"writer is {writer}, {grant} names endpoint {cluster_id} as writer {named}")
        return named
    index = 0 if writer is None else check_int(writer, "uint32", "writer")
    if index >= grant.writers:
        raise ParamInvalid(f"writer is {index}, {grant} has {grant.writers} writers")
    return index


def check_incarnation(grant: Grant, peer: EndpointInfo) -> None:
    """Raises StaleIncarnation naming both."""
    if grant.incarnation != peer.incarnation:
        raise StaleIncarnation(
            f"{grant} was given by incarnation {grant.incarnation:016x}; endpoint {peer.cluster_id} is now "
            f"incarnation {peer.incarnation:016x}"
        )


def check_told(grant: Grant, at: int, span: LayerSpan, targets: Sequence[int]) -> None:
    """A peer's plan is for the blocks that the grant has at that position. Raises GrantForged, ParamInvalid."""
    check_span(grant, span)
    if granted_blocks(grant, at, len(targets)) != tuple(targets):
        raise GrantForged(f"the push names other blocks than {grant} has from position {at} on")


def check_wanted(blocks: object, writers: object, sources: object, verify: object, num_blocks: int) -> None:
    """The arguments of grant_blocks. Raises TypeError, ParamInvalid."""
    if not isinstance(blocks, list | tuple):
        raise TypeError(f"blocks must be a list or tuple of int, got {type(blocks).__name__}")
    if not blocks:
        raise ParamInvalid("blocks is empty")
    for position, block in enumerate(blocks):
        if check_int(block, "uint64", f"blocks[{position}]") >= num_blocks:
            raise ParamInvalid(f"blocks[{position}] is {block}, the cache has blocks [0, {num_blocks})")
    if not 1 <= check_int(writers, "uint32", "writers") <= MAX_WRITERS:
        raise ParamInvalid(f"writers must be in [1, {MAX_WRITERS}], got {writers}")
    if not isinstance(sources, list | tuple):
        raise TypeError(f"sources must be a list or tuple of cluster_ids, got {type(sources).__name__}")
    for position, source in enumerate(sources):
        check_int(source, "uint64", f"sources[{position}]")
    if len(set(sources)) != len(sources):
        raise ParamInvalid(f"sources names an endpoint twice: {list(sources)}")
    if verify is not None and check_type(verify, str, "verify") not in DIGESTS:
        raise ParamInvalid(f"verify must be None or one of {', '.join(DIGESTS)}, got {verify!r}")
