"""How a fabric's members look in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_kvfabric.cache.html_table import Cell, html_table, mebibytes
from ray_kvfabric.control.directory import Member
from ray_kvfabric.route import CACHE_HEADINGS

_MEMBER = ("endpoint", "role", "pid", *CACHE_HEADINGS)
_ENDPOINT = ("role", "pid", "incarnation", "transports", "MiB used", "MiB budget")
_LINK = ("to", "transport", "state", "MiB pushed", "MiB pulled")


def members_table(caption: str, members: list[Member]) -> str:
    """One row a cache, and one for an endpoint without any."""
    return html_table(caption, _MEMBER, [row for member in members for row in _rows(member)])


def _rows(member: Member) -> Iterator[tuple[Cell, ...]]:
    role = f"{member.endpoint.role}, draining" if member.endpoint.is_draining else member.endpoint.role
    who = (member.endpoint.cluster_id, role, member.endpoint.pid)
    if not member.caches:
        yield (*who, *[None for _ in CACHE_HEADINGS])
    for cache in member.caches.values():
        yield (*who, *cache.shown)


@dataclass(frozen=True, slots=True)
class EndpointView:
    """What an endpoint said of itself, once: what a notebook shows for a worker.

    The worker's handle is Ray's own class: it can neither be subclassed nor asked for its looks.
    """

    status: Mapping[str, Any]

    def __repr__(self) -> str:
        seen = self.status
        return (
            f"<Endpoint {seen['cluster_id']} {seen['role']}: {len(seen['caches'])} caches, {len(seen['links'])} links>"
        )

    def _repr_html_(self) -> str:
        """The endpoint, and a table each of its caches, links and started transfers where there are any."""
        seen = self.status
        transfers = sorted(Counter(each["state"] for each in seen["transfers"]).items())
        tables: list[tuple[str, Sequence[str], list[tuple[Cell, ...]]]] = [
            (f"endpoint {seen['cluster_id']}", _ENDPOINT, [_endpoint_row(seen)]),
            ("caches", CACHE_HEADINGS, [_cache_row(each) for each in seen["caches"]]),
            ("links", _LINK, [_link_row(each) for each in seen["links"]]),
            ("transfers that were started here", ("state", "count"), [*transfers]),
        ]
        return "".join(html_table(*each) for each in tables if each[2])


def _endpoint_row(seen: Mapping[str, Any]) -> tuple[Cell, ...]:
    memory = seen["memory"]
    role = f"{seen['role']}, draining" if seen["is_draining"] else seen["role"]
    mib = mebibytes(memory["used_bytes"]), mebibytes(memory["budget_bytes"])
    return (role, seen["pid"], seen["incarnation"], ", ".join(seen["transports"]), *mib)


def _cache_row(cache: Mapping[str, Any]) -> tuple[Cell, ...]:
    what = [cache[name] for name in ("cache_id", "model_id", "tensors", "shape", "data_type", "memory")]
    return (*what, mebibytes(cache["bytes"]))


def _link_row(link: Mapping[str, Any]) -> tuple[Cell, ...]:
    state = "open" if link["alive"] else "dead"
    mib = mebibytes(link["bytes_pushed"]), mebibytes(link["bytes_pulled"])
    return (link["to"], link["transport"], state, *mib)
