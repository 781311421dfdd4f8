"""Many runs, on a few scenes at a time: the driver mostly waits. And the table of what happened in them."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from statistics import median
from typing import NamedTuple

from tests.census.cast import Case, CensusError
from tests.census.scene import Result, Scene
from tests.census.states import Fault


class Report(NamedTuple):
    results: list[Result]
    failures: list[str]

    def table(self) -> str:
        lines = [_line(fault, [each for each in self.results if each.case.fault is fault]) for fault in Fault]
        head = f"{'fault':32} {'runs':>5} {'noticed: median':>16} {'max':>6} {'clean: median':>14} {'max':>6}  told"
        return "\n".join([head, *lines])


def run_all(cases: Iterable[Case], num_scenes: int) -> Report:
    """A scene that failed is replaced, so that one failure does not spoil the baseline of the others."""
    left: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        left.put(case)
    report = Report([], [])
    threads = [threading.Thread(target=_work, args=(left, report), name="census-scene") for _ in range(num_scenes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return report


def _work(left: queue.SimpleQueue[Case], report: Report) -> None:
    while not left.empty() and _fill_a_scene(left, report):
        pass


def _fill_a_scene(left: queue.SimpleQueue[Case], report: Report) -> bool:
    """False where not even a baseline could be taken: another scene would fare no better."""
    is_ready = False
    try:
        with Scene() as scene:
            is_ready = True
            _work_on(scene, left, report)
    except CensusError as error:
        report.failures.append(str(error))
    return is_ready


def _work_on(scene: Scene, left: queue.SimpleQueue[Case], report: Report) -> None:
    with suppress(queue.Empty):
        while True:
            report.results.append(scene.run(left.get_nowait()))


def _line(fault: Fault, results: Sequence[Result]) -> str:
    noticed = _figures([each.noticed_seconds for each in results])
    clean = _figures([each.seconds for each in results])
    told = Counter(kind for each in results for kind in (each.receiver, each.writer) if kind)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(told.items()))
    return f"{fault.value:32} {len(results):5} {noticed[0]:>16} {noticed[1]:>6} {clean[0]:>14} {clean[1]:>6}  {kinds}"


def _figures(seconds: Iterable[float | None]) -> tuple[str, str]:
    known = [each for each in seconds if each is not None]
    return (f"{median(known):.3f}", f"{max(known):.3f}") if known else ("-", "-")
