"""NIXL's write of 64 KiB in four pieces between two processes on one GPU, to compare the push of the same with."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import torch

from ray_kvfabric.bench.worker import Spawned

PIECES, PIECE_NBYTES, SPACING = 4, 16 << 10, 1 << 20
PATIENCE_S = 10.0


def _agent(name: str) -> tuple[Any, Any, Any]:
    """(agent, the memory it registered, descriptors of the pieces)."""
    agent = import_module("nixl._api").nixl_agent(name)
    memory = torch.zeros(PIECES * SPACING, dtype=torch.uint8, device="cuda:0")
    agent.register_memory(memory)
    pieces = [memory[index * SPACING :][:PIECE_NBYTES] for index in range(PIECES)]
    return agent, memory, agent.get_xfer_descs(pieces)


class NixlTarget:
    def __init__(self) -> None:
        self._agent, self._memory, self._pieces = _agent("target")

    def introduce(self) -> tuple[bytes, bytes]:
        return self._agent.get_agent_metadata(), self._agent.get_serialized_descs(self._pieces)

    def first_byte(self) -> int:
        return int(self._memory[0])

    def close(self) -> None:
        """The process ends."""


def measure(reps: int) -> list[int]:
    """Nanoseconds of each write, from its posting until it is done; the handle is made once."""
    agent, memory, pieces = _agent("source")
    memory.fill_(7)
    torch.cuda.synchronize()
    with Spawned("nixl target", NixlTarget) as target:
        metadata, there = target.call("introduce")
        name = agent.add_remote_agent(metadata)
        handle = agent.initialize_xfer("WRITE", pieces, agent.deserialize_descs(there), name)
        samples = [_write(agent, handle) for _ in range(reps)]
        agent.release_xfer_handle(handle)
        if target.call("first_byte") != 7:
            raise AssertionError("NIXL's bytes did not arrive")
    return samples


def _write(agent: Any, handle: Any) -> int:
    start = time.perf_counter_ns()
    state = agent.transfer(handle)
    while state not in ("DONE", "ERR"):
        if time.perf_counter_ns() - start > PATIENCE_S * 1e9:
            raise TimeoutError(f"NIXL's write is {state} after {PATIENCE_S:g} s")
        state = agent.check_xfer_state(handle)
    if state == "ERR":
        raise RuntimeError("NIXL's write failed")
    return time.perf_counter_ns() - start
