"""How a fabric's members look in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ray_kvfabric.control.directory import Member

_HEADINGS = ("cluster_id", "role", "pid", "cache", "model_id", "shape", "type", "MiB")


def html_table(caption: str, members: list[Member]) -> str:
    """One row a cache, and one for an endpoint without any."""
    rows = [_row("th", _HEADINGS), *(_row("td", cells) for member in members for cells in _cells(member))]
    return f"<table><caption>{escape(caption)}</caption>{''.join(rows)}</table>"


def _row(tag: str, cells: tuple[object, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _cells(member: Member) -> Iterator[tuple[object, ...]]:
    role = f"{member.endpoint.role}, draining" if member.endpoint.is_draining else member.endpoint.role
    who = (member.endpoint.cluster_id, role, member.endpoint.pid)
    if not member.caches:
        yield (*who, "", "", "", "", "")
    for cache in member.caches.values():
        shape, mib = list(cache.shape), f"{cache.nbytes / 2**20:.1f}"
        yield (*who, cache.cache_id, cache.model_id, shape, cache.data_type, mib)
