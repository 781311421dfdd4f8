"""Run: random steps of one receiver and its senders, every byte of the receiver being looked at after each."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ray_kvfabric import BlocksCacheKey, LLMException
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.grant import Grant
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import FaultKind, FaultPlan, Point
from ray_kvfabric.testing.peer import ChildPeer
from ray_kvfabric.transport.base import Order
from tests.shadow.attempt import HURRY_S, Attempt
from tests.shadow.ends import MODEL_ID, Bytes, Commanded, Receiver, Sender, random_bytes
from tests.shadow.requests import (
    BLOCKS,
    LAYERS,
    NBYTES,
    PER_LAYER,
    TENSORS,
    Action,
    Request,
    Unit,
    draw_request,
)

RECEIVER_ID, CLEAN_ID, SENDERS = 100, 50, 3
RATES = {FaultKind.DUPLICATE: 0.05, FaultKind.DELAY: 0.02, FaultKind.PAUSE: 0.2}
RATES_OF_BYTES = {FaultKind.FLIP: 0.03, FaultKind.TRUNCATE: 0.03, FaultKind.DROP: 0.03}


class Clean(NamedTuple):
    """A request that nothing happens to."""

    name: int
    request: Request
    grant: Grant


class Field:
    """The endpoints and the shadow: [cache, tensor, block, byte] of the receiver, as it must be."""

    def __init__(self, transport: str, seed: int, *, digests: bool) -> None:
        self.what = f"{transport}, digests {'on' if digests else 'off'}, SEED={seed}"
        self.verify = "crc32c" if digests else None
        self.rng = random.Random(f"{self.what}")
        self.counts: Counter[str] = Counter()
        self.step = 0
        self._attempt: Attempt | None = None
        self._names = 0
        self._standing: set[int] = set()  # requests that nothing happens to
        settings = EndpointSettings.model_validate(
            {"transports": (transport,), "sync_kv_timeout_ms": 30_000, "mem_pool": {"memory_size": "16MiB"}}
        )
        directory = DictDirectory()
        allocates = transport != "process_vm"
        if transport == "loopback":
            self.receiver: Any = Receiver(RECEIVER_ID, directory, settings)
        else:
            self.receiver = Commanded(ChildPeer(RECEIVER_ID, directory, settings, kind=Receiver))
        rates = RATES | RATES_OF_BYTES if digests else RATES
        plans = [FaultPlan(seed * 10 + index, rates, max_delay_s=0.001) for index in range(SENDERS)]
        self.senders = [
            Sender(index + 1, directory, settings, faults=plan, pause=self._pause) for index, plan in enumerate(plans)
        ]
        self._clean = Sender(CLEAN_ID, directory, settings)
        self.receiver.set_up(allocates, seed)
        self.held: list[Bytes] = []
        for index, sender in enumerate([*self.senders, self._clean]):
            sender.set_up(True, seed + 10 + index)
            self.held.append(random_bytes(seed + 10 + index, TENSORS, BLOCKS, NBYTES))
        self.shadow: Bytes = self.receiver.memory()

    def close(self) -> None:
        for each in [*self.senders, self._clean, self.receiver]:
            each.close()

    def cluster_id(self, sender: int) -> int:
        return self.senders[sender].cluster_id

    # ---- for attempts ------------------------------------------------------------------------------

    def check(self, is_so: bool, otherwise: str) -> None:
        assert is_so, f"{self.what}, step {self.step}: {otherwise}"

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def fault_of(self, sender: int) -> str:
        """What hit the newest push; what it found of duplicates is counted."""
        entries = self.senders[sender].logged()
        for entry in entries:
            if entry.what == "late":
                self.count(f"duplicate {entry.outcome}")
        mine = [entry.fault for entry in entries if not entry.what]
        self.counts["pushes"] += len(mine)
        self.count(f"fault {mine[-1] if mine else ''}")
        return mine[-1] if mine else ""

    def new_content(self, count: int) -> Bytes:
        return random_bytes(self.rng.getrandbits(32), TENSORS, count, NBYTES)

    def refill(self, blocks: tuple[int, ...]) -> None:
        """Whatever was left in them: their next owner writes all of them."""
        content = self.new_content(len(blocks))
        self.receiver.fill_blocks(blocks, content)
        self.shadow[0][:, list(blocks)] = content

    def regrant(self, before: Request) -> None:
        """The same blocks for another request, brought whole by a sender that nothing happens to."""
        other = self._begin_clean(before.blocks)
        self._end_clean(other)

    def _begin_clean(self, blocks: tuple[int, ...]) -> Clean:
        """Its first layer is brought now."""
        sources = tuple(self.rng.randrange(BLOCKS) for _ in blocks)
        units = [Unit(0, range(layer, layer + 1), 0, sources, layer == LAYERS - 1) for layer in range(LAYERS)]
        request = Request(
            blocks, range(LAYERS), (SENDERS,), tuple(units), Action.NOTHING, None, False, False, False
        )  # fmt: skip
        name = self._name()
        clean = Clean(name, request, self.receiver.give(name, request, (), self.verify))
        self._standing.add(name)
        self._push_clean(clean, units[0])
        return clean

    def _end_clean(self, clean: Clean) -> None:
        for unit in clean.request.units[1:]:
            self._push_clean(clean, unit)
        outcome, text = self.receiver.wait(clean.name, 0.0)
        self.check(outcome == "GrantReceipt", f"a request that nothing happens to came to {outcome}: {text}")
        self._standing.discard(clean.name)
        self.end_grant(clean.name)

    def _push_clean(self, clean: Clean, unit: Unit) -> None:
        outcome, text = self._clean.push(clean.grant, unit)
        self.check(outcome == "Receipt", f"a push that nothing happens to came to {outcome}: {text}")
        layer = unit.layers.start
        tensors = slice(layer * PER_LAYER, (layer + 1) * PER_LAYER)
        self.shadow[0][tensors, list(clean.request.blocks)] = self.held[SENDERS][tensors, list(unit.blocks)]
        self.counts["pushes"] += 1

    def end_grant(self, name: int) -> None:
        """Nothing of it is left in the book, and everything of those that stand."""
        book = self.receiver.forget(name)
        phases = [book["standing"], book["fenced"], book["quarantined"]]
        self.check(phases == [len(self._standing), 0, 0], f"the book holds {book}, {len(self._standing)} grants stand")

    def _name(self) -> int:
        self._names += 1
        return self._names

    # ---- steps -------------------------------------------------------------------------------------

    def go(self, pushes: int) -> None:
        while self.counts["pushes"] < pushes:
            self.step += 1
            if self.rng.random() < 0.25:
                self._plain()
            else:
                self._granted()
            self._look()

    def _granted(self) -> None:
        """Sometimes beside another request, which it must not touch."""
        request = draw_request(self.rng, SENDERS)
        others = tuple(block for block in range(BLOCKS) if block not in request.blocks)
        neighbour = self._begin_clean(others[:4]) if self.rng.random() < 0.2 else None
        self._attempt = Attempt(self, self._name(), request)
        self._attempt.carry_out()
        self._attempt = None
        if neighbour is not None:
            self._end_clean(neighbour)
        self._deliver_late()

    def _pause(self, point: Point, order: Order) -> None:
        if self._attempt is not None and order.use is not None:
            self._attempt.pause(point)

    def _deliver_late(self) -> None:
        """No grant stands any more: nothing of it may be let in."""
        for index, sender in enumerate(self.senders):
            sender.deliver_late()
            for entry in sender.logged():
                self.count(f"duplicate {entry.outcome}")
                self.check(entry.outcome != "landed", f"a duplicate of sender {index} landed after the grant was over")

    def _plain(self) -> None:
        """Without a grant: what a push that landed wrote is known, and the blocks of another are filled anew."""
        index, layer = self.rng.randrange(SENDERS), self.rng.randrange(LAYERS)
        count = self.rng.randint(1, 6)
        sources = [self.rng.randrange(BLOCKS) for _ in range(count)]
        targets = self.rng.sample(range(BLOCKS), count)
        outcome = self._push_plain(index, range(layer, layer + 1), sources, targets)
        fault = self.fault_of(index)
        self.count(f"plain {outcome}")
        self.senders[index].deliver_late()
        for entry in self.senders[index].logged():
            self.check(entry.outcome == "landed", f"a duplicate of a plain push came to {entry.outcome}")
        if outcome == "Receipt" and fault not in ("flip", "truncate", "drop"):
            tensors = slice(layer * PER_LAYER, (layer + 1) * PER_LAYER)
            self.shadow[0][tensors, targets] = self.held[index][tensors, sources]
        else:
            self.refill(tuple(targets))

    def _push_plain(self, index: int, layers: range, sources: list[int], targets: list[int]) -> str:
        sender, key = self.senders[index], BlocksCacheKey(RECEIVER_ID, MODEL_ID)
        cancels = self.rng.random() < 0.1
        timeout_s = HURRY_S if self.rng.random() < 0.02 else None
        transfer = sender.manager.start_push(
            key, sender.cache, sources, targets, layers, layers, PER_LAYER, timeout_s=timeout_s
        )
        if cancels:
            transfer.cancel()
        try:
            return type(transfer.wait(30)).__name__
        except LLMException as error:
            return type(error).__name__

    def _look(self) -> None:
        differing = np.argwhere((self.receiver.memory() != self.shadow).any(axis=3))
        self.check(
            not len(differing), f"bytes that nobody was given changed: [cache, tensor, block] {differing.tolist()}"
        )


def run(transport: str, seed: int, pushes: int, *, digests: bool) -> Counter[str]:
    """What happened how often."""
    field = Field(transport, seed, digests=digests)
    try:
        field.go(pushes)
    finally:
        with suppress(Exception):
            field.close()
    return field.counts
