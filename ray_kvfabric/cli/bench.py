"""`kvfabric bench`: pushes between two worker processes, beside the limits of this machine, in one run."""

from __future__ import annotations

from importlib.util import find_spec

import click
from rich.console import Console

from ray_kvfabric.bench.cases import CASES, select
from ray_kvfabric.bench.measure import QUICK, Effort, Pair, measure
from ray_kvfabric.bench.rows import Row, rows
from ray_kvfabric.cli.output import console, note, print_json, table
from ray_kvfabric.cli.updown import json_option
from ray_kvfabric.errors import LLMException, LLMStatusCode

COLUMNS = (
    "case", "contender", "transport", ">MiB", ">GB/s", ">rounds from", ">to", ">x memcpy", ">x limit",
    ">p50 us", ">p99 us", "verified",
)  # fmt: skip


@click.command()
@click.option("--case", "names", multiple=True, metavar="NAME", help=f"One of {', '.join(CASES)}; repeatable; all.")
@click.option("--rounds", type=click.IntRange(1, 100), help="More rounds, better known spread.")
@click.option("--quick", is_flag=True, help="One short round over less data: to see that it works.")
@json_option
def bench(names: tuple[str, ...], rounds: int | None, quick: bool, as_json: bool) -> None:
    """Measure CacheManager.push_blocks between two processes, other blocks at each call.

    The yardsticks are sampled between its calls: one thread's memcpy, and the limit, which is the fastest of the
    copy kernel's own loops within one process (for the small case the bare copy in C).
    """
    cases = select(names)
    effort = QUICK if quick else Effort()
    if rounds is not None:
        effort = effort._replace(rounds=rounds, case_s=float("inf"))
    if find_spec("nixl") is None:
        note("contender nixl: not installed (the extra ray-kvfabric[nixl]); no rows")
    pair = Pair.spawn()
    found: list[Row] = []
    try:
        with Console(stderr=True).status("starting two workers") as progress:
            for case in cases:
                progress.update(f"measuring {case.name}")
                measured = rows_of(case.name, pair, effort)
                found += measured
                if as_json:
                    for row in measured:
                        print_json(row)
    finally:
        pair.close()
    if not as_json:
        console().print(table("pushes and their limits", COLUMNS, map(_cells, found)))
    _refuse_wrong(found)


def rows_of(name: str, pair: Pair, effort: Effort) -> list[Row]:
    return rows(measure(CASES[name], pair, effort))


def _cells(row: Row) -> tuple[object, ...]:
    detail = f" ({row['detail']})" if "detail" in row else ""
    return (
        row["case"],
        f"{row['contender']}{detail}",
        row["transport"],
        f"{row['bytes'] / 2**20:g}" if isinstance(row["bytes"], int) else "",
        row["gbps"],
        row["gbps_min"],
        row["gbps_max"],
        row["ratio_memcpy"],
        row["ratio_limit"],
        row["p50_us"],
        row["p99_us"],
        "yes" if row["verified"] else "NO",
    )


def _refuse_wrong(found: list[Row]) -> None:
    """Raises for bytes that did not arrive as they were sent."""
    wrong = [f"{row['case']} by {row['transport'] or row['contender']}: {row['wrong']}" for row in found if "wrong" in row]
    if wrong:
        raise LLMException(f"wrong bytes: {'; '.join(wrong)}", status_code=LLMStatusCode.LLM_FAILED)
