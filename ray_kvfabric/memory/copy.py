"""Which copy kernel: the native one (`_block_copy`, from native_ext/) or its twin in plain Python.

Both are modules with the surface of `Copier`; the setting that chooses is read by `config`. Called by the
transports and by `kvfabric doctor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ConfigError

# What became of a copy, the same in every kernel.
COPY_DONE, COPY_TIMED_OUT, COPY_STOPPED, COPY_FAILED = range(4)

_MODULES = {
    "native": "ray_kvfabric.memory._block_copy",
    "python": "ray_kvfabric.memory.copy_python",
}
_HOW_TO_BUILD = "build it with `python setup.py build_ext --inplace`, or choose KVFABRIC_COPY=python"


class RegionTable(Protocol):
    """An immutable table of regions (base, num_blocks, block_nbytes, block_stride); keeps `owner` alive."""

    @property
    def owner(self) -> object: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[int, int, int, int]: ...


class BlockList(Protocol):
    """Block indices, checked once; `name` is what errors call it, `maximum` is -1 when it is empty."""

    @property
    def name(self) -> str: ...
    @property
    def maximum(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


class StopWord(Protocol):
    """Ends copies early: set() it from any thread, and each copy that has it ends within 4 MiB a thread."""

    def set(self) -> None: ...
    @property
    def is_set(self) -> bool: ...


class BlockCopy(Protocol):
    """(status, bytes copied, CRC-32C of them or 0).

    It equals copying regions in order, in each the pairs in list order, each pair as memmove would: of
    a target block listed twice the last one wins. A copy that ended early has moved some of its bytes.
    """

    def __call__(
        self,
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


class ProcessCopy(Protocol):
    """(status, bytes copied, errno): the same, one side's addresses being those of process `pid`."""

    def __call__(
        self,
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


class ListPieces(Protocol):
    """uint64 [n, 3]: source address, target address and bytes of each contiguous piece, in plan order.

    For whoever moves the bytes by other means than this processor; the addresses need not be mapped here. Where
    source and target share bytes, pairs of blocks are not joined: one after the other, they do what `copy_blocks` does.
    `apart`: they are of two processes, whose addresses say nothing of each other.
    """

    def __call__(
        self,
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


class BareCopy(Protocol):
    """Nanoseconds of one thread's plain copy, block by block: the yardstick of the benchmarks."""

    def __call__(
        self,
        source: RegionTable,
        target: RegionTable,
        source_first: int,
        target_first: int,
        count: int,
        source_blocks: BlockList,
        target_blocks: BlockList,
    ) -> int: ...


class Copier(Protocol):
    """A copy kernel. Its objects go to its own functions only: one kernel's table means nothing to another.

    Regions source_first..+count pair with target_first..+count, entry i of one list with entry i of the
    other. Every refusal comes before a byte moves: TypeError and ValueError for what is no argument at all,
    ParamInvalid for blocks, regions and sizes that do not fit. Deadlines are CLOCK_MONOTONIC, 0 is none.
    """

    @property
    def copy_blocks(self) -> BlockCopy: ...
    @property
    def write_process(self) -> ProcessCopy: ...
    @property
    def read_process(self) -> ProcessCopy: ...
    @property
    def pieces(self) -> ListPieces: ...
    @property
    def time_bare_copy(self) -> BareCopy: ...

    def runs(self, source: BlockList, target: BlockList) -> list[tuple[int, int, int]]: ...
    def RegionTable(self, regions: Sequence[tuple[int, int, int, int]], owner: object = None) -> RegionTable: ...
    def BlockList(self, blocks: list[int] | tuple[int, ...], name: str) -> BlockList: ...
    def StopWord(self) -> StopWord: ...
    def loops(self) -> list[str]: ...
    def cpu_features(self) -> dict[str, object]: ...
    def set_copy_threads(self, threads: int) -> None: ...
    def copy_threads(self) -> int: ...


def available() -> list[str]:
    """Names of the kernels that are here, best first."""
    return [name for name, module in _MODULES.items() if find_spec(module)]


def load(name: str) -> Copier:
    """The kernel of that name. Raises ConfigError for an unknown name or one that was not built."""
    if name not in _MODULES:
        raise ConfigError(f"copy must be one of {', '.join(_MODULES)}; got {name!r}")
    try:
        return cast(Copier, import_module(_MODULES[name]))
    except ImportError as error:
        raise ConfigError(f"the {name} copy kernel cannot be loaded ({error}); {_HOW_TO_BUILD}") from error
