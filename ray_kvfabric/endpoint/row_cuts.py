"""How the verbs of continuous caches cut their two sides: pure, from both descriptions (contract 12.2 to 12.5)."""

from __future__ import annotations

from collections.abc import Sequence

from ray_kvfabric.cache.keys import CacheName
from ray_kvfabric.endpoint.row_jobs import CutRows, Pair
from ray_kvfabric.endpoint.rules import check_row
from ray_kvfabric.errors import CacheNotFound, ParamInvalid
from ray_kvfabric.plan import Cut, Part, row_to_blocks, row_to_row
from ray_kvfabric.route import CacheInfo

Row = int | CacheName  # a row's number, or the key that names it at its owner


def push_row(src_row: int, dst_row: int) -> CutRows:
    """push_cache: a whole source row into the beginning of a target row."""

    def cut(pair: Pair) -> list[Part]:
        here, there = pair.here.regions[0], pair.there.regions[0]
        check_row(dst_row, pair.there, "dst_cache_key.batch_index", pair.names[1])
        check_row(src_row, pair.here, "src_batch_index", pair.names[0])
        if here.block_nbytes > there.block_nbytes:
            raise ParamInvalid(
                f"a row of {pair.names[0]} has {here.block_nbytes} bytes, one of {pair.names[1]} {there.block_nbytes}"
            )
        return row_to_row(src_row * here.block_stride, dst_row * there.block_stride, here.block_nbytes)

    return cut


def pull_row(row: Row, dst_row: int, size: int, *, is_requested: bool) -> CutRows:
    """pull_cache: `size` bytes of the owner's row (-1: a local row's) into a local row."""

    def cut(pair: Pair) -> list[Part]:
        here, there = pair.here.regions[0], pair.there.regions[0]
        check_row(dst_row, pair.here, "batch_index", pair.names[1])
        if size > here.block_nbytes:
            raise ParamInvalid(f"size is {size}, a row of {pair.names[1]} has {here.block_nbytes} bytes")
        if is_requested and pair.there.is_blocks:
            raise ParamInvalid(f"pull_cache needs a continuous cache, {pair.names[0]} is a blocks cache")
        src_row = _row_of(row, pair, is_requested)
        nbytes = here.block_nbytes if size == -1 else size
        if nbytes > there.block_nbytes:
            raise ParamInvalid(f"{nbytes} bytes are wanted, a row of {pair.names[0]} has {there.block_nbytes}")
        return row_to_row(src_row * there.block_stride, dst_row * here.block_stride, nbytes)

    return cut


def pull_row_into_blocks(row: Row, dst_blocks: tuple[int, ...], *, is_requested: bool) -> CutRows:
    """pull_blocks from a continuous cache: the owner's row, cut into local blocks."""

    def cut(pair: Pair) -> list[Part]:
        if is_requested and pair.there.is_blocks:
            raise ParamInvalid(f"without src_blocks a continuous cache is needed, {pair.names[0]} is a blocks cache")
        _check_blocks(dst_blocks, pair.here, pair.names[1])
        source = _row_cut(_row_of(row, pair, is_requested), pair.there)
        here = pair.here.regions[0]
        target = Cut(0, here.num_blocks, here.block_nbytes, here.block_stride)
        return row_to_blocks(source, here.block_nbytes, target, dst_blocks)

    return cut


def push_row_into_blocks(src_row: int, dst_blocks: tuple[int, ...], piece_nbytes: int, *, is_raw: bool) -> CutRows:
    """transfer_cache_async from cache to blocks. `is_raw`: the peer's blocks lie at given addresses, end to end."""

    def cut(pair: Pair) -> list[Part]:
        check_row(src_row, pair.here, "src_batch_index", pair.names[0])
        source = _row_cut(src_row, pair.here)
        here, there = pair.here.regions[0], pair.there.regions[0]
        if pair.here.is_blocks and piece_nbytes != here.block_nbytes:
            raise _size_refusal(piece_nbytes, here.block_nbytes, pair.names[0])
        if not 0 < piece_nbytes < pair.here.regions[0].extent:
            raise ParamInvalid(
                f"dst_block_memory_size must be in (0, {pair.here.regions[0].extent}), the bytes of a tensor of "
                f"{pair.names[0]}; got {piece_nbytes}"
            )
        if is_raw:
            return row_to_blocks(source, piece_nbytes, _raw_blocks(dst_blocks, piece_nbytes), dst_blocks)
        if not pair.there.is_blocks:
            raise ParamInvalid(f"dst_block_indices need a blocks cache, {pair.names[1]} is a continuous cache")
        if piece_nbytes != there.block_nbytes:
            raise _size_refusal(piece_nbytes, there.block_nbytes, pair.names[1])
        _check_blocks(dst_blocks, pair.there, pair.names[1])
        target = Cut(0, there.num_blocks, there.block_nbytes, there.block_stride)
        return row_to_blocks(source, piece_nbytes, target, dst_blocks)

    return cut


def push_blocks_to_addresses(src_blocks: Sequence[int], dst_blocks: Sequence[int], piece_nbytes: int) -> CutRows:
    """transfer_cache_async from blocks to given addresses; `piece_nbytes` 0, or the local block's size."""

    def cut(pair: Pair) -> list[Part]:
        here = pair.here.regions[0]
        if piece_nbytes and piece_nbytes != here.block_nbytes:
            raise _size_refusal(piece_nbytes, here.block_nbytes, pair.names[0])
        if max(src_blocks) >= here.num_blocks:
            raise ParamInvalid(
                f"src_block_indices has {max(src_blocks)}, {pair.names[0]} has blocks [0, {here.num_blocks})"
            )
        source = Cut(0, here.num_blocks, here.block_nbytes, here.block_stride)
        target = _raw_blocks(dst_blocks, here.block_nbytes)
        return [Part(source, target, tuple(src_blocks), tuple(dst_blocks))]

    return cut


def push_row_to_addresses(src_row: int) -> CutRows:
    """transfer_cache_async without blocks: one row of each tensor; of a blocks cache that is block 0."""

    def cut(pair: Pair) -> list[Part]:
        check_row(src_row, pair.here, "src_batch_index", pair.names[0])
        here = pair.here.regions[0]
        return row_to_row(src_row * here.block_stride, 0, here.block_nbytes)

    return cut


def _row_of(row: Row, pair: Pair, is_requested: bool) -> int:
    if isinstance(row, int):
        check_row(row, pair.there, "batch_index", pair.names[0], must_exist=is_requested)
        return row
    found = pair.there.row_of(row)
    if found is None:
        raise CacheNotFound(f"{pair.names[0]} no longer holds a row for {row}")
    return found


def _row_cut(row: int, cache: CacheInfo) -> Cut:
    """One row as one block; a blocks cache is one row of all its blocks."""
    region = cache.regions[0]
    nbytes = region.extent if cache.is_blocks else region.block_nbytes
    return Cut(row * region.block_stride, 1, nbytes, nbytes)


def _raw_blocks(blocks: Sequence[int], nbytes: int) -> Cut:
    return Cut(0, max(blocks) + 1, nbytes, nbytes)


def _check_blocks(blocks: Sequence[int], cache: CacheInfo, name: str) -> None:
    limit = cache.regions[0].num_blocks
    if max(blocks) >= limit:
        position = list(blocks).index(max(blocks))
        raise ParamInvalid(f"dst_blocks[{position}] is {max(blocks)}, {name} has blocks [0, {limit})")


def _size_refusal(piece_nbytes: int, block_nbytes: int, name: str) -> ParamInvalid:
    return ParamInvalid(f"dst_block_memory_size is {piece_nbytes}, a block of {name} has {block_nbytes} bytes")
