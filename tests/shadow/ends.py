"""The two endpoints of the shadow tests. Each lives here or in a child; outcomes travel as (class, text)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric import Cache, LLMException
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.endpoint.transfers import Transfer
from ray_kvfabric.grant import Grant
from ray_kvfabric.testing.peer import ChildPeer, LocalPeer
from tests.shadow.requests import BLOCKS, NBYTES, PER_LAYER, TENSORS, Request, Unit

Bytes = NDArray[np.uint8]
Outcome = tuple[str, str]
PATIENCE_S = 20.0
MODEL_ID = 5


def random_bytes(seed: int, *shape: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def told(call: Callable[[], object]) -> Outcome:
    """The class of what a call returns or raises, and a text."""
    try:
        return type(call()).__name__, ""
    except LLMException as error:
        return type(error).__name__, str(error)


def settled(call: Callable[[], object]) -> Outcome:
    """Of a wait without patience: again, while another thread is just telling the outcome."""
    outcome = told(call)
    give_up = time.monotonic() + PATIENCE_S
    while "another thread is still ending" in outcome[1] and time.monotonic() < give_up:
        outcome = told(call)
    return outcome


@dataclass
class Running:
    """A call in a thread of its own."""

    thread: threading.Thread
    outcome: Outcome | None = None

    @classmethod
    def start(cls, call: Callable[[], object]) -> Running:
        self = cls(threading.Thread(daemon=True))
        self.thread.run = lambda: setattr(self, "outcome", told(call))  # type: ignore[method-assign]
        self.thread.start()
        return self

    def join(self) -> Outcome:
        self.thread.join(PATIENCE_S)
        assert self.outcome is not None, "a call did not end"
        return self.outcome


class _Filled(LocalPeer):
    """Has caches whose memory can be seen as arrays."""

    def _make(self, allocates: bool, seed: int, model_id: int | None) -> tuple[Cache, list[Bytes]]:
        make = self.allocate if allocates else self.register
        cache = self.manager.cache(make(TENSORS, (BLOCKS, NBYTES), "DT_INT8", model_id))
        views = [cache.numpy(tensor).view(np.uint8) for tensor in range(TENSORS)]
        for view, content in zip(views, random_bytes(seed, TENSORS, BLOCKS, NBYTES), strict=True):
            view[:] = content
        return cache, views


class Receiver(_Filled):
    """Two caches: one whose blocks are granted and pushed to, one that nobody was given."""

    def set_up(self, allocates: bool, seed: int) -> None:
        self._cache, self._views = self._make(allocates, seed, MODEL_ID)
        _, self._other = self._make(allocates, seed + 1, MODEL_ID + 1)
        self._issued: dict[int, IssuedGrant] = {}
        self._running: dict[tuple[str, int], Running] = {}

    def memory(self) -> Bytes:
        """[cache, tensor, block, byte]"""
        return np.stack([np.stack(self._views), np.stack(self._other)])

    def fill_blocks(self, blocks: tuple[int, ...], content: Bytes) -> None:
        """`content` is [tensor, position, byte]."""
        for tensor, view in enumerate(self._views):
            view[list(blocks)] = content[tensor]

    def give(self, name: int, request: Request, sources: tuple[int, ...], verify: str | None) -> Grant:
        issued = self._issued[name] = self.manager.grant_blocks(
            self._cache, list(request.blocks), request_id=str(name), ttl_s=request.ttl_s,
            writers=len(request.senders), sources=sources, layers=request.layers, tensor_num_per_layer=PER_LAYER,
            verify=verify,
        )  # fmt: skip
        return issued.grant

    def wait(self, name: int, timeout_s: float) -> Outcome:
        return settled(lambda: self._issued[name].wait(timeout_s))

    def wait_layer(self, name: int, layer: int) -> Outcome:
        return settled(lambda: self._issued[name].wait_layer(layer, 0.0))

    def start_wait(self, name: int) -> None:
        self._running["wait", name] = Running.start(self._issued[name].wait)

    def end_wait(self, name: int) -> Outcome:
        return self._running.pop(("wait", name)).join()

    def start_revoke(self, name: int, blocks: tuple[int, ...], content: Bytes | None) -> None:
        """Returns with the fence up. Who has `content` fills the blocks the moment that `revoke` has returned."""
        issued = self._issued[name]

        def revoke() -> None:
            issued.revoke(PATIENCE_S)
            if content is not None:
                self.fill_blocks(blocks, content)

        self._running["revoke", name] = Running.start(revoke)
        give_up = time.monotonic() + PATIENCE_S
        while issued.state == "standing" and time.monotonic() < give_up:
            time.sleep(0.00002)

    def is_revoked(self, name: int) -> bool:
        return self._running["revoke", name].outcome is not None

    def end_revoke(self, name: int) -> Outcome:
        return self._running.pop(("revoke", name)).join()

    def forget(self, name: int) -> dict[str, Any]:
        """What the book still holds, now that the grant is over."""
        del self._issued[name]
        return self.manager._grants.describe()


class Sender(_Filled):
    """One cache, whose content nobody changes."""

    def set_up(self, allocates: bool, seed: int) -> None:
        self.cache, _ = self._make(allocates, seed, None)

    def start(self, grant: Grant, unit: Unit, timeout_s: float | None) -> Transfer:
        return self.manager.start_push_granted(
            grant, self.cache, list(unit.blocks), unit.layers, unit.layers, PER_LAYER, at=unit.at, seal=unit.seals,
            writer=unit.writer, timeout_s=timeout_s,
        )  # fmt: skip

    def push(self, grant: Grant, unit: Unit, timeout_s: float | None = None) -> Outcome:
        return told(
            lambda: self.manager.push_granted(
                grant, self.cache, list(unit.blocks), unit.layers, unit.layers, PER_LAYER, at=unit.at, seal=unit.seals,
                writer=unit.writer, timeout_s=timeout_s,
            )
        )  # fmt: skip


class Commanded:
    """A child's methods as if they were here."""

    def __init__(self, child: ChildPeer) -> None:
        self._child = child

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._child.call(name, *arguments)

    def close(self) -> None:
        self._child.close()
