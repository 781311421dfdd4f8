"""`kvfabric bench`: pushes between two worker processes, beside the limits of this machine, in one run."""

from __future__ import annotations

import click
from rich.console import Console

from ray_kvfabric.bench.cases import CASES, select
from ray_kvfabric.bench.measure import QUICK, Effort, measure
from ray_kvfabric.bench.rows import Row, rows
from ray_kvfabric.cli.output import console, print_json, table
from ray_kvfabric.cli.updown import json_option
from ray_kvfabric.errors import LLMException, LLMStatusCode

COLUMNS = ("contender", ">GB/s", ">rounds", ">x memcpy", ">x limit", ">p50 us", ">p99 us", "bytes")


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
    found: list[Row] = []
    with Console(stderr=True).status("") as progress:
        for case in cases:
            progress.update(f"measuring {case.name}")
            measured = rows(measure(case, effort))
            found += measured
            for row in measured if as_json else ():
                print_json(row)
    if not as_json:
        for case in cases:
            _show([row for row in found if row["case"] == case.name])
    _refuse_wrong(found)


def _show(found: list[Row]) -> None:
    first = found[0]
    title = f"{first['case']}: {_size(first['bytes'])} a call, rounds: {first['rounds']}"
    console().print(table(title, COLUMNS, map(_cells, found)))


def _size(nbytes: object) -> str:
    return f"{nbytes / 2**20:g} MiB" if isinstance(nbytes, int) and nbytes >= 2**20 else f"{nbytes} bytes"


def _cells(row: Row) -> tuple[object, ...]:
    variant = row["transport"] or row.get("detail")
    return (
        f"{row['contender']} {variant or ''}",
        f"{row['gbps']:.4g}",
        f"{row['gbps_min']:.3g}-{row['gbps_max']:.3g}",
        f"{row['ratio_memcpy']:.2f}",
        f"{row['ratio_limit']:.2f}",
        f"{row['p50_us']:.1f}",
        f"{row['p99_us']:.1f}",
        "right" if row["verified"] else "WRONG",
    )


def _refuse_wrong(found: list[Row]) -> None:
    """Raises for bytes that did not arrive as they were sent."""
    wrong = [
        f"{row['case']} by {row['transport'] or row['contender']}: {row['wrong']}" for row in found if "wrong" in row
    ]
    if wrong:
        raise LLMException(f"wrong bytes: {'; '.join(wrong)}", status_code=LLMStatusCode.LLM_FAILED)
