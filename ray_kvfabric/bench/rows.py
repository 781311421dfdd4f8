"""What `kvfabric bench` prints: one row a contender of a case, ready for JSON."""

from __future__ import annotations

from typing import NamedTuple

from ray_kvfabric.bench.cases import Case
from ray_kvfabric.bench.lanes import LaneKey
from ray_kvfabric.bench.statistics import Figures, fastest, speed_ratio

Row = dict[str, object]


class Measured(NamedTuple):
    """One case: figures of every lane, and what verification found (None: every byte right)."""

    case: Case
    lanes: list[Figures]
    wrong: dict[LaneKey, str | None]


BESIDE = ("granted", "verified", "check", "one_to_many", "singles")


def rows(measured: Measured) -> list[Row]:
    """Pushes first, then other ways to push, then yardsticks; of the kernel's loops the fastest, which is the limit."""
    by_name: dict[str, list[Figures]] = {
        name: [lane for lane in measured.lanes if lane.key.contender == name]
        for name in ("kvfabric", *BESIDE, "bare_c", "limit", "memcpy")
    }
    yards = Yards(
        by_name["kvfabric"][0], by_name["singles"], fastest(by_name["limit"] or by_name["bare_c"]), by_name["memcpy"][0]
    )
    beside = [lane for name in BESIDE for lane in by_name[name]]
    shown = [*by_name["kvfabric"], *beside, yards.limit, yards.memcpy]
    return [_row(measured, lane, yards) for lane in shown]


class Yards(NamedTuple):
    """What a lane is compared with; `push` goes over shared memory."""

    push: Figures
    singles: list[Figures]
    limit: Figures
    memcpy: Figures

    def push_of(self, lane: Figures) -> Figures:
        """The plain pushes that come to the same."""
        return self.singles[0] if lane.key.contender == "one_to_many" else self.push


def _row(measured: Measured, lane: Figures, yards: Yards) -> Row:
    limit = yards.limit
    gbps, to_memcpy, to_limit = lane.gbps, speed_ratio(lane, yards.memcpy), speed_ratio(lane, limit)
    to_push = speed_ratio(lane, yards.push_of(lane))
    row: Row = {
        "contender": lane.key.contender,
        "transport": lane.key.transport,
        "case": measured.case.name,
        "bytes": lane.nbytes,
        "gbps": round(gbps.middle, 3),
        "ratio_memcpy": round(to_memcpy.middle, 3),
        "ratio_limit": round(to_limit.middle, 3),
        "p50_us": round(lane.percentile_us(50), 2),
        "p99_us": round(lane.percentile_us(99), 2),
        "verified": measured.wrong.get(lane.key) is None,
        "gbps_min": round(gbps.lowest, 3),
        "gbps_max": round(gbps.highest, 3),
        "ratio_memcpy_min": round(to_memcpy.lowest, 3),
        "ratio_memcpy_max": round(to_memcpy.highest, 3),
        "ratio_limit_min": round(to_limit.lowest, 3),
        "ratio_limit_max": round(to_limit.highest, 3),
        "ratio_push": round(to_push.middle, 3),
        "ratio_push_min": round(to_push.lowest, 3),
        "ratio_push_max": round(to_push.highest, 3),
        "rounds": len(lane.rounds),
        "reps": len(lane.calls),
    }
    if lane.key.detail:
        row["detail"] = lane.key.detail
    if limit.key.contender == "bare_c" and lane.key.contender == "kvfabric":
        row["overhead_us"] = round(lane.percentile_us(50) - limit.percentile_us(50), 2)
    problem = measured.wrong.get(lane.key)
    if problem is not None:
        row["wrong"] = problem
    return row
