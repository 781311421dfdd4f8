"""The running Ray cluster that a subcommand looks into; none of them starts one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from ray_kvfabric.cli.knock import knock
from ray_kvfabric.config import NAMESPACE
from ray_kvfabric.errors import NotLinked


@contextmanager
def running_cluster(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, None: the one that runs here. Raises NotLinked when there is none."""
    if ray.is_initialized():
        yield
        return
    _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def describe_cluster(address: str | None) -> str:
    """Nodes and resources in a few words. Raises NotLinked."""
    with running_cluster(address):
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    totals = [f"{kind} {sum(each.get(kind, 0) for each in alive):g}" for kind in ("CPU", "GPU", "NPU")]
    return f"{len(alive)} nodes, {', '.join(totals)}"


def _connect(address: str | None) -> None:
    try:
        if address is not None:
            knock(address)
        ray.init(address=address or "auto", namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        where = f"at {address}" if address else "on this machine"
        reason = str(error).strip().splitlines()[0] if address and str(error).strip() else ""
        raise NotLinked(
            f"no Ray cluster runs {where}; start one with `ray start --head`, or name one with --address"
            + (f" ({reason})" if reason else "")
        ) from None
