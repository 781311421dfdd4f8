"""`kvfabric bench`: pushes between two worker processes, beside the limits of this machine, in one run."""

from __future__ import annotations

import click
from rich.console import Console

from ray_kvfabric.bench.cases import CASES, URGENT, select
from ray_kvfabric.bench.measure import QUICK, Effort, measure
from ray_kvfabric.bench.rows import Row, rows
from ray_kvfabric.bench.urgent import QUICK_URGENT, UrgentEffort, measure_urgent
from ray_kvfabric.cli.output import console, print_json, table
from ray_kvfabric.cli.updown import json_option
from ray_kvfabric.errors import LLMException, LLMStatusCode

COLUMNS = ("contender", ">GB/s", ">rounds", ">x memcpy", ">x limit", ">x push", ">p50 us", ">p99 us", "bytes")
URGENT_COLUMNS = ("an urgent push", ">p50 us", ">p99 us", ">x idle p50", ">x idle p99", ">bulk GB/s", "bytes")
NAMES = (*CASES, URGENT.name)


@click.command()
@click.option("--case", "names", multiple=True, metavar="NAME", help=f"One of {', '.join(NAMES)}; repeatable; all.")
@click.option("--rounds", type=click.IntRange(1, 100), help="More rounds, better known spread.")
@click.option("--quick", is_flag=True, help="One short round over less data: to see that it works.")
@json_option
def bench(names: tuple[str, ...], rounds: int | None, quick: bool, as_json: bool) -> None:
    """Measure CacheManager.push_blocks between two processes, other blocks at each call.

    The yardsticks are sampled between its calls: one thread's memcpy, and the limit, which is the fastest of the
    copy kernel's own loops within one process (for the small case the bare copy in C). So are pushes under a grant
    and with digests, and one push to four endpoints. Case urgent: a push that meets bulk on its link.
    """
    cases = select(names, (URGENT.name,))
    found: list[Row] = []
    with Console(stderr=True).status("") as progress:
        for case in cases:
            progress.update(f"measuring {case.name}")
            found += _told(rows(measure(case, _effort(quick, rounds))), as_json)
        if not names or URGENT.name in names:
            progress.update(f"measuring {URGENT.name}")
            found += _told(measure_urgent(_urgent_effort(quick, rounds)), as_json)
    if not as_json:
        for name in dict.fromkeys(str(row["case"]) for row in found):
            _show([row for row in found if row["case"] == name])
    _refuse_wrong(found)


def _effort(quick: bool, rounds: int | None) -> Effort:
    effort = QUICK if quick else Effort()
    return effort if rounds is None else effort._replace(rounds=rounds, case_s=float("inf"))


def _urgent_effort(quick: bool, rounds: int | None) -> UrgentEffort:
    effort = QUICK_URGENT if quick else UrgentEffort()
    return effort if rounds is None else effort._replace(rounds=rounds)


def _told(measured: list[Row], as_json: bool) -> list[Row]:
    for row in measured if as_json else ():
        print_json(row)
    return measured


def _show(found: list[Row]) -> None:
    first = found[0]
    title = f"{first['case']}: {_size(first['bytes'])} a call, rounds: {first['rounds']}"
    if first["case"] == URGENT.name:
        console().print(table(title, URGENT_COLUMNS, map(_urgent_cells, found)))
    else:
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
        f"{row['ratio_push']:.2f}",
        f"{row['p50_us']:.1f}",
        f"{row['p99_us']:.1f}",
        "right" if row["verified"] else "WRONG",
    )


def _urgent_cells(row: Row) -> tuple[object, ...]:
    return (
        row["detail"],
        f"{row['p50_us']:.1f}",
        f"{row['p99_us']:.1f}",
        f"{row['ratio_idle_p50']:.2f}",
        f"{row['ratio_idle_p99']:.2f}",
        f"{row['bulk_gbps']:.4g}",
        "right" if row["verified"] else "WRONG",
    )


def _refuse_wrong(found: list[Row]) -> None:
    """Raises for bytes that did not arrive as they were sent."""
    wrong = [
        f"{row['case']} by {row['contender']} {row['transport'] or ''}: {row['wrong']}"
        for row in found
        if "wrong" in row
    ]
    if wrong:
        raise LLMException(f"wrong bytes: {'; '.join(wrong)}", status_code=LLMStatusCode.LLM_FAILED)
