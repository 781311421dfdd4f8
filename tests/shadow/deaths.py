"""A writer in a child of its own dies at a named point of its last push."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import Event, Fault, FaultKind, FaultPlan, Point
from ray_kvfabric.testing.peer import ChildPeer
from tests.shadow.ends import Outcome, Receiver, Sender, random_bytes
from tests.shadow.requests import BLOCKS, LAYERS, NBYTES, TENSORS, Action, Request, Unit

WITHIN_S = 2.0
SOURCES = (3, 1, 9)


def die_at(point: Point, transport: str, *, seals: bool = True, verify: str | None = "crc32c") -> Outcome:
    """What the receiver's wait comes to; every byte that was not granted is checked, and the blocks are used again."""
    settings = EndpointSettings.model_validate(
        {"transports": (transport,), "sync_kv_timeout_ms": 30_000, "mem_pool": {"memory_size": "16MiB"}}
    )
    directory = DictDirectory()
    plan = FaultPlan(steps={(Event.PUSH, 1): Fault(FaultKind.DIE, point)})
    receiver = Receiver(1, directory, settings)
    child = ChildPeer(2, directory, settings, kind=Sender, faults=plan)
    try:
        receiver.set_up(transport != "process_vm", 1)
        child.call("set_up", True, 2)
        child.introduce()
        return _brought(receiver, child, seals, verify)
    finally:
        child.close()
        receiver.close()


def _brought(receiver: Receiver, child: ChildPeer, seals: bool, verify: str | None) -> Outcome:
    before = receiver.memory()
    units = tuple(Unit(0, range(layer, layer + 1), 0, SOURCES, seals and layer == 1) for layer in range(LAYERS))
    request = Request((4, 11, 6), range(LAYERS), (0,), units, Action.NOTHING, None, False, False, False)
    grant = receiver.give(0, request, (2,), verify)
    assert child.call("push", grant, units[0])[0] == "Receipt"
    with contextlib.suppress(EOFError):
        child.call("push", grant, units[1])
    began = time.monotonic()
    outcome = receiver.wait(0, WITHIN_S * 5)
    assert time.monotonic() - began < WITHIN_S, outcome
    found, blocks = receiver.memory(), list(request.blocks)
    if outcome[0] == "GrantReceipt":
        assert (found[0][:, blocks] == random_bytes(2, TENSORS, BLOCKS, NBYTES)[:, list(SOURCES)]).all()
    content = random_bytes(3, TENSORS, len(blocks), NBYTES)
    receiver.fill_blocks(request.blocks, content)
    before[0][:, blocks] = content
    np.testing.assert_array_equal(receiver.memory(), before)
    assert receiver.forget(0)["blocks"] == 0
    return outcome
