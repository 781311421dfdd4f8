"""The native copy kernel (native_ext/); `copy_python` is its twin, `copy.Copier` says what each call means."""

from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

COPY_DONE: int
COPY_TIMED_OUT: int
COPY_STOPPED: int
COPY_FAILED: int

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
) -> tuple[int, int, int]: ...
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
