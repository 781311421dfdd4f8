"""What a push over device_ipc costs between two processes on one GPU, against copies inside it in the same run.

    python -m tests.gpu.measure [--json] [--rounds N] [CASE ...]

    push           CacheManager.push_blocks, as its caller waits for it
    kernel         the same pieces by the copy kernel inside this process: no link, no receipt
    memcpy_each    the same pieces by one cuMemcpyAsync each: what PLAIN_COPY_FROM_NBYTES would choose
    memcpy         as many bytes in one stretch by cuMemcpyDtoD: the yardstick
    torch_copy     the same by torch's copy_
GB/s are 10^9 bytes moved a second, each byte counted once though it is read and written.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from random import Random
from statistics import median
from typing import Any

import torch

from ray_kvfabric.bench.cases import Case, Lists
from ray_kvfabric.bench.statistics import percentile
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.memory.cuda import CudaQueue
from ray_kvfabric.memory.device import Direction
from tests.gpu.ends import GPU_CASES, Source, Target

SMALL_REPS, LARGE_REPS, HUGE_REPS, HUGE_NBYTES = 1000, 20, 5, 1 << 30
Call = Callable[[Lists], Callable[[], object]]  # prepares a call with these lists; the call is what is timed


def lanes(source: Source) -> dict[str, Call]:
    """Each ends when the bytes have arrived."""
    nbytes, device = source.case.nbytes, source.device
    queue = device.open_queue()
    assert isinstance(queue, CudaQueue)
    here, there = (torch.empty(nbytes, dtype=torch.uint8, device="cuda:0") for _ in range(2))
    here.random_(0, 256)
    api = queue._api

    def finish() -> None:
        if not queue.finish(time.monotonic_ns() + 60 * 10**9):
            raise TimeoutError("the GPU is late")

    def kernel(pieces: Any) -> None:
        queue.copy(pieces, Direction.INSIDE)
        finish()

    def memcpy_each(pieces: Any) -> None:
        with queue._driver.current():
            queue._copy_in_order(pieces, Direction.INSIDE)
        finish()

    def memcpy() -> None:
        with queue._driver.current():
            queue._driver.check(
                api.cuMemcpyDtoDAsync(there.data_ptr(), here.data_ptr(), nbytes, queue._stream), "a copy"
            )
            queue._driver.check(api.cuStreamSynchronize(queue._stream), "a copy")

    def torch_copy() -> None:
        there.copy_(here)
        torch.cuda.synchronize()

    def over_pieces(move: Callable[[Any], None]) -> Call:
        def prepare(lists: Lists) -> Callable[[], object]:
            pieces = source.pieces(lists)
            return lambda: move(pieces)

        return prepare

    return {
        "push": lambda lists: lambda: source.push(lists),
        "kernel": over_pieces(kernel),
        "memcpy_each": over_pieces(memcpy_each),
        "memcpy": lambda lists: memcpy,
        "torch_copy": lambda lists: torch_copy,
    }


def measure(case: Case, rounds: int) -> dict[str, Any]:
    with Spawned("target", Target) as target:
        source = Source(case, target)
        try:
            return _measure(source, rounds)
        finally:
            source.close()
            torch.cuda.empty_cache()


def _measure(source: Source, rounds: int) -> dict[str, Any]:
    case, random = source.case, Random(1)
    calls = lanes(source)
    reps = SMALL_REPS if case.is_small else HUGE_REPS if case.nbytes >= HUGE_NBYTES else LARGE_REPS
    lists = case.draw(random)
    for prepare in calls.values():  # the first calls map the peer's memory and build the kernel
        prepare(lists)()
    source.check(lists)
    launches, before = 0, source.num_launches()
    samples: dict[str, list[list[int]]] = {name: [] for name in calls}
    for _ in range(rounds):
        drawn = [case.draw(random) for _ in range(reps)]
        for name in random.sample([*calls], len(calls)):
            samples[name].append(_timed([calls[name](lists) for lists in drawn]))
        launches += reps
        source.check(drawn[-1])
    return {
        "case": case.name,
        "nbytes": case.nbytes,
        "pieces": len(source.pieces(lists)),
        "launches_a_push": (source.num_launches() - before) / launches,
        "lanes": {name: _figures(each, samples["memcpy"], case.nbytes) for name, each in samples.items()},
    }


def _timed(calls: list[Callable[[], object]]) -> list[int]:
    """Nanoseconds of each."""
    gc.collect()
    gc.disable()
    try:
        samples = []
        for call in calls:
            start = time.perf_counter_ns()
            call()
            samples.append(time.perf_counter_ns() - start)
    finally:
        gc.enable()
    return samples


def _figures(rounds: list[list[int]], yardstick: list[list[int]], nbytes: int) -> dict[str, float | list[float]]:
    """Medians over all calls; the spread is the lowest and the highest median of a round."""
    everything = [sample for samples in rounds for sample in samples]
    gbps = [nbytes / median(samples) for samples in rounds]
    ratios = [median(other) / median(mine) for mine, other in zip(rounds, yardstick, strict=True)]
    return {
        "gbps": nbytes / median(everything),
        "gbps_spread": [min(gbps), max(gbps)],
        "of_memcpy": median(ratios),
        "of_memcpy_spread": [min(ratios), max(ratios)],
        "p50_us": percentile(everything, 50) / 1000,
        "p99_us": percentile(everything, 99) / 1000,
    }


def nixl_small(rounds: int) -> dict[str, Any] | str:
    """Its 64 KiB, or why there are none."""
    if find_spec("nixl") is None:
        return "nixl is not installed"
    from tests.gpu import nixl_small as nixl

    try:
        samples = [nixl.measure(SMALL_REPS) for _ in range(rounds)]
    except Exception as error:  # whatever another library raises is the answer here
        return f"nixl does not work here: {type(error).__name__}: {error}"
    everything = [sample for each in samples for sample in each]
    return {"p50_us": percentile(everything, 50) / 1000, "p99_us": percentile(everything, 99) / 1000}


def show(found: dict[str, Any]) -> None:
    pieces, launches = found["pieces"], found["launches_a_push"]
    print(f"{found['case']}: {found['nbytes']} bytes, {pieces} pieces, {launches:g} launches a push")
    for name, figures in found["lanes"].items():
        low, high = figures["of_memcpy_spread"]
        print(
            f"  {name:12} {figures['gbps']:8.1f} GB/s  {figures['of_memcpy']:.2f} of memcpy ({low:.2f}-{high:.2f})"
            f"  p50 {figures['p50_us']:.1f} us  p99 {figures['p99_us']:.1f} us"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(GPU_CASES)}; all when none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="all figures as one object")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.cases if name not in GPU_CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; the cases are {', '.join(GPU_CASES)}")
    if not torch.cuda.is_available():
        parser.exit(1, f"torch {torch.__version__} finds no CUDA GPU\n")
    machine = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "cuda": torch.version.cuda}
    results = []
    for name in chosen.cases or GPU_CASES:
        results.append(measure(GPU_CASES[name], chosen.rounds))
        if not chosen.json:
            show(results[-1])
    nixl = nixl_small(chosen.rounds)
    print(json.dumps({**machine, "cases": results, "nixl_small": nixl}) if chosen.json else f"{machine}\nnixl: {nixl}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
