"""Doctor's look at accelerators, and the trial of each transport that moves device memory."""

from __future__ import annotations

import glob
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from ray_kvfabric.actors.chip import describe_chip
from ray_kvfabric.bench.worker import Spawned
from ray_kvfabric.cli.device_end import End, Look, Seen
from ray_kvfabric.cli.findings import Finding
from ray_kvfabric.errors import FabricError
from ray_kvfabric.transport.base import Transport

_SOURCE_ID, _TARGET_ID = 1, 2
_NODES = {"npu": "/dev/davinci[0-9]*", "cuda": "/dev/nvidia[0-9]*"}
_TWO_NPUS = ("hccl",)  # makes one rank of a device


def look_at_devices() -> Seen:
    """In a child, where something here hints at a device: importing torch takes seconds."""
    if find_spec("torch") is None or not (find_spec("torch_npu") or any(map(_nodes, _NODES))):
        return Seen()
    try:
        with Spawned("doctor-look", Look) as child:
            seen: Seen = child.call("seen")
            return seen
    except (FabricError, OSError) as error:
        return Seen(error=str(error))


def _nodes(kind: str) -> int:
    return len(glob.glob(_NODES[kind]))


def check_devices(seen: Seen) -> list[Finding]:
    return [_accelerator("NPU", "npu", seen), _chip(seen), _accelerator("CUDA", "cuda", seen)]


def _accelerator(name: str, kind: str, seen: Seen) -> Finding:
    nodes = f"{_nodes(kind)} of {_NODES[kind].partition('[')[0]}*"
    if seen.error is not None:
        return Finding("devices", name, "note", f"{nodes}; torch cannot be asked: {seen.error}")
    if seen.kind == kind:
        return Finding("devices", name, "ok", f"{nodes}; {seen.versions} sees {len(seen.numbers)} x {seen.chip}")
    if kind == "npu" and not find_spec("torch_npu"):
        return Finding("devices", name, "ok", f"{nodes}; torch_npu is not installed")
    return Finding("devices", name, "ok", f"{nodes}; {seen.versions or 'torch was not asked'}: none seen")


def _chip(seen: Seen) -> Finding:
    """A note where the documentation of push_blocks does not vouch for it."""
    if seen.chip is None or seen.kind == "cuda":
        return Finding("devices", "chip", "ok", "none known to CANN here")
    chip = describe_chip(seen.chip)
    return Finding("devices", "chip", "ok" if chip.is_supported else "note", str(chip))


class DevicePair:
    """Two processes, pinned to two devices, or to the one there is. Started at first need, again after a failure."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self._ends: list[Spawned] = []
        self._refusal: str | None = None  # of the devices, whatever is to be tried on them

    @property
    def numbers(self) -> tuple[str, str]:
        return self.seen.numbers[0], self.seen.numbers[:2][-1]

    def try_push(self, transport: str) -> str | None:
        """Why a push of a few blocks did not arrive; None when every byte did."""
        if self._refusal is None and not self._ends:
            self._refusal = self._start()
        if self._refusal is not None:
            return self._refusal
        source, target = self._ends
        try:
            _, route = _both("open", self._ends, transport)
            source.call("push", route)
            wrong: str | None = target.call("first_wrong")
        except (FabricError, OSError) as error:
            self.close()
            return _first_line(error)
        return wrong

    def _start(self) -> str | None:
        """Why the devices do not open; None when they did."""
        pipes = multiprocessing.get_context("spawn").Pipe()
        for cluster_id, number, pipe in zip((_SOURCE_ID, _TARGET_ID), self.numbers, pipes, strict=True):
            self._ends.append(Spawned(f"doctor-{cluster_id}", End, cluster_id, self.seen.kind, number, pipe))
        for pipe in pipes:  # theirs only from now on, so that each notices the other's death
            pipe.close()
        try:
            _both("open_device", self._ends)
        except (FabricError, OSError) as error:
            self.close()
            return f"the device does not open: {_first_line(error)}"
        return None

    def close(self) -> None:
        """The source first: it tells the target what it unmaps."""
        while self._ends:
            self._ends.pop(0).close()

    def __enter__(self) -> DevicePair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _both(method: str, ends: list[Spawned], *arguments: object) -> list[Any]:
    """At once: most of the time goes into the import of torch."""
    with ThreadPoolExecutor(len(ends)) as threads:
        return list(threads.map(lambda end: end.call(method, *arguments), ends))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def check_device_transport(transport: Transport, pair: DevicePair) -> Finding:
    """Never missing: a machine without a device needs none of them."""
    reason = transport.missing()
    if reason is not None:
        return _note(transport, f"not available: {reason}")
    reason = _untried(transport.name, pair.seen)
    if reason is not None:
        return _note(transport, f"installed; not tried: {reason}")
    reason = pair.try_push(transport.name)
    if reason is not None:
        return _note(transport, f"not available: {reason}")
    return Finding("transports", transport.name, "ok", f"works: {_ways(pair)}")


def _note(transport: Transport, text: str) -> Finding:
    return Finding("transports", transport.name, "note", text)


def _untried(name: str, seen: Seen) -> str | None:
    if seen.kind is None:
        return "no device was found" if seen.error is None else f"torch cannot be asked: {seen.error}"
    if name in _TWO_NPUS and (seen.kind != "npu" or len(seen.numbers) < 2):
        return f"it needs two NPUs, and {seen.kind} {', '.join(seen.numbers)} is all there is"
    return None


def _ways(pair: DevicePair) -> str:
    first, second = pair.numbers
    if first == second:
        return f"two processes on {pair.seen.kind} {first}; between devices it was not tried"
    return f"from {pair.seen.kind} {first} to {second}"
