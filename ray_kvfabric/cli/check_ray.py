"""Doctor's look at Ray: the installed version, and whether a cluster runs here."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from ray_kvfabric.cli.findings import Finding
from ray_kvfabric.errors import FabricError

OLDEST = (2, 60)
_INSTALL = f"pip install 'ray>={OLDEST[0]}.{OLDEST[1]}'"


def check_ray() -> list[Finding]:
    installed = _version()
    return [installed] if installed.state == "missing" else [installed, _cluster()]


def _version() -> Finding:
    try:
        found = version("ray")
    except PackageNotFoundError:
        return Finding("ray", "version", "missing", "Ray is not installed", _INSTALL)
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < OLDEST:
        return Finding("ray", "version", "missing", f"{found} is too old", _INSTALL)
    return Finding("ray", "version", "ok", found)


def _cluster() -> Finding:
    from ray_kvfabric.cli.cluster import describe_cluster  # imports Ray, which the version's check may not find

    try:
        return Finding("ray", "cluster", "ok", f"runs: {describe_cluster(None)}")
    except FabricError:
        return Finding("ray", "cluster", "note", "none runs here", "`ray start --head`; the demo starts its own")
