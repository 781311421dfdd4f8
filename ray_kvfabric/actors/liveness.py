"""Whether an endpoint's process still exists, as far as this host can tell."""

from __future__ import annotations

from pathlib import Path

from ray_kvfabric.route import EndpointInfo, HostId


def process_gone(endpoint: EndpointInfo) -> bool:
    """True only for a process of this host that is dead; False also when nobody here can know."""
    if endpoint.host != HostId.here():
        return False
    try:
        state = Path(f"/proc/{endpoint.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # dead, and not yet reaped by its parent
