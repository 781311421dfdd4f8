"""`kvfabric doctor`: what this machine can do for a fabric; exit code 1 when something needed is missing."""

from __future__ import annotations

import click
from rich.text import Text

from ray_kvfabric.cli.check_copies import check_kernel, check_transports
from ray_kvfabric.cli.check_devices import check_devices, look_at_devices
from ray_kvfabric.cli.check_host import check_host
from ray_kvfabric.cli.check_ray import check_ray
from ray_kvfabric.cli.findings import Finding, as_document, is_healthy
from ray_kvfabric.cli.output import console, print_json
from ray_kvfabric.cli.updown import json_option

_MARKS = {"ok": ("ok     ", "green"), "note": ("note   ", "yellow"), "missing": ("MISSING", "bold red")}


@click.command()
@json_option
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What this machine can do, what it lacks, and what to do about it.

    Every transport is tried with a small push between two processes: those of device memory on two devices, or on the
    one there is. Exit code 1 when something needed is missing.
    """
    seen = look_at_devices()
    findings = [*check_kernel(), *check_transports(seen), *check_devices(seen), *check_ray(), *check_host()]
    if as_json:
        print_json(as_document(findings))
    else:
        _show(findings)
    context.exit(0 if is_healthy(findings) else 1)


def _show(findings: list[Finding]) -> None:
    screen = console()
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            screen.print(Text(area, style="bold"))
        screen.print(_line(finding))
    missing = [finding.name for finding in findings if finding.state == "missing"]
    screen.print(Text(f"missing: {', '.join(missing)}", style="red") if missing else Text("nothing needed is missing"))


def _line(finding: Finding) -> Text:
    mark, style = _MARKS[finding.state]
    line = Text.assemble("  ", (mark, style), f" {finding.name:<19} {finding.detail}")
    if finding.remedy:
        line.append(f"; {finding.remedy}", style="" if finding.state == "ok" else style)
    return line
