"""What the plain Python copy kernel is given: tables of regions, lists of blocks, and the words that it looks at.

The twins of the native kernel's, with the same errors.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence

_FIELDS = ("base", "num_blocks", "block_nbytes", "block_stride")


class RegionTable:
    """Regions, immutable; keeps `owner`, whose memory they describe, alive."""

    __slots__ = ("_regions", "owner")

    def __init__(self, regions: Sequence[tuple[int, int, int, int]], owner: object = None) -> None:
        self._regions = tuple(_checked_region(region, index) for index, region in enumerate(regions))
        self.owner = owner

    def __len__(self) -> int:
        return len(self._regions)

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"region {index} of {len(self)}")
        return self._regions[index]

    def __repr__(self) -> str:
        return f"<RegionTable: {len(self)} regions>"


def _checked_region(region: object, index: int) -> tuple[int, int, int, int]:
    if not isinstance(region, (tuple, list)) or len(region) != len(_FIELDS):
        raise TypeError(f"regions[{index}] must be (base, num_blocks, block_nbytes, block_stride), got {region!r}")
    for field, value in zip(_FIELDS, region, strict=True):
        if not isinstance(value, int):
            raise TypeError(f"regions[{index}].{field} must be an int, got {type(value).__name__}")
        if not 1 <= value < 2**63:
            raise ValueError(f"regions[{index}].{field} must be in [1, 2**63), got {value}")
    base, num_blocks, block_nbytes, block_stride = map(int, region)
    if block_stride < block_nbytes:
        raise ValueError(f"regions[{index}].block_stride is {block_stride}, less than block_nbytes {block_nbytes}")
    end = base + (num_blocks - 1) * block_stride + block_nbytes
    if end >= 2**63:
        raise ValueError(f"regions[{index}].base is {base}: the region would end at {end}, not below 2**63")
    return base, num_blocks, block_nbytes, block_stride


class BlockList:
    """Block indices, checked once. `name` is what errors call it."""

    __slots__ = ("_blocks", "maximum", "name")

    def __init__(self, blocks: list[int] | tuple[int, ...], name: str) -> None:
        if not isinstance(blocks, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple of int, got {type(blocks).__name__}")
        for position, block in enumerate(blocks):
            if not isinstance(block, int):
                raise TypeError(f"{name}[{position}] must be an int, got {type(block).__name__}")
            if not 0 <= block < 2**64:
                raise TypeError(f"{name}[{position}] must be in [0, 2**64), got {block}")
        self.name = name
        self._blocks = tuple(min(int(block), 2**63 - 1) for block in blocks)  # of no cache, like the native twin's
        self.maximum = max(self._blocks, default=-1)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        return f"<BlockList {self.name}: {len(self)} blocks, maximum {self.maximum}>"


class StopWord:
    """Ends copies early: set() it from any thread, and each copy that was given it ends within 4 MiB."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    @property
    def is_set(self) -> bool:
        return self._is_set

    def __repr__(self) -> str:
        return f"<StopWord: {'set' if self._is_set else 'not set'}>"


class WayWord:
    """Makes copies give way while it was raised more often than lowered, by whichever threads."""

    __slots__ = ("_lock", "_raised")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._raised = 0

    def raise_(self) -> None:
        with self._lock:
            self._raised += 1

    def lower(self) -> None:
        with self._lock:
            self._raised -= 1

    @property
    def is_raised(self) -> bool:
        return self._raised > 0

    def __repr__(self) -> str:
        return f"<WayWord: {'raised' if self.is_raised else 'not raised'}>"


class Fence:
    """Ends copies once the 64-bit word at `address` differs from `value`; keeps `owner`, whose memory it is, alive."""

    __slots__ = ("_word", "address", "owner", "value")

    def __init__(self, address: int, value: int, owner: object = None) -> None:
        self.address = _checked_word(address, "address")
        if address == 0 or address % 8:
            raise ValueError(f"address must be that of an aligned 64-bit word, got {address}")
        self.value = _checked_word(value, "value")
        self.owner = owner
        self._word = ctypes.c_uint64.from_address(address)

    @property
    def holds(self) -> bool:
        return self._word.value == self.value

    def __repr__(self) -> str:
        return f"<Fence {self.address:#x}: {'holds' if self.holds else 'no longer'} {self.value}>"


def _checked_word(value: object, field: str) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{field} must be an int, got {type(value).__name__}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{field} must be in [0, 2**64), got {value}")
    return int(value)
