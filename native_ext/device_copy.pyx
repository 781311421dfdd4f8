# cython: boundscheck=False, wraparound=False
"""Hands a transfer's pieces to an NPU's copy engine: one native loop, no Python call a piece.

The function is aclrtMemcpyAsync, found at run time by whoever calls: nothing here is linked to CANN.
"""

from libc.stdint cimport int64_t, uint64_t

ctypedef int (*memcpy_async)(void *, size_t, const void *, size_t, int, void *) noexcept nogil


def enqueue(uint64_t function, const uint64_t[:, ::1] pieces not None, int kind, uint64_t stream):
    """(pieces enqueued, code): all of them and 0, or as far as the first that was refused, and its aclError.

    `pieces` is uint64 [n, 3]: source address, target address, bytes. `kind` and `stream` are ACL's.
    """
    cdef int64_t index, count = pieces.shape[0]
    cdef int code = 0
    cdef memcpy_async copy = <memcpy_async> function
    if function == 0:
        raise ValueError("function must not be 0")
    if pieces.shape[1] != 3:
        raise ValueError(f"pieces must have 3 columns, got {pieces.shape[1]}")
    with nogil:
        for index in range(count):
            code = copy(
                <void *> pieces[index, 1], pieces[index, 2], <const void *> pieces[index, 0], pieces[index, 2], kind,
                <void *> stream)
            if code != 0:
                break
        else:
            index = count
    return index, code
