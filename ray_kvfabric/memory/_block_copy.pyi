"""The native copy kernel (native_ext/); `copy_python` is its twin, `copy.Copier` says what each call means."""

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.memory.copy import Digests

COPY_DONE: int
COPY_TIMED_OUT: int
COPY_STOPPED: int
COPY_FAILED: int
COPY_FENCED: int
COPY_GAVE_WAY: int

@final
class RegionTable:
    @property
    def owner(self) -> object: ...
    def __init__(self, regions: Sequence[tuple[int, int, int, int]], owner: object = None) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[int, int, int, int]: ...

@final
class BlockList:
    @property
    def name(self) -> str: ...
    @property
    def maximum(self) -> int: ...
    def __init__(self, blocks: list[int] | tuple[int, ...], name: str) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...

@final
class StopWord:
    def __init__(self) -> None: ...
    def set(self) -> None: ...
    @property
    def is_set(self) -> bool: ...

@final
class WayWord:
    def __init__(self) -> None: ...
    def raise_(self) -> None: ...
    def lower(self) -> None: ...
    @property
    def is_raised(self) -> bool: ...

@final
class Fence:
    @property
    def address(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def owner(self) -> object: ...
    @property
    def holds(self) -> bool: ...
    def __init__(self, address: int, value: int, owner: object = None) -> None: ...

def runs(source: BlockList, target: BlockList) -> list[tuple[int, int, int]]: ...
def copy_blocks(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    digest: bool = False,
    loop: str = "auto",
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
    digests: Digests | None = None,
) -> tuple[int, int, int]: ...
def write_process(
    pid: int,
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
) -> tuple[int, int, int]: ...
def read_process(
    pid: int,
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
    fence: Fence | None = None,
    give_way: WayWord | None = None,
    begin: int = 0,
) -> tuple[int, int, int]: ...
def block_digests(
    table: RegionTable,
    first: int,
    count: int,
    blocks: BlockList,
    into: Digests,
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    threads: int = 0,
) -> int: ...
def copy_blocks_to(
    source: RegionTable,
    source_first: int,
    count: int,
    source_blocks: BlockList,
    targets: list[tuple[RegionTable, int, BlockList, Fence | None]],
    *,
    deadline_ns: int = 0,
    stop: StopWord | None = None,
    digests: Digests | None = None,
    threads: int = 0,
) -> tuple[int, int, list[int]]: ...
def pieces(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
    *,
    apart: bool = False,
) -> NDArray[np.uint64]: ...
def time_bare_copy(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> int: ...
def loops() -> list[str]: ...
def cpu_features() -> dict[str, object]: ...
def set_copy_threads(threads: int) -> None: ...
def copy_threads() -> int: ...
