"""What a copy is given: tables of regions, lists of blocks, and the words that it looks at while it runs."""

from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from copy_kernel cimport (
    block_list_of,
    fence_holds,
    fence_word,
    region,
    stop_word_is_set,
    stop_word_new,
    stop_word_set,
    way_word_is_raised,
    way_word_lower,
    way_word_new,
    way_word_raise,
)


cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object list_or_tuple)


# ---- what is copied ----

cdef int64_t field_of(object region_like, Py_ssize_t index, int position, str field, int64_t least) except -1:
    cdef object value = region_like[position]
    cdef int overflow = 0
    if not isinstance(value, int):
        raise TypeError(f"regions[{index}].{field} must be an int, got {type(value).__name__}")
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or number < least:
        raise ValueError(f"regions[{index}].{field} must be in [{least}, 2**63), got {value}")
    return number


cdef int fill_region(region *at, object region_like, Py_ssize_t index) except -1:
    if not isinstance(region_like, (tuple, list)) or len(region_like) != 4:
        raise TypeError(
            f"regions[{index}] must be (base, num_blocks, block_nbytes, block_stride), got {region_like!r}")
    at.base = <uint64_t> field_of(region_like, index, 0, "base", 1)
    at.num_blocks = field_of(region_like, index, 1, "num_blocks", 1)
    at.block_nbytes = field_of(region_like, index, 2, "block_nbytes", 1)
    at.block_stride = field_of(region_like, index, 3, "block_stride", 1)
    if at.block_stride < at.block_nbytes:
        raise ValueError(
            f"regions[{index}].block_stride is {at.block_stride}, less than block_nbytes {at.block_nbytes}")
    cdef object end = int(at.base) + (int(at.num_blocks) - 1) * int(at.block_stride) + int(at.block_nbytes)
    if end >= 1 << 63:
        raise ValueError(
            f"regions[{index}].base is {at.base}: the region would end at {end}, not below 2**63")
    return 0


cdef class RegionTable:
    """Regions as a C array, immutable; keeps `owner`, whose memory they describe, alive."""

    def __cinit__(self, regions, owner=None):
        cdef Py_ssize_t index
        regions = list(regions)
        self.owner = owner
        self.at = <region *> calloc(max(1, len(regions)), sizeof(region))
        if self.at == NULL:
            raise MemoryError
        for index in range(len(regions)):
            fill_region(&self.at[index], regions[index], index)
        self.count = len(regions)

    def __dealloc__(self):
        free(self.at)

    def __len__(self):
        return self.count

    def __getitem__(self, Py_ssize_t index):
        cdef Py_ssize_t place = index + self.count if index < 0 else index
        if not 0 <= place < self.count:
            raise IndexError(f"region {index} of {self.count}")
        cdef region *one = &self.at[place]
        return one.base, one.num_blocks, one.block_nbytes, one.block_stride

    def __repr__(self):
        return f"<RegionTable: {self.count} regions>"


cdef int64_t block_of(object value, str name, Py_ssize_t position) except -1:
    cdef int overflow = 0
    if not isinstance(value, int):
        raise TypeError(f"{name}[{position}] must be an int, got {type(value).__name__}")
    cdef int64_t block = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow > 0 and value < 2**64:
        return INT64_MAX  # of no cache: whoever compares it with a limit refuses it
    if overflow or block < 0:
        raise TypeError(f"{name}[{position}] must be in [0, 2**64), got {value}")
    return block


cdef class BlockList:
    """Block indices as a C array, checked once. `name` is what errors call it."""

    def __cinit__(self, blocks, str name not None):
        if not isinstance(blocks, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple of int, got {type(blocks).__name__}")
        cdef Py_ssize_t position, count = len(blocks)
        self.name = name
        self.at = <int64_t *> malloc(max(1, count) * sizeof(int64_t))
        if self.at == NULL:
            raise MemoryError
        cdef PyObject **items = PySequence_Fast_ITEMS(blocks)
        for position in range(count):
            self.at[position] = block_of(<object> items[position], name, position)
        self.list = block_list_of(self.at, count)

    def __dealloc__(self):
        free(self.at)

    def __len__(self):
        return self.list.count

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.list.count):
            yield self.at[i]

    @property
    def maximum(self):
        return self.list.maximum

    def __repr__(self):
        return f"<BlockList {self.name}: {self.list.count} blocks, maximum {self.list.maximum}>"


# ---- words ----

cdef class StopWord:
    """Ends copies early: set() it from any thread, and each copy that has it ends within 4 MiB a thread."""

    def __cinit__(self):
        self.word = stop_word_new()
        if self.word == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.word)

    def set(self):
        stop_word_set(self.word)

    @property
    def is_set(self):
        return bool(stop_word_is_set(self.word))

    def __repr__(self):
        return f"<StopWord: {'set' if self.is_set else 'not set'}>"


cdef class WayWord:
    """Makes copies give way while it was raised more often than lowered, by whichever threads."""

    def __cinit__(self):
        self.word = way_word_new()
        if self.word == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.word)

    def raise_(self):
        way_word_raise(self.word)

    def lower(self):
        way_word_lower(self.word)

    @property
    def is_raised(self):
        return bool(way_word_is_raised(self.word))

    def __repr__(self):
        return f"<WayWord: {'raised' if self.is_raised else 'not raised'}>"


cdef uint64_t word_of(object value, str field) except? 0:
    if not isinstance(value, int):
        raise TypeError(f"{field} must be an int, got {type(value).__name__}")
    if not 0 <= value < 2**64:
        raise ValueError(f"{field} must be in [0, 2**64), got {value}")
    return value


cdef class Fence:
    """Ends copies once the 64-bit word at `address` differs from `value`; keeps `owner`, whose memory it is, alive."""

    def __cinit__(self, address, value, owner=None):
        cdef uint64_t place = word_of(address, "address")
        if place == 0 or place % 8:
            raise ValueError(f"address must be that of an aligned 64-bit word, got {address}")
        self.one.word = <fence_word *> place
        self.one.value = word_of(value, "value")
        self.owner = owner

    @property
    def address(self):
        return <uint64_t> self.one.word

    @property
    def value(self):
        return self.one.value

    @property
    def holds(self):
        return bool(fence_holds(self.one))

    def __repr__(self):
        return f"<Fence {self.address:#x}: {'holds' if self.holds else 'no longer'} {self.value}>"
