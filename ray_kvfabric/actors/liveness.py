"""Whether an endpoint still lives: what its actor, this host and Ray know of it.

A call that failed because the actor is unavailable proves nothing: each way is tried until one of them knows.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum, auto
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayActorError

from ray_kvfabric.route import EndpointInfo, HostId

PING_S = 1.0
PAUSE_S = 0.1
CONNECT_S = 1.0


class Verdict(Enum):
    LIVES = auto()
    DIED = auto()
    UNKNOWN = auto()


async def judge(actor: ActorHandle[Any] | None, endpoint: EndpointInfo, within_s: float) -> Verdict:
    """UNKNOWN when nothing that knows was found in time; an endpoint without an actor is looked at once."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while True:
        verdict = await _look(actor, endpoint)
        if verdict is not Verdict.UNKNOWN or actor is None or loop.time() >= until:
            return verdict
        await asyncio.sleep(PAUSE_S)


async def _look(actor: ActorHandle[Any] | None, endpoint: EndpointInfo) -> Verdict:
    if process_gone(endpoint):
        return Verdict.DIED
    pinged = Verdict.UNKNOWN if actor is None else await _ping(actor, endpoint)
    if pinged is Verdict.UNKNOWN and (process_gone(endpoint) or await asyncio.to_thread(node_gone, endpoint.node)):
        return Verdict.DIED
    return pinged


async def _ping(actor: ActorHandle[Any], endpoint: EndpointInfo) -> Verdict:
    """A fresh call: an actor that answers as another incarnation has replaced this one."""
    try:
        answer = await asyncio.wait_for(actor.ping.remote(), PING_S)
    except ActorDiedError:
        return Verdict.DIED
    except (RayActorError, asyncio.TimeoutError):
        return Verdict.UNKNOWN
    return Verdict.LIVES if answer == endpoint.incarnation else Verdict.DIED


def process_gone(endpoint: EndpointInfo) -> bool:
    """True only for a process of this host that is dead; False also when nobody here can know."""
    if endpoint.host != HostId.here():
        return False
    try:
        state = Path(f"/proc/{endpoint.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # dead, and not yet reaped by its parent


def node_gone(node: str) -> bool:
    """Whether a Ray node is known to be dead. Asks Ray, so it may block; False for a node that Ray does not list.

    Ray itself needs several missed health checks. A raylet that refuses a connection is dead before that: none comes
    back under its node id, and its workers end with it.
    """
    for row in ray.nodes():  # type: ignore[no-untyped-call]
        if row["NodeID"] == node:
            return not row["Alive"] or _refuses(row["NodeManagerAddress"], row["NodeManagerPort"])
    return False


def _refuses(address: str, port: int) -> bool:
    """Whether that host lives and nothing listens there; a host that does not answer proves nothing."""
    try:
        socket.create_connection((address, port), CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
