"""What the plain Python copy kernel is to do: checked in the order of the native kernel, then walked pair by pair."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.memory.copy_python_arguments import BlockList, RegionTable


class Slice(NamedTuple):
    """Bytes of one pair of blocks."""

    source: int
    target: int
    nbytes: int
    pair: int  # counted through all regions
    completes: tuple[int, int, int] | None  # (source, target, nbytes) of the pair whose last slice it is


class Plan(NamedTuple):
    """Region pairs to be carried out one after the other, for each the same block pairs."""

    regions: list[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]
    blocks: list[tuple[int, int]]

    @property
    def nbytes(self) -> int:
        return sum(source[2] for source, _ in self.regions) * len(self.blocks)

    def pairs(self) -> Iterator[tuple[int, int, int]]:
        """(source address, target address, nbytes) in plan order."""
        for source, target in self.regions:
            for i, j in self.blocks:
                yield source[0] + i * source[3], target[0] + j * target[3], source[2]

    def slices(self, begin: int, most_nbytes: int) -> Iterator[Slice]:
        """The plan from byte `begin` on; a pair that moves up onto itself is walked from its end."""
        position = 0
        for index, (source, target, nbytes) in enumerate(self.pairs()):
            for walked in range(max(0, begin - position), nbytes, most_nbytes):
                length = min(most_nbytes, nbytes - walked)
                place = nbytes - walked - length if source < target < source + nbytes else walked
                completes = (source, target, nbytes) if walked + length == nbytes else None
                yield Slice(source + place, target + place, length, index, completes)
            position += nbytes


def check_lengths(source: BlockList, target: BlockList) -> None:
    if len(source) != len(target):
        raise ParamInvalid(f"{source.name} has {len(source)} entries, {target.name} has {len(target)}")


def _check_range(side: str, table: RegionTable, first: int, count: int) -> None:
    if first < 0 or count < 0 or first + count > len(table):
        raise ParamInvalid(
            f"{side}_first {first} and count {count} do not fit the {side} table of {len(table)} regions"
        )


def _check_pair(
    source: RegionTable,
    target: RegionTable,
    i: int,
    j: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> None:
    _, source_num, source_nbytes, _ = source[i]
    _, target_num, target_nbytes, _ = target[j]
    if source_nbytes != target_nbytes:
        raise ParamInvalid(
            f"block_nbytes differs: source region {i} has {source_nbytes}, target region {j} has {target_nbytes}"
        )
    if source_blocks.maximum >= source_num:
        raise ParamInvalid(
            f"{source_blocks.name} holds block {source_blocks.maximum}, source region {i} has num_blocks "
            f"{source_num} (target region {j} has {target_num})"
        )
    if target_blocks.maximum >= target_num:
        raise ParamInvalid(
            f"{target_blocks.name} holds block {target_blocks.maximum}, target region {j} has num_blocks "
            f"{target_num} (source region {i} has {source_num})"
        )


def plan_of(
    source: RegionTable,
    target: RegionTable,
    source_first: int,
    target_first: int,
    count: int,
    source_blocks: BlockList,
    target_blocks: BlockList,
) -> Plan:
    check_lengths(source_blocks, target_blocks)
    _check_range("source", source, source_first, count)
    _check_range("target", target, target_first, count)
    for i in range(count):
        _check_pair(source, target, source_first + i, target_first + i, source_blocks, target_blocks)
    regions = [(source[source_first + i], target[target_first + i]) for i in range(count)]
    plan = Plan(regions, list(zip(source_blocks, target_blocks, strict=True)))
    if plan.nbytes >= 2**63:
        raise ParamInvalid(f"{source_blocks.name} names 2**63 bytes or more in the {count} regions")
    return plan


# ---- which bytes meet ----


def _meet(some: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> bool:
    """Do two sets of [begin, end) share a byte?"""
    ordered = sorted(others)
    begins = [begin for begin, _ in ordered]
    furthest = list(accumulate((end for _, end in ordered), max))
    for begin, end in some:
        before = bisect_left(begins, end)
        if before and furthest[before - 1] > begin:
            return True
    return False


def _read(plan: Plan) -> list[tuple[int, int]]:
    return [(source, source + nbytes) for source, _, nbytes in plan.pairs()]


def _written(plan: Plan) -> list[tuple[int, int]]:
    return [(target, target + nbytes) for _, target, nbytes in plan.pairs()]


def shares_bytes(plan: Plan) -> bool:
    """Is a byte both read and written?"""
    return _meet(_read(plan), _written(plan))


def writes_twice(plan: Plan) -> bool:
    return any(before[1] > after[0] for before, after in pairwise(sorted(_written(plan))))


def targets_meet(a: Plan, b: Plan) -> bool:
    return _meet(_written(a), _written(b))
