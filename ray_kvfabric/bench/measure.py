"""One case from its caches to its figures: the parent's side. It only waits while the source times its calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any, NamedTuple, Protocol

from ray_kvfabric.bench.cases import MIB, Case
from ray_kvfabric.bench.endpoints import Target
from ray_kvfabric.bench.lanes import LaneKey
from ray_kvfabric.bench.rows import Measured
from ray_kvfabric.bench.source import FOREIGN, SHARED, TARGET_ID, Samples, Source
from ray_kvfabric.bench.statistics import Figures
from ray_kvfabric.bench.worker import Spawned, Worker


class Effort(NamedTuple):
    """How much is measured: `reps` calls of every lane a round; a slow machine ends a case after `case_s`."""

    rounds: int = 5
    large_reps: int = 7
    small_reps: int = 3000
    memcpy_nbytes: int = 256 * MIB
    shrink: bool = False
    case_s: float = 22.0

    def reps(self, case: Case) -> int:
        return self.small_reps if case.is_small else self.large_reps


QUICK = Effort(rounds=1, large_reps=3, small_reps=300, memcpy_nbytes=32 * MIB, shrink=True)


class Spawn(Protocol):
    """Makes a worker: `Spawned`, or what a test puts in its place."""

    def __call__(self, name: str, make: Callable[..., Any], *arguments: object) -> Worker: ...


class Pair(NamedTuple):
    source: Worker
    target: Worker


def measure(case: Case, effort: Effort, spawn: Spawn = Spawned) -> Measured:
    """First calls, then rounds; all bytes of every target are compared after the first and after each round.

    Both workers are new: nothing of an earlier case lies in their memory.
    """
    case = case.shrunk() if effort.shrink else case
    with ExitStack() as stack:
        target = stack.enter_context(closing(spawn("target", Target, TARGET_ID)))
        routes = [target.call("open_cache", case, model_id, model_id == FOREIGN) for model_id in (SHARED, FOREIGN)]
        source = stack.enter_context(closing(spawn("source", Source, case, *routes, effort.memcpy_nbytes)))
        rounds, wrong = _run(case, Pair(source, target), effort)
        yard_nbytes = source.call("yard_nbytes")
    return Measured(case, [_figures(key, case, yard_nbytes, rounds) for key in rounds[0]], wrong)


def _run(case: Case, pair: Pair, effort: Effort) -> tuple[list[Samples], dict[LaneKey, str | None]]:
    until = time.monotonic() + effort.case_s
    pair.source.call("first_calls", 0)
    wrong = _verify(pair)
    rounds: list[Samples] = []
    for number in range(1, effort.rounds + 1):
        rounds.append(pair.source.call("round", effort.reps(case), number))
        wrong = {key: wrong[key] or found for key, found in _verify(pair).items()}
        if time.monotonic() > until:
            break
    return rounds, wrong


def _figures(key: LaneKey, case: Case, yard_nbytes: int, rounds: list[Samples]) -> Figures:
    nbytes = yard_nbytes if key.contender == "memcpy" else case.nbytes
    return Figures(key, nbytes, [samples[key] for samples in rounds])


def _verify(pair: Pair) -> dict[LaneKey, str | None]:
    """What is wrong at each lane's target; the peer looks at its own caches."""
    wrong: dict[LaneKey, str | None] = pair.source.call("wrong_here")
    for model_id, transport in ((SHARED, "shared_memory"), (FOREIGN, "process_vm")):
        held = pair.source.call("held", transport)
        wrong[LaneKey("kvfabric", transport)] = pair.target.call("first_wrong", model_id, held)
    wrong[LaneKey("bare_c")] = wrong[LaneKey("kvfabric", "shared_memory")]  # it writes the same target
    return wrong
