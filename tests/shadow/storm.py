"""Storm: writers push as fast as they can, and the receiver takes its blocks back meanwhile.

Nobody pauses anybody: what the random run shows at five points is shown here at any moment of a copy. The next grant,
which nobody uses, gets the place in the page that the revoked one had: a late word of a writer would be seen in it.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np

from ray_kvfabric import LLMException
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.grant import Grant
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.peer import ChildPeer, LocalPeer
from tests.shadow.ends import Bytes, Commanded

TENSORS, BLOCKS, WRITERS = 2, 8, 3
RECEIVER_ID = 100
NBYTES = {"loopback": 1 << 17, "shared_memory": 1 << 12}  # of a block: copies worth interrupting; many pushes


class Writer(LocalPeer):
    """Brings the same blocks again and again, until it is refused."""

    def set_up(self, nbytes: int) -> None:
        self._cache = self.manager.cache(self.allocate(TENSORS, (BLOCKS, nbytes), "DT_INT8", None))

    def push_on(self, grant: Grant, index: int) -> tuple[int, str]:
        """How many pushes landed, and the class of the refusal."""
        pushes = 0
        try:
            while True:
                self.manager.push_granted(grant, self._cache, [0, 1], at=2 * index, seal=False, writer=index)
                pushes += 1
        except LLMException as error:
            return pushes, type(error).__name__


class Storm:
    """`shared_memory` has its writers in children, so that any of their instructions may be the last for a while."""

    def __init__(self, transport: str, seed: int) -> None:
        self.what = f"storm over {transport}, SEED={seed}"
        self._rng = random.Random(seed)
        settings = EndpointSettings.model_validate({"transports": (transport,), "sync_kv_timeout_ms": 30_000})
        directory, nbytes = DictDirectory(), NBYTES[transport]
        self._receiver = LocalPeer(RECEIVER_ID, directory, settings)
        self._cache = self._receiver.manager.cache(self._receiver.allocate(TENSORS, (BLOCKS, nbytes), "DT_INT8", None))
        self._views: list[Bytes] = [self._cache.numpy(tensor).view(np.uint8) for tensor in range(TENSORS)]
        self._writers: list[Any] = [
            Writer(index, directory, settings)
            if transport == "loopback"
            else Commanded(ChildPeer(index, directory, settings, kind=Writer))
            for index in range(WRITERS)
        ]
        for writer in self._writers:
            writer.set_up(nbytes)
            writer.learn(dict(directory.endpoints), dict(directory.held))
        self.pushes = 0
        self._refusals: list[str] = []

    def go(self, rounds: int) -> None:
        for number in range(rounds):
            value = 1 + number % 255
            with self._grant() as issued:
                threads = [self._start(writer, issued, index) for index, writer in enumerate(self._writers)]
                time.sleep(self._rng.random() * 0.002)
            with self._grant() as unused:
                for view in self._views:
                    view[:] = value
                for thread in threads:
                    thread.join()
                refusals, self._refusals = self._refusals, []
                assert refusals == ["GrantRevoked"] * WRITERS, f"{self.what}, round {number}: {refusals}"
                assert not unused.progress, f"{self.what}, round {number}: a writer told it of another grant's blocks"
            is_left = all((view == value).all() for view in self._views)
            assert is_left, f"{self.what}, round {number}: a block was written after the revoke"

    def _grant(self) -> IssuedGrant:
        return self._receiver.manager.grant_blocks(self._cache, list(range(2 * WRITERS)), writers=WRITERS)

    def _start(self, writer: Any, issued: IssuedGrant, index: int) -> threading.Thread:
        thread = threading.Thread(target=self._push_on, args=(writer, issued.grant, index))
        thread.start()
        return thread

    def _push_on(self, writer: Any, grant: Grant, index: int) -> None:
        pushes, refusal = writer.push_on(grant, index)
        self.pushes += pushes
        self._refusals.append(refusal)

    def close(self) -> None:
        for each in [*self._writers, self._receiver]:
            each.close()


def storm(transport: str, seed: int, rounds: int) -> int:
    """How many pushes landed."""
    blowing = Storm(transport, seed)
    try:
        blowing.go(rounds)
    finally:
        blowing.close()
    return blowing.pushes
