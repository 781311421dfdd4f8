"""Where the blocks of a cache lie: arithmetic on addresses, no memory.

A blocks cache of T tensors is T regions; block i of a region starts at `base + i * block_stride`.
    layer L of n tensors a layer = regions [L*n, (L+1)*n)        (K then V for n = 2)
"""

from __future__ import annotations

from typing import NamedTuple

from ray_kvfabric.cache.types import CacheDesc
from ray_kvfabric.errors import LLMException, ParamInvalid

MAX_RANK = 31


class Region(NamedTuple):
    """Equal blocks at equal distances; `base` is an address or an offset, sizes are in bytes."""

    base: int
    num_blocks: int
    block_nbytes: int
    block_stride: int

    @property
    def extent(self) -> int:
        """Bytes from the first block's first to the last block's last."""
        return (self.num_blocks - 1) * self.block_stride + self.block_nbytes


def regions_of(desc: CacheDesc, addresses: list[int]) -> tuple[Region, ...]:
    """The regions of a blocks cache whose tensors start at `addresses`, each `desc.size` bytes long.

    Raises LLMException (LLM_PARAM_INVALID) for a rank outside [1, 31], a dimension below 1, more bytes than
    an int64 holds, a wrong number of addresses, or an address 0 (contract sections 5 and 11.1).
    """
    rank = len(desc.shape)
    if not 0 < rank <= MAX_RANK:
        raise ParamInvalid(f"shape must have 1 to {MAX_RANK} dimensions, got {rank}")
    if len(addresses) != desc.num_tensors:
        raise ParamInvalid(f"addrs has {len(addresses)} entries, cache_desc.num_tensors is {desc.num_tensors}")
    if 0 in addresses:
        raise ParamInvalid(f"addrs[{addresses.index(0)}] is 0, not an address")
    block_nbytes = tensor_nbytes(desc) // desc.shape[0]
    return tuple(Region(base, desc.shape[0], block_nbytes, block_nbytes) for base in addresses)


def tensor_nbytes(desc: CacheDesc) -> int:
    """`desc.size`, its refusals with the code LLM_PARAM_INVALID."""
    try:
        return desc.size
    except LLMException as error:
        raise ParamInvalid(f"cache_desc.{error}") from None


def describe(region: Region) -> str:
    return f"{region.num_blocks} blocks of {region.block_nbytes} bytes"
