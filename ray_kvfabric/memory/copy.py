"""Which copy kernel: the native one (`_block_copy`, from native_ext/) or its twin in plain Python.

Both are modules with the surface of `Copier`; the setting that chooses is read by `config`. Called by the
transports and by `kvfabric doctor`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.errors import ConfigError

# What became of a copy, the same in every kernel.
COPY_DONE, COPY_TIMED_OUT, COPY_STOPPED, COPY_FAILED, COPY_FENCED, COPY_GAVE_WAY = range(6)

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


class Fence(Protocol):
    """Ends copies once the 64-bit word at `address` differs from `value`: COPY_FENCED.

    The word lies in memory that `owner` keeps mapped, and is for whoever owns the target to change, from any
    process. Copies look at it before the first byte and then within 4 MiB a thread, as at a stop word.
    """

    @property
    def address(self) -> int: ...
    @property
    def value(self) -> int: ...
    @property
    def owner(self) -> object: ...
    @property
    def holds(self) -> bool: ...


class WayWord(Protocol):
    """Makes copies give way while it was raised more often than lowered, by whichever threads: COPY_GAVE_WAY.

    All threads of a copy together move at most 4 MiB once it is raised. Each call moves something all the same.
    """

    def raise_(self) -> None: ...
    def lower(self) -> None: ...
    @property
    def is_raised(self) -> bool: ...


Digests: TypeAlias = NDArray[np.uint32] | memoryview  # writable, C-contiguous, one entry a block


class BlockCopy(Protocol):
    """(status, bytes copied, CRC-32C of them or 0).

    It equals copying regions in order, in each the pairs in list order, each pair as memmove would: of
    a target block listed twice the last one wins. A copy that ended early has moved some of its bytes.

    One that gave way has moved exactly bytes `begin`..+`bytes copied` of this order (of a pair that moves up onto
    itself, from its end): a call with `begin` behind them goes on with it.

    `digests`: entry [i * len(blocks) + j] becomes the CRC-32C of pair j of region i as it was read. Begun when `begin`
    is 0, complete when the last byte is done, undefined before that.
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
        fence: Fence | None = None,
        give_way: WayWord | None = None,
        begin: int = 0,
        digests: Digests | None = None,
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
        fence: Fence | None = None,
        give_way: WayWord | None = None,
        begin: int = 0,
    ) -> tuple[int, int, int]: ...


class BlockDigests(Protocol):
    """Status. Entry [i * len(blocks) + j] of `into` becomes the CRC-32C of block blocks[j] of region first + i;
    undefined unless COPY_DONE."""

    def __call__(
        self,
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


Target: TypeAlias = tuple[RegionTable, int, BlockList, Fence | None]  # (table, first, blocks, fence)


class FanCopy(Protocol):
    """(status, bytes copied to each target, status of each target): each byte of the source is read once.

    A target whose fence ends it is COPY_FENCED and left out from then on; the others have the status of the whole,
    which is COPY_FENCED only when all targets are. Raises ParamInvalid when a byte would be both read and written, or
    written twice (judged by the first and last block of each region): copy to these one by one.
    """

    def __call__(
        self,
        source: RegionTable,
        source_first: int,
        count: int,
        source_blocks: BlockList,
        targets: list[Target],
        *,
        deadline_ns: int = 0,
        stop: StopWord | None = None,
        digests: Digests | None = None,
        threads: int = 0,
    ) -> tuple[int, int, list[int]]: ...


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
    def copy_blocks_to(self) -> FanCopy: ...
    @property
    def block_digests(self) -> BlockDigests: ...
    @property
    def pieces(self) -> ListPieces: ...
    @property
    def time_bare_copy(self) -> BareCopy: ...

    def runs(self, source: BlockList, target: BlockList) -> list[tuple[int, int, int]]: ...
    def RegionTable(self, regions: Sequence[tuple[int, int, int, int]], owner: object = None) -> RegionTable: ...
    def BlockList(self, blocks: list[int] | tuple[int, ...], name: str) -> BlockList: ...
    def StopWord(self) -> StopWord: ...
    def WayWord(self) -> WayWord: ...
    def Fence(self, address: int, value: int, owner: object = None) -> Fence: ...
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
