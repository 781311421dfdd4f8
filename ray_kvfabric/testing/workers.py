"""The conformance suite between two Ray actors: the source's actor runs the cases, the target's is commanded by it.

    class of a case   TransportConformance, in the source's process
    source            PeerWorker.peer, an Endpoint over the worker's own CacheManager
    target            RemoteTarget, which calls the other worker
A test file for a device's transport is a PinnedPair and a parametrization over `cases()` and `PLACES`.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from ray_kvfabric.actors.endpoint import Seat
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.cache.types import Placement
from ray_kvfabric.config import EndpointSettings, FabricConfig, WorkerGroup
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import Receipt
from ray_kvfabric.testing.conformance import PATIENCE_S, SOURCE_ID, TARGET_ID, Pair, TransportConformance
from ray_kvfabric.testing.grant_conformance import GrantConformance
from ray_kvfabric.testing.peer import Endpoint

CASE_S = 120.0  # for one case, however slow the machine
_DIRECTORY_CALLS = {"announce", "publish", "withdraw", "leave", "resolve", "endpoint", "endpoint_at"}


class Case(NamedTuple):
    """One test of the suite."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.name.removeprefix("test_"), *(str(each) for each in self.arguments.values())])


class Places(NamedTuple):
    """Where the caches of source and target lie, and whether the target's are the fabric's own memory."""

    source: str  # HOST or DEVICE
    target: str
    allocates: bool

    @property
    def refused_rows(self) -> frozenset[str]:
        """The ways that lead from HOST to DEVICE."""
        ways = {("HOST", "DEVICE"): "push", ("DEVICE", "HOST"): "pull"}
        return frozenset({way for ends, way in ways.items() if ends == (self.source, self.target)})


PLACES = {
    "device to device": Places("DEVICE", "DEVICE", True),
    "device to a torch tensor": Places("DEVICE", "DEVICE", False),
    "host to device": Places("HOST", "DEVICE", True),
    "device to host": Places("DEVICE", "HOST", True),
}


class Setup(NamedTuple):
    """What a case is run with."""

    transport: str
    places: Places
    grain: int


def cases() -> list[Case]:
    """Every test of the suite, with every set of its parameters."""
    return [
        Case(name, arguments)
        for kind in (TransportConformance, GrantConformance)
        for name, function in vars(kind).items()
        if name.startswith("test_")
        for arguments in _parameters(function)
    ]


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    if not marks:
        yield {}
    for mark in marks:
        names, rows = mark.args
        for row in rows:
            yield {names: row} if isinstance(names, str) else dict(zip(names, row, strict=True))


class PeerWorker(CacheWorker):
    """A worker whose endpoint a test commands."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self.peer = Endpoint(self.manager)
        self.calls: Counter[str] = Counter()
        self._count_directory_calls()

    def _count_directory_calls(self) -> None:
        client: Any = self.manager._directory.client  # type: ignore[attr-defined]  # a port has no such thing
        call = client.call

        def counted(method: str, *arguments: Any, **options: Any) -> Any:
            self.calls[method] += method in _DIRECTORY_CALLS
            return call(method, *arguments, **options)

        client.call = counted

    def command(self, name: str, *arguments: Any) -> Any:
        """A method of the peer."""
        return getattr(self.peer, name)(*arguments)

    def place(self, placement: str) -> None:
        """Where the caches that come now are to lie."""
        self.peer.placement = Placement[placement]

    def run_case(self, case: Case, setup: Setup, target: ActorHandle[Any], target_pid: int) -> None:
        """Raises what the test raises. What it has made here and there is gone afterwards, if there is still there."""
        self.place(setup.places.source)
        there = RemoteTarget(target, target_pid)
        there.place(setup.places.target)
        places = setup.places
        pair = Pair(setup.transport, self.peer, there, self, places.allocates, setup.grain, places.refused_rows)
        try:
            getattr(TransportConformance(), case.name)(pair, **case.arguments)
        finally:
            self.clear()
            there.clear()

    def clear(self) -> None:
        """Ends every cache."""
        for cache in self.manager.caches():
            self.manager.unregister_cache(cache.cache_id)

    def pid(self) -> int:
        return os.getpid()


class PinnedPair:
    """Two workers of a fabric of their own, each with `resources`, that know one transport; a dead one is replaced."""

    def __init__(self, transport: str, resources: dict[str, float], grain: int, device: str | None = None) -> None:
        self.transport = transport
        self._resources = resources
        self._grain = grain
        self._settings = EndpointSettings.model_validate(
            {
                "transports": (transport,),
                "device": device,
                "sync_kv_timeout_ms": 30_000,
                "mem_pool": {"memory_size": "512MiB"},
                "device_pool": {"memory_size": "512MiB"},
                "staging_size": "4MiB",
            }
        )
        self._fabric = Fabric.connect(config=FabricConfig(name=f"pinned-{uuid.uuid4().hex[:8]}"))
        self._source = self._start(SOURCE_ID)
        self._target = self._start(TARGET_ID)

    def _start(self, cluster_id: int) -> ActorHandle[Any]:
        group = WorkerGroup(
            name="pinned",
            first_cluster_id=cluster_id,
            num_cpus=0,
            resources=self._resources,
            endpoint=self._settings,
        )
        [worker] = self._fabric.add_workers(group, worker_class=PeerWorker)
        return worker

    def run(self, case: Case, places: Places) -> None:
        """Raises what the test raises."""
        pid = ray.get(self._target.pid.remote(), timeout=60)
        setup = Setup(self.transport, places, self._grain)
        try:
            ray.get(self._source.run_case.remote(case, setup, self._target, pid), timeout=CASE_S)
        finally:
            if not self._target_lives():
                self._target = self._start(TARGET_ID)

    def _target_lives(self) -> bool:
        """A case may have killed it."""
        try:
            ray.get(self._target.ping.remote(), timeout=PATIENCE_S)
        except RayActorError:
            return False
        return True

    def close(self) -> None:
        self._fabric.close()


class RemoteTarget:
    """The commands of an endpoint in another actor."""

    dies_alone = True

    def __init__(self, worker: ActorHandle[Any], pid: int) -> None:
        self._worker = worker
        self._pid = pid
        self._is_dead = False

    def _call(self, method: str, *arguments: Any) -> Any:
        return ray.get(getattr(self._worker, method).remote(*arguments), timeout=2 * PATIENCE_S)

    def allocate(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        return int(self._call("command", "allocate", num_tensors, shape, data_type, model_id))

    def register(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        return int(self._call("command", "register", num_tensors, shape, data_type, model_id))

    def rows(
        self, num_tensors: int, shape: tuple[int, ...], data_type: str, req_ids: list[int], allocates: bool
    ) -> int:
        return int(self._call("command", "rows", num_tensors, shape, data_type, req_ids, allocates))

    def num_blocks(self, cache_id: int) -> int:
        return int(self._call("command", "num_blocks", cache_id))

    def addresses(self, cache_id: int) -> list[int]:
        return list(self._call("command", "addresses", cache_id))

    def deallocate(self, cache_id: int) -> None:
        self._call("command", "deallocate", cache_id)

    def fill(self, cache_id: int, value: int) -> None:
        self._call("command", "fill", cache_id, value)

    def read(self, cache_id: int) -> list[bytes]:
        return list(self._call("command", "read", cache_id))

    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        receipt: Receipt = self._call("command", "wait_received", transfer_id, timeout_s)
        return receipt

    def grant(self, cache_id: int, blocks: list[int], options: dict[str, Any]) -> Grant:
        grant: Grant = self._call("command", "grant", cache_id, blocks, options)
        return grant

    def wait_granted(self, grant_id: str, timeout_s: float) -> GrantReceipt:
        receipt: GrantReceipt = self._call("command", "wait_granted", grant_id, timeout_s)
        return receipt

    def revoke_grant(self, grant_id: str) -> None:
        self._call("command", "revoke_grant", grant_id)

    def place(self, placement: str) -> None:
        self._call("place", placement)

    def clear(self) -> None:
        if not self._is_dead:
            self._call("clear")

    def kill(self) -> None:
        """SIGKILL, and wait until Ray knows."""
        os.kill(self._pid, signal.SIGKILL)
        self._is_dead = True
        try:
            self._call("ping")
        except RayActorError:
            return
        raise AssertionError(f"process {self._pid} answers after its death")

    def close(self) -> None:
        """The worker lives on."""
