from libc.stdint cimport int64_t

from copy_kernel cimport block_list, fence, region, stop_word, way_word


cdef class RegionTable:
    cdef region *at
    cdef Py_ssize_t count
    cdef readonly object owner


cdef class BlockList:
    cdef int64_t *at
    cdef block_list list
    cdef readonly str name


cdef class StopWord:
    cdef stop_word *word


cdef class WayWord:
    cdef way_word *word


cdef class Fence:
    cdef fence one
    cdef readonly object owner
