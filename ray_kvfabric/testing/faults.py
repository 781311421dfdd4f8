"""Seeded faults by wrapping: no line of the product knows of them.

    plan = FaultPlan(seed=7, rates={FaultKind.FLIP: 0.01})                        what goes wrong
    CacheManager(1, ..., wrap_transport=lambda inner: FaultyTransport(inner, plan))   a writer's transports
    CacheManager(1, directory=FaultyDirectory(inner, plan), peers=FaultyPeers(inner, plan))
The same seed and the same calls give the same `log`.
"""

from __future__ import annotations

from ray_kvfabric.testing.fault_plan import (
    Event,
    EventLog,
    Fault,
    FaultKind,
    FaultPlan,
    Logged,
    Point,
    ray_rpc_failure,
)
from ray_kvfabric.testing.faulty_peers import FaultyDirectory, FaultyPeers
from ray_kvfabric.testing.faulty_transport import FaultyTransport
from ray_kvfabric.testing.occasion import Halt, PauseHook

__all__ = [
    "Event",
    "EventLog",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FaultyDirectory",
    "FaultyPeers",
    "FaultyTransport",
    "Halt",
    "Logged",
    "PauseHook",
    "Point",
    "ray_rpc_failure",
]
