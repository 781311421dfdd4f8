"""Name to transport, and the choice between them. Third parties add theirs by entry point."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import NamedTuple

from ray_kvfabric.errors import LinkFailed, UnknownTransport
from ray_kvfabric.route import EndpointInfo, Route
from ray_kvfabric.transport.base import Transport
from ray_kvfabric.transport.host_link import same_host_refusal

GROUP = "ray_kvfabric.transports"
BY_SPEED = ("loopback", "shared_memory", "process_vm", "device_ipc", "hccl")  # fastest first; others follow by name

FASTER = {"process_vm": "shared_memory", "hccl": "device_ipc"}  # between processes of one host


class Verdict(NamedTuple):
    """One transport for one pair; `refusal` None means that it can be used."""

    name: str
    refusal: str | None


@cache
def _factories() -> dict[str, type[Transport]]:
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """All installed transports, fastest first."""
    known = _factories()
    return tuple(name for name in BY_SPEED if name in known) + tuple(sorted(set(known) - set(BY_SPEED)))


def create(name: str) -> Transport:
    """The transport of this name. Raises UnknownTransport listing what is installed."""
    try:
        return _factories()[name]()
    except KeyError:
        raise UnknownTransport(f"no transport {name!r}; installed are {', '.join(names())}") from None


def usable(allowed: Iterable[str] | None) -> tuple[Transport, ...]:
    """Those of `allowed` (None: all installed) that this machine can use, fastest first."""
    wanted = names() if allowed is None else tuple(allowed)
    ordered = sorted(wanted, key=lambda name: names().index(name) if name in names() else -1)
    return tuple(transport for transport in map(create, ordered) if transport.missing() is None)


def judge(transports: Iterable[Transport], local: EndpointInfo, route: Route, memory: str) -> list[Verdict]:
    """Every transport with the reason why it cannot serve this pair, in order of preference.

    `memory` is that of the local cache.
    """
    return [Verdict(transport.name, _refusal(transport, local, route, memory)) for transport in transports]


def choose(transports: tuple[Transport, ...], local: EndpointInfo, route: Route, memory: str) -> Transport:
    """The first that serves this pair. Raises LinkFailed with every refusal."""
    verdicts = judge(transports, local, route, memory)
    for transport, verdict in zip(transports, verdicts, strict=True):
        if verdict.refusal is None:
            return transport
    reasons = "; ".join(f"{verdict.name}: {verdict.refusal}" for verdict in verdicts)
    raise LinkFailed(
        f"no transport from endpoint {local.cluster_id} to cache {route.cache.cache_id} of {route.endpoint}: "
        f"{reasons or 'none is enabled'}"
    )


def why_slow(
    chosen: Transport, transports: tuple[Transport, ...], local: EndpointInfo, route: Route, memory: str
) -> str | None:
    """Why the faster transport that this pair's hosts allow was not taken; None when there is none."""
    faster = [each for each in transports if each.name == FASTER.get(chosen.name)]
    if not faster or same_host_refusal(local, route.endpoint) is not None:
        return None
    return _refusal(faster[0], local, route, memory)


def _refusal(transport: Transport, local: EndpointInfo, route: Route, memory: str) -> str | None:
    if transport.name not in route.endpoint.transports:
        return f"endpoint {route.endpoint.cluster_id} does not offer it"
    if (memory, route.cache.memory) not in transport.capabilities.memories:
        return f"it does not move {memory} to {route.cache.memory} memory"
    if route.cache.memory == "device" and route.cache.device is None:
        return f"endpoint {route.endpoint.cluster_id} knows no device that the memory lies on"
    return transport.refusal(local, route)
