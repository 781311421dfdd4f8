"""The pointer-table copy kernel for GPUs: its text, its table, and which pieces may run at once. No CUDA needed here.

    table    uint64: the pieces [n, 3], then for each piece the tiles of the pieces up to and with it [n]
    tile     TILE_NBYTES of one piece, fewer at its end; one block of THREADS threads copies it
    piece    found by each block for its tile by a binary search in the tile counts
So one launch moves any list of pieces, and a long piece gets as many blocks as its bytes ask for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.memory.device import Pieces

ENTRY = "copy_pieces"
THREADS = 256
DEPTH = 4  # vectors that a thread loads before it stores the first: 16 KiB under way a block, 128 KiB a multiprocessor
TILE_NBYTES = 32 << 10  # two rounds of 16-byte vectors a thread; a multiple of every vector, so tiles stay aligned
MACROS = {"THREADS": THREADS, "DEPTH": DEPTH, "TILE_NBYTES": TILE_NBYTES}

WORDS_A_PIECE = 4  # of the table
_TILE_SHIFT = TILE_NBYTES.bit_length() - 1

# Streaming loads and stores (.cs): each byte passes once, and shall not push what a model uses out of the L2 cache.
# The tests compile the same text as C++ for the host.
SOURCE = r"""
typedef unsigned long long word;

template <typename Vector>
static __device__ __forceinline__ void copy_run(const char *source, char *target, unsigned nbytes)
{
    const Vector *from = reinterpret_cast<const Vector *>(source);
    Vector *to = reinterpret_cast<Vector *>(target);
    const unsigned count = nbytes / sizeof(Vector);
    for (unsigned first = threadIdx.x; first < count; first += DEPTH * THREADS) {
        Vector held[DEPTH];
#pragma unroll
        for (unsigned step = 0; step < DEPTH; ++step)
            if (first + step * THREADS < count)
                held[step] = __ldcs(from + first + step * THREADS);
#pragma unroll
        for (unsigned step = 0; step < DEPTH; ++step)
            if (first + step * THREADS < count)
                __stcs(to + first + step * THREADS, held[step]);
    }
    const unsigned rest = count * sizeof(Vector) + threadIdx.x;  // fewer bytes than a vector has
    if (rest < nbytes)
        target[rest] = source[rest];
}

// The first piece with more tiles up to and with it than `tile`: one without bytes is passed over.
static __device__ __forceinline__ unsigned find_piece(const word *tile_ends, unsigned num_pieces, word tile)
{
    unsigned low = 0, high = num_pieces - 1;
    while (low < high) {
        const unsigned middle = low + (high - low) / 2;
        if (tile_ends[middle] <= tile)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_pieces(const word *__restrict__ table, unsigned num_pieces)
{
    const word *tile_ends = table + 3ull * num_pieces;
    const word tile = blockIdx.x;
    const unsigned index = find_piece(tile_ends, num_pieces, tile);
    const word first_tile = index == 0 ? 0 : tile_ends[index - 1];
    const word offset = (tile - first_tile) * TILE_NBYTES;
    const word *piece = table + 3ull * index;
    const word left = piece[2] - offset;
    const char *source = reinterpret_cast<const char *>(piece[0] + offset);
    char *target = reinterpret_cast<char *>(piece[1] + offset);
    const unsigned nbytes = left < TILE_NBYTES ? (unsigned)left : TILE_NBYTES;
    const unsigned alignment = (unsigned)(piece[0] | piece[1]) % 16;  // 0 where both allow 16-byte vectors
    if (alignment == 0)
        copy_run<uint4>(source, target, nbytes);
    else if (alignment % 8 == 0)
        copy_run<unsigned long long>(source, target, nbytes);
    else if (alignment % 4 == 0)
        copy_run<unsigned int>(source, target, nbytes);
    else
        copy_run<unsigned char>(source, target, nbytes);
}
"""


def write_table(pieces: Pieces, table: NDArray[np.uint64]) -> int:
    """Fills uint64 [WORDS_A_PIECE * n]. Returns the tiles, which are the blocks of the launch."""
    count = len(pieces)
    table[: 3 * count].reshape(count, 3)[:] = pieces
    tile_ends = table[3 * count :]
    np.cumsum((pieces[:, 2] + np.uint64(TILE_NBYTES - 1)) >> np.uint64(_TILE_SHIFT), out=tile_ends)
    return int(tile_ends[-1])


def moving(pieces: Pieces) -> Pieces:
    """Without those that change nothing: no bytes, or onto themselves."""
    changes = (pieces[:, 0] != pieces[:, 1]) & (pieces[:, 2] != 0)
    return pieces if changes.all() else pieces[changes]


def independent(pieces: Pieces) -> bool:
    """Whether moving pieces may run in any order, and at once: no target byte is another's target or a source.

    Sorted starts and ends, each by itself, tell it: targets are apart where each ends before the next one starts.
    """
    source, target, nbytes = np.ascontiguousarray(pieces.T)
    starts = np.sort(target)
    ends = starts + nbytes[0] if (nbytes == nbytes[0]).all() else np.sort(target + nbytes)
    if (starts[1:] < ends[:-1]).any():
        return False
    source_ends = source + nbytes
    if source_ends.max() <= starts[0] or ends[-1] <= source.min():
        return True
    reached = np.searchsorted(ends, source, side="right")  # the first target that ends behind the source's start
    starts = np.append(starts, np.iinfo(np.uint64).max)
    return not bool((starts[reached] < source_ends).any())
