"""`kvfabric status`: what a running fabric holds and moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.console import Group, RenderableType

from ray_kvfabric.cli.cluster import running_cluster
from ray_kvfabric.cli.output import console, mebibytes, print_json, table
from ray_kvfabric.cli.updown import address_option, json_option
from ray_kvfabric.config import FabricConfig
from ray_kvfabric.fabric import Fabric

Status = Mapping[str, Any]


@click.command()
@click.option("--name", default="default", show_default=True, help="Of the fabric.")
@click.option("--watch", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Show it again and again.")
@address_option
@json_option
def status(name: str, watch: float | None, address: str | None, as_json: bool) -> None:
    """Endpoints, caches, links and transfers of a running fabric."""
    with running_cluster(address):
        fabric = Fabric(FabricConfig(name=name))
        for seen in _looks(fabric, watch):
            if as_json:
                print_json(seen)
            else:
                _show(seen, clear=watch is not None)


def _looks(fabric: Fabric, every_s: float | None) -> Iterator[Status]:
    yield fabric.status()
    while every_s is not None:
        time.sleep(every_s)
        yield fabric.status()


def _show(seen: Status, *, clear: bool) -> None:
    screen = console()
    if clear and screen.is_terminal:
        screen.clear()
    screen.print(render(seen))


def render(seen: Status) -> RenderableType:
    """A table of endpoints, and one of caches, links and transfers each where there are any."""
    endpoints: dict[Any, Status] = seen["endpoints"]
    answering = {key: each for key, each in endpoints.items() if "error" not in each}
    parts = [
        table(
            f"fabric {seen['fabric']}: {len(endpoints)} endpoints",
            (">endpoint", "role", ">pid", "node", "transports", ">MiB used", ">MiB budget", "state"),
            (_endpoint_row(key, each) for key, each in endpoints.items()),
        ),
        table(
            "caches",
            (">endpoint", ">cache", ">model_id", "type", "shape", ">tensors", ">MiB", "memory"),
            (_cache_row(key, cache) for key, each in answering.items() for cache in each["caches"]),
        ),
        table(
            "links",
            (">from", ">to", "transport", "state", ">MiB pushed", ">MiB pulled"),
            (_link_row(key, link) for key, each in answering.items() for link in each["links"]),
        ),
        table(
            "transfers that were started and can still be asked for",
            (">endpoint", "state", ">count"),
            (row for key, each in answering.items() for row in _transfer_rows(key, each)),
        ),
    ]
    return Group(parts[0], *(part for part in parts[1:] if part.row_count))


def _endpoint_row(cluster_id: object, seen: Status) -> tuple[object, ...]:
    if "error" in seen:
        return (cluster_id, None, None, None, None, None, None, seen["error"])
    memory = seen["memory"]
    return (
        cluster_id,
        seen["role"],
        seen["pid"],
        seen["node"][:12],
        ", ".join(seen["transports"]),
        mebibytes(memory["used_bytes"]),
        mebibytes(memory["budget_bytes"]),
        seen.get("chip") or "answers",
    )


def _cache_row(cluster_id: object, cache: Status) -> tuple[object, ...]:
    origin = "fabric" if cache["fabric_memory"] else "foreign"
    shape = "x".join(map(str, cache["shape"]))
    return (
        cluster_id,
        cache["cache_id"],
        cache["model_id"],
        cache["data_type"],
        shape,
        cache["tensors"],
        mebibytes(cache["bytes"]),
        f"{cache['placement']}, {origin}",
    )


def _link_row(cluster_id: object, link: Status) -> tuple[object, ...]:
    state = "open" if link["alive"] else "dead"
    return (
        cluster_id,
        link["to"],
        link["transport"],
        state,
        mebibytes(link["bytes_pushed"]),
        mebibytes(link["bytes_pulled"]),
    )


def _transfer_rows(cluster_id: object, seen: Status) -> list[tuple[object, ...]]:
    counts = Counter(transfer["state"] for transfer in seen["transfers"])
    return [(cluster_id, state, count) for state, count in sorted(counts.items())]
