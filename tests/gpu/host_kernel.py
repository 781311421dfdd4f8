"""The copy kernel's own text, compiled as C++ for the host: every block and thread in turn, over host memory."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.memory.cuda_kernel import MACROS, SOURCE, WORDS_A_PIECE, write_table
from ray_kvfabric.memory.device import Pieces

COMPILER = shutil.which("c++")

_BEFORE = r"""
#include <cstdint>
struct Index { unsigned x; };
static Index blockIdx, threadIdx;
struct alignas(16) uint4 { unsigned x, y, z, w; };
static long misaligned, stores[17];  // stores by the bytes of one
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
template <typename Vector> static bool lies(const Vector *at)
{
    const bool is_aligned = reinterpret_cast<uintptr_t>(at) % sizeof(Vector) == 0;
    misaligned += !is_aligned;
    return is_aligned;
}
template <typename Vector> static Vector __ldcs(const Vector *at) { return lies(at) ? *at : Vector{}; }
template <typename Vector> static void __stcs(Vector *at, Vector value)
{
    ++stores[sizeof(Vector)];
    if (lies(at))
        *at = value;
}
"""
_AFTER = r"""
extern "C" long run(const word *table, unsigned num_pieces, unsigned num_blocks, long *stored)
{
    misaligned = 0;
    for (long &each : stores)
        each = 0;
    for (blockIdx.x = 0; blockIdx.x < num_blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x)
            copy_pieces(table, num_pieces);
    for (unsigned size = 0; size < 17; ++size)
        stored[size] = stores[size];
    return misaligned;
}
"""


class Ran(NamedTuple):
    """`stores` counts the vectors stored, by their bytes; the bytes behind a piece's last vector are not among them."""

    misaligned: int
    stores: dict[int, int]


class HostKernel:
    def __init__(self, folder: Path) -> None:
        """Compiles into `folder`."""
        text, library = folder / "kernel.cpp", folder / "kernel.so"
        text.write_text(_BEFORE + SOURCE + _AFTER)
        macros = [f"-D{name}={value}" for name, value in MACROS.items()]
        flags = ["-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
        subprocess.run([str(COMPILER), *flags, *macros, str(text), "-o", str(library)], check=True, timeout=60)
        self._run = ctypes.CDLL(str(library)).run
        self._run.restype = ctypes.c_long
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)

    def copy(self, pieces: Pieces) -> Ran:
        table = np.empty(WORDS_A_PIECE * len(pieces), np.uint64)
        return self.launch(table.ctypes.data, len(pieces), write_table(pieces, table))

    def launch(self, table: int, num_pieces: int, num_blocks: int) -> Ran:
        stored: NDArray[np.int64] = np.zeros(17, np.int64)
        misaligned = self._run(table, num_pieces, num_blocks, stored.ctypes.data)
        return Ran(misaligned, {size: int(count) for size, count in enumerate(stored) if count})
