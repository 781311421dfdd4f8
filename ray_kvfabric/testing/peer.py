"""An endpoint for tests, in this process (LocalPeer) or in a child of its own (ChildPeer), with one surface."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ray_kvfabric.cache.keys import BlocksCacheKey, CacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt
from ray_kvfabric.testing.contents import read_tensor, write_tensor
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import EventLog, FaultPlan, FaultyTransport, Logged, PauseHook
from ray_kvfabric.testing.occasion import go_on
from ray_kvfabric.transport.base import Transport

PATIENCE_S = 60.0


class Endpoint:
    """A CacheManager and the commands that a test gives it. Its caches are of one placement."""

    dies_alone = False  # whether it lives in a process that a test may kill

    def __init__(self, manager: CacheManager, placement: Placement = Placement.HOST) -> None:
        self.manager = manager
        self.placement = placement

    @property
    def cluster_id(self) -> int:
        return self.manager.endpoint.cluster_id

    def allocate(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        desc = CacheDesc(num_tensors, shape, DataType[data_type], self.placement)
        return self.manager.allocate_blocks_cache(desc, _key(model_id)).cache_id

    def register(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        """A cache over numpy arrays, or device tensors, which the fabric did not allocate."""
        desc = CacheDesc(num_tensors, shape, DataType[data_type], self.placement)
        return self.manager.register_blocks_cache(desc, self._memory(desc), _key(model_id)).cache_id

    def rows(
        self, num_tensors: int, shape: tuple[int, ...], data_type: str, req_ids: list[int], allocates: bool
    ) -> int:
        """A continuous cache; `req_ids[i]` names row i."""
        desc = CacheDesc(num_tensors, shape, DataType[data_type], self.placement)
        keys = [CacheKey(0, req_id) for req_id in req_ids]
        if allocates:
            return self.manager.allocate_cache(desc, keys).cache_id
        return self.manager.register_cache(desc, self._memory(desc), keys).cache_id

    def _memory(self, desc: CacheDesc) -> list[object]:
        if self.placement is Placement.HOST:
            return [np.zeros(desc.size, np.uint8) for _ in range(desc.num_tensors)]
        torch = import_module("torch")
        device = torch.accelerator.current_accelerator()
        return [torch.empty(desc.size, dtype=torch.uint8, device=device) for _ in range(desc.num_tensors)]

    def num_blocks(self, cache_id: int) -> int:
        return self.manager.cache(cache_id).cache_desc.shape[0]

    def addresses(self, cache_id: int) -> list[int]:
        return self.manager.cache(cache_id).tensor_addrs

    def deallocate(self, cache_id: int) -> None:
        self.manager.unregister_cache(cache_id)

    def fill(self, cache_id: int, value: int) -> None:
        cache = self.manager.cache(cache_id)
        for tensor in range(cache.cache_desc.num_tensors):
            write_tensor(cache, tensor, np.full(cache.cache_desc.size, value, np.uint8))

    def read(self, cache_id: int) -> list[bytes]:
        """Every tensor's bytes."""
        cache = self.manager.cache(cache_id)
        return [read_tensor(cache, tensor).tobytes() for tensor in range(cache.cache_desc.num_tensors)]

    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        return self.manager.wait_received(transfer_id, timeout_s)

    def grant(self, cache_id: int, blocks: list[int], options: dict[str, Any]) -> Grant:
        return self.manager.grant_blocks(self.manager.cache(cache_id), blocks, **options).grant

    def wait_granted(self, grant_id: str, timeout_s: float) -> GrantReceipt:
        return self.manager.issued(grant_id).wait(timeout_s)

    def revoke_grant(self, grant_id: str) -> None:
        self.manager.issued(grant_id).revoke()

    def status(self) -> dict[str, object]:
        return self.manager.status()

    def close(self) -> None:
        self.manager.close()


class LocalPeer(Endpoint):
    """An endpoint of this process, in a directory that is a dictionary.

    With `faults` its transports are wrapped: `log` says what came of it, `pause` is called where the plan says so.
    """

    def __init__(
        self,
        cluster_id: int,
        directory: DictDirectory,
        settings: EndpointSettings | None = None,
        *,
        faults: FaultPlan | None = None,
        pause: PauseHook = go_on,
    ) -> None:
        self.directory = directory
        self.log = EventLog()
        self._faulty: list[FaultyTransport] = []

        def wrap(inner: Transport) -> Transport:
            self._faulty.append(FaultyTransport(inner, faults or FaultPlan(), log=self.log, pause=pause))
            return self._faulty[-1]

        super().__init__(
            CacheManager(
                cluster_id, directory=directory, settings=settings, wrap_transport=None if faults is None else wrap
            )
        )

    def logged(self) -> list[Logged]:
        """What became of its pushes and pulls since this was asked before."""
        return self.log.take()

    def deliver_late(self) -> None:
        """Makes the duplicates of its pushes now."""
        for transport in self._faulty:
            transport.deliver_late()

    def learn(self, endpoints: dict[int, EndpointInfo], held: dict[int, dict[int, CacheInfo]]) -> None:
        """Who else there is, and what they hold: in a child the directory is its own."""
        self.directory.endpoints.update(endpoints)
        self.directory.held.update(held)


class ChildPeer:
    """A LocalPeer in a child process; what it announces is copied into the parent's directory after each command.

    `kind` is the class that the child makes, `faults` the plan of its transports.
    """

    dies_alone = True

    def __init__(
        self,
        cluster_id: int,
        directory: DictDirectory,
        settings: EndpointSettings | None = None,
        *,
        kind: type[LocalPeer] = LocalPeer,
        faults: FaultPlan | None = None,
    ) -> None:
        self.cluster_id = cluster_id
        self.directory = directory
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, cluster_id, settings, faults), daemon=True)
        self._process.start()
        theirs.close()
        self._mirror(self._receive())

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def allocate(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        return int(self._call("allocate", num_tensors, shape, data_type, model_id))

    def register(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int:
        return int(self._call("register", num_tensors, shape, data_type, model_id))

    def rows(
        self, num_tensors: int, shape: tuple[int, ...], data_type: str, req_ids: list[int], allocates: bool
    ) -> int:
        return int(self._call("rows", num_tensors, shape, data_type, req_ids, allocates))

    def num_blocks(self, cache_id: int) -> int:
        return int(self._call("num_blocks", cache_id))

    def addresses(self, cache_id: int) -> list[int]:
        return list(self._call("addresses", cache_id))

    def deallocate(self, cache_id: int) -> None:
        self._call("deallocate", cache_id)

    def fill(self, cache_id: int, value: int) -> None:
        self._call("fill", cache_id, value)

    def read(self, cache_id: int) -> list[bytes]:
        return list(self._call("read", cache_id))

    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt:
        receipt: Receipt = self._call("wait_received", transfer_id, timeout_s)
        return receipt

    def grant(self, cache_id: int, blocks: list[int], options: dict[str, Any]) -> Grant:
        grant: Grant = self._call("grant", cache_id, blocks, options)
        return grant

    def wait_granted(self, grant_id: str, timeout_s: float) -> GrantReceipt:
        receipt: GrantReceipt = self._call("wait_granted", grant_id, timeout_s)
        return receipt

    def revoke_grant(self, grant_id: str) -> None:
        self._call("revoke_grant", grant_id)

    def status(self) -> dict[str, object]:
        return dict(self._call("status"))

    def call(self, command: str, *arguments: object) -> Any:
        """Any method of `kind`, for the commands of a test's own. Raises EOFError when the child dies in it."""
        return self._call(command, *arguments)

    def introduce(self) -> None:
        """Lets the child know what the parent's directory says of the others."""
        self._call("learn", dict(self.directory.endpoints), dict(self.directory.held))

    def stop(self) -> None:
        """SIGSTOP: stopped, not dead."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.join(PATIENCE_S)

    def close(self) -> None:
        if self._process.is_alive():
            with suppress(OSError):  # it may be dying
                self._pipe.send(("close", ()))
            self._process.join(PATIENCE_S)
        self._process.kill()
        self._process.join(PATIENCE_S)
        self._process.close()
        self._pipe.close()

    def _call(self, command: str, *arguments: object) -> Any:
        self._pipe.send((command, arguments))
        outcome, endpoints, held = self._receive()
        self._mirror((None, endpoints, held))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _receive(self) -> Any:
        if not self._pipe.poll(PATIENCE_S):
            raise TimeoutError(f"peer {self.cluster_id} does not answer")
        return self._pipe.recv()

    def _mirror(self, answer: Any) -> None:
        """The child speaks for itself only."""
        _, endpoints, held = answer
        for mine, theirs in ((self.directory.endpoints, endpoints), (self.directory.held, held)):
            mine.update({cluster_id: each for cluster_id, each in theirs.items() if cluster_id == self.cluster_id})


def _serve(
    pipe: Connection,
    kind: type[LocalPeer],
    cluster_id: int,
    settings: EndpointSettings | None,
    faults: FaultPlan | None,
) -> None:
    directory = DictDirectory()
    peer = kind(cluster_id, directory, settings, faults=faults)
    pipe.send((None, directory.endpoints, directory.held))
    while True:
        command, arguments = pipe.recv()
        outcome: object
        try:
            outcome = getattr(peer, command)(*arguments)
        except Exception as error:
            outcome = error
        if command == "close":
            return
        pipe.send((outcome, directory.endpoints, directory.held))


def _key(model_id: int | None) -> BlocksCacheKey | None:
    return None if model_id is None else BlocksCacheKey(0, model_id)
