"""From samples to figures: medians over all calls, spread and ratios over rounds. Pure."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from ray_kvfabric.bench.lanes import LaneKey

Rounds = list[list[int]]  # nanoseconds, by round and call


class Spread(NamedTuple):
    """A figure and its lowest and highest round."""

    middle: float
    lowest: float
    highest: float


class Figures(NamedTuple):
    """One lane of a case. `nbytes` is what one of its calls moves."""

    key: LaneKey
    nbytes: int
    rounds: Rounds

    @property
    def calls(self) -> list[int]:
        return [sample for samples in self.rounds for sample in samples]

    @property
    def gbps(self) -> Spread:
        """10^9 bytes a second of the median call."""
        by_round = [self.nbytes / median(samples) for samples in self.rounds]
        return Spread(self.nbytes / median(self.calls), min(by_round), max(by_round))

    def percentile_us(self, percent: float) -> float:
        return percentile(self.calls, percent) / 1000


def percentile(samples: list[int], percent: float) -> float:
    """Between the two nearest samples, linearly."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def speed_ratio(ours: Figures, other: Figures) -> Spread:
    """How many times as fast as `other`, the two sampled in the same round compared with each other."""
    ratios = [
        (ours.nbytes / median(mine)) / (other.nbytes / median(theirs))
        for mine, theirs in zip(ours.rounds, other.rounds, strict=True)
    ]
    return Spread(median(ratios), min(ratios), max(ratios))


def fastest(lanes: list[Figures]) -> Figures:
    return max(lanes, key=lambda lane: lane.gbps.middle)
