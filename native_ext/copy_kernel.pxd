"""The C layer of the copy kernel, as its skins see it."""

from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "copy_plan.h" nogil:
    struct region:
        uint64_t base
        int64_t num_blocks
        int64_t block_nbytes
        int64_t block_stride

    struct block_list:
        const int64_t *at
        int64_t count
        int64_t minimum
        int64_t maximum

    struct copy_plan:
        const region *source
        const region *target
        int64_t region_count
        block_list source_blocks
        block_list target_blocks
        int64_t nbytes

    struct piece:
        uint64_t source
        uint64_t target
        int64_t nbytes

    block_list block_list_of(const int64_t *at, int64_t count)
    int64_t plan_pieces(const copy_plan *plan, bint merged, piece *into)
    bint plan_measure(copy_plan *plan)
    bint plan_overlaps(const copy_plan *plan)
    bint plan_repeats_blocks(const copy_plan *plan)
    bint plan_repeats_regions(const copy_plan *plan)


cdef extern from "copy_loops.h" nogil:
    struct copy_loop:
        const char *name

    int copy_loop_count()
    const copy_loop *copy_loop_at(int index)
    const copy_loop *copy_loop_named(const char *name)
    const copy_loop *copy_loop_best()


cdef extern from "copy_words.h" nogil:
    struct stop_word:
        pass

    struct way_word:
        pass

    ctypedef uint64_t fence_word "_Atomic uint64_t"

    struct fence:
        fence_word *word
        uint64_t value

    stop_word *stop_word_new()
    void stop_word_set(stop_word *word)
    bint stop_word_is_set(stop_word *word)
    way_word *way_word_new()
    void way_word_raise(way_word *word)
    void way_word_lower(way_word *word)
    bint way_word_is_raised(way_word *word)
    bint fence_holds(fence one)


cdef extern from "copy_job.h" nogil:
    enum: STATUS_DONE "COPY_DONE"
    enum: STATUS_TIMED_OUT "COPY_TIMED_OUT"
    enum: STATUS_STOPPED "COPY_STOPPED"
    enum: STATUS_FAILED "COPY_FAILED"
    enum: STATUS_FENCED "COPY_FENCED"
    enum: STATUS_GAVE_WAY "COPY_GAVE_WAY"
    enum: COPY_STEP_NBYTES

    struct copy_limits:
        int64_t deadline_ns
        stop_word *stop
        fence fence

    struct copy_turn:
        way_word *give_way
        int64_t begin

    struct copy_result:
        int status
        int64_t nbytes
        uint32_t digest
        int error


cdef extern from "copy_blocks.h" nogil:
    struct copy_wishes:
        const copy_loop *loop
        int threads
        bint digest
        uint32_t *digests
        copy_turn turn

    const int64_t copy_stream_nbytes
    const int64_t copy_split_nbytes
    copy_result run_copy "copy_blocks"(const copy_plan *plan, const copy_limits *limits, const copy_wishes *wishes)
    int64_t copy_blocks_bare(const copy_plan *plan)


cdef extern from "copy_parts.h" nogil:
    copy_result copy_nothing_but_digests(
        const copy_plan *plan, const copy_limits *limits, int threads, uint32_t *digests)


cdef extern from "copy_fan.h" nogil:
    struct fan_target:
        copy_plan plan
        fence fence
        bint is_fenced

    struct fan_wishes:
        int threads
        uint32_t *digests

    bint fan_targets_meet(const fan_target *a, const fan_target *b)
    copy_result copy_fan(fan_target *targets, int count, const copy_limits *limits, fan_wishes wishes)


cdef extern from "copy_process.h" nogil:
    struct copy_process_wishes "copy_process":
        int pid
        bint writes
        int threads
        copy_turn turn

    copy_result run_copy_process "copy_process"(
        const copy_plan *plan, const copy_limits *limits, const copy_process_wishes *other)


cdef extern from "copy_pool.h" nogil:
    enum: COPY_THREADS_LIMIT
    int copy_pool_threads()
    void copy_pool_set_threads(int threads)


cdef extern from "crc32c.h" nogil:
    struct crc32c_way:
        const char *name

    const crc32c_way *crc32c_best_way()
