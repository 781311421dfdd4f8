"""One case from its caches to its figures: the parent's side. It only waits while the source times its calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from random import Random
from typing import Any, NamedTuple, Protocol

from ray_kvfabric.bench.cases import MIB, Case
from ray_kvfabric.bench.endpoints import Target, Targets
from ray_kvfabric.bench.lanes import LaneKey
from ray_kvfabric.bench.rows import Measured
from ray_kvfabric.bench.source import (
    FOREIGN,
    GRANTS,
    MANY,
    MANY_IDS,
    SHARED,
    TARGET_ID,
    VERIFIED,
    Ends,
    Samples,
    Source,
)
from ray_kvfabric.bench.statistics import Figures
from ray_kvfabric.bench.worker import Spawned, Worker
from ray_kvfabric.grant import Grant
from ray_kvfabric.route import Route

CHECK = LaneKey("check")


class Effort(NamedTuple):
    """How much is measured: `reps` calls of every lane a round; a slow machine ends a case after `case_s`."""

    rounds: int = 5
    large_reps: int = 7
    small_reps: int = 3000
    memcpy_nbytes: int = 256 * MIB
    shrink: bool = False
    case_s: float = 30.0

    def reps(self, case: Case) -> int:
        return self.small_reps if case.is_small else self.large_reps


QUICK = Effort(rounds=1, large_reps=3, small_reps=300, memcpy_nbytes=32 * MIB, shrink=True)


class Spawn(Protocol):
    """Makes a worker: `Spawned`, or what a test puts in its place."""

    def __call__(self, name: str, make: Callable[..., Any], *arguments: object) -> Worker: ...


class Crew(NamedTuple):
    """The workers of a case; `many` only for a case that goes to several endpoints."""

    source: Worker
    target: Worker
    many: Worker | None


def measure(case: Case, effort: Effort, spawn: Spawn = Spawned) -> Measured:
    """First calls, then rounds; all bytes of every target are compared after the first and after each round.

    All workers are new: nothing of an earlier case lies in their memory.
    """
    case = case.shrunk() if effort.shrink else case
    with ExitStack() as stack:
        target = stack.enter_context(closing(spawn("target", Target, TARGET_ID)))
        many = stack.enter_context(closing(spawn("many", Targets, MANY_IDS))) if case.fans else None
        ends = _open(case, target, many)
        source = stack.enter_context(closing(spawn("source", Source, case, ends, effort.memcpy_nbytes)))
        rounds, wrong = _run(case, Crew(source, target, many), effort)
        yard_nbytes = source.call("yard_nbytes")
    return Measured(case, [_figures(key, case, yard_nbytes, rounds) for key in rounds[0]], wrong)


def _open(case: Case, target: Worker, many: Worker | None) -> Ends:
    shared, foreign = (target.call("open_cache", case, model_id, model_id == FOREIGN) for model_id in (SHARED, FOREIGN))
    granted = {name: _open_granted(case, target, name) for name in GRANTS}
    to_many = {name: many.call("open_caches", case, model_id) for name, (model_id, _) in MANY.items()} if many else {}
    return Ends(shared, foreign, granted, to_many)


def _open_granted(case: Case, target: Worker, name: str) -> tuple[Route, Grant]:
    """Of all blocks, in an order as the case's: a push goes to neighbours in it."""
    blocks = list(range(case.num_blocks))
    if not case.consecutive:
        Random(name).shuffle(blocks)
    route = target.call("open_cache", case, GRANTS[name])
    return route, target.call("grant", GRANTS[name], blocks, "crc32c" if name == "verified" else None)


def _run(case: Case, crew: Crew, effort: Effort) -> tuple[list[Samples], dict[LaneKey, str | None]]:
    until = time.monotonic() + effort.case_s
    crew.source.call("first_calls", 0)
    wrong = _verify(crew)
    rounds: list[Samples] = []
    for number in range(1, effort.rounds + 1):
        rounds.append(_round(case, crew, effort.reps(case), number))
        wrong = _merged(wrong, _verify(crew))
        if time.monotonic() > until:
            break
    return rounds, _merged(wrong, _land(crew))


def _merged(first: dict[LaneKey, str | None], later: dict[LaneKey, str | None]) -> dict[LaneKey, str | None]:
    """What was wrong first stays."""
    return {key: first.get(key) or later.get(key) for key in {**first, **later}}


def _round(case: Case, crew: Crew, reps: int, number: int) -> Samples:
    """The source's lanes, and after them the receiver's check of as many bytes as a push brings."""
    samples: Samples = crew.source.call("round", reps, number)
    random = Random(number)
    lists = [case.draw(random)[1] for _ in range(reps)]
    return {**samples, CHECK: crew.target.call("time_checks", VERIFIED, lists)}


def _figures(key: LaneKey, case: Case, yard_nbytes: int, rounds: list[Samples]) -> Figures:
    times = len(MANY_IDS) if key.contender in MANY else 1
    nbytes = yard_nbytes if key.contender == "memcpy" else times * case.nbytes
    return Figures(key, nbytes, [samples[key] for samples in rounds])


def _verify(crew: Crew) -> dict[LaneKey, str | None]:
    """What is wrong at each lane's target; the peers look at their own caches."""
    wrong: dict[LaneKey, str | None] = crew.source.call("wrong_here")
    for model_id, transport in ((SHARED, "shared_memory"), (FOREIGN, "process_vm")):
        held = crew.source.call("held", transport)
        wrong[LaneKey("kvfabric", transport)] = crew.target.call("first_wrong", model_id, held)
    for name, model_id in GRANTS.items():
        held = crew.source.call("held_of", name)
        wrong[LaneKey(name, "shared_memory")] = crew.target.call("first_wrong", model_id, held)
    if crew.many is not None:
        for name, (model_id, _) in MANY.items():
            held = crew.source.call("held_of", name)
            wrong[LaneKey(name, "shared_memory")] = crew.many.call("first_wrong", model_id, held)
    wrong[LaneKey("bare_c")] = wrong[LaneKey("kvfabric", "shared_memory")]  # it writes the same target
    return wrong


def _land(crew: Crew) -> dict[LaneKey, str | None]:
    """The grants are sealed, and the receiver compares the digests of every block before it takes them."""
    crew.source.call("seal")
    found = {name: crew.target.call("land", model_id) for name, model_id in GRANTS.items()}
    landed: dict[LaneKey, str | None] = {LaneKey(name, "shared_memory"): wrong for name, wrong in found.items()}
    return {**landed, CHECK: found["verified"]}
