"""Names of a fabric's actors and placement groups, all in the namespace `kvfabric`."""

from __future__ import annotations

from ray_kvfabric.errors import ConfigError


def checked(fabric: str) -> str:
    if not fabric or ":" in fabric:
        raise ConfigError(f"a fabric's name must not be empty nor contain ':', got {fabric!r}")
    return fabric


def scheduler_name(fabric: str) -> str:
    return f"kvfabric:{fabric}:scheduler"


def worker_name(fabric: str, cluster_id: int) -> str:
    return f"kvfabric:{fabric}:worker:{cluster_id}"


def placement_name(fabric: str, of: int | str) -> str:
    """`of`: the first cluster_id, or a name of its own."""
    return f"kvfabric:{fabric}:placement:{of}"


def belongs(name: str, fabric: str) -> bool:
    return name.startswith(f"kvfabric:{fabric}:")
