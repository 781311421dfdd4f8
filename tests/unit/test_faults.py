"""Faults by wrapping: each does what its name says, and a seed says when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from ray_kvfabric import BlocksCacheKey, Cache
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.errors import DigestMismatch, GrantIncomplete, GrantRevoked, PeerLost, TransferTimeout
from ray_kvfabric.grant import Grant
from ray_kvfabric.testing.contents import write_tensor
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import (
    Event,
    Fault,
    FaultKind,
    FaultPlan,
    Halt,
    PauseHook,
    Point,
)
from ray_kvfabric.testing.occasion import go_on
from ray_kvfabric.testing.peer import ChildPeer, LocalPeer

TENSORS, BLOCKS, NBYTES = 4, 8, 50
TOTAL = TENSORS * 3 * NBYTES  # of a push
SETTINGS = EndpointSettings.model_validate({"transports": ("loopback",), "sync_kv_timeout_ms": 20_000})
KEY = BlocksCacheKey(2, 0)
INSIDE = [Point.ENTERED, Point.HALFWAY, Point.COPIED]


@dataclass
class Scene:
    """A writer with faults, a receiver, and a cache of each."""

    writer: LocalPeer
    receiver: LocalPeer
    source: Cache
    target: Cache

    def grant(self, **options: object) -> IssuedGrant:
        return self.receiver.manager.grant_blocks(self.target, [5, 2, 7], verify="crc32c", **options)  # type: ignore[arg-type]

    def push(self, issued: IssuedGrant) -> None:
        self.writer.manager.push_granted(issued.grant, self.source, [0, 1, 3])

    def landed(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Which bytes of the granted blocks are the source's, in the order in which they are copied."""
        pairs = [(self.source.numpy(t)[[0, 1, 3]], self.target.numpy(t)[[5, 2, 7]]) for t in range(TENSORS)]
        return np.concatenate([(left == right).reshape(-1) for left, right in pairs])


def scene(plan: FaultPlan, pause: PauseHook = go_on) -> Iterator[Scene]:
    directory = DictDirectory()
    writer = LocalPeer(1, directory, SETTINGS, faults=plan, pause=pause)
    receiver = LocalPeer(2, directory, SETTINGS)
    try:
        caches = [
            peer.manager.cache(peer.allocate(TENSORS, (BLOCKS, NBYTES), "DT_INT8", key))
            for peer, key in ((writer, None), (receiver, 0))
        ]
        for tensor in range(TENSORS):  # no byte of the one is the other's
            write_tensor(caches[0], tensor, np.full(BLOCKS * NBYTES, 1 + tensor, np.uint8))
            write_tensor(caches[1], tensor, np.full(BLOCKS * NBYTES, 200, np.uint8))
        yield Scene(writer, receiver, *caches)
    finally:
        writer.close()
        receiver.close()


def one(fault: Fault) -> FaultPlan:
    """The first push."""
    return FaultPlan(steps={(Event.PUSH, 0): fault})


# ---- pushes ----------------------------------------------------------------------------------------


def test_a_drop_reports_success_and_the_receiver_hears_nothing() -> None:
    for each in scene(one(Fault(FaultKind.DROP))):
        with each.grant() as issued:
            each.push(issued)
            assert not each.landed().any()
            with pytest.raises(TransferTimeout, match="0% was written"):
                issued.wait(0.0)


def test_a_dropped_part_is_a_gap() -> None:
    for each in scene(one(Fault(FaultKind.DROP))):
        issued = each.grant()
        each.writer.manager.push_granted(issued.grant, each.source, [0, 1], seal=False)
        each.writer.manager.push_granted(issued.grant, each.source, [3], at=2)
        with pytest.raises(GrantIncomplete, match="position 0"):
            issued.wait(1.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.97])
def test_a_truncation_writes_exactly_a_prefix_and_claims_all(share: float) -> None:
    for each in scene(one(Fault(FaultKind.TRUNCATE, share=share))):
        issued = each.grant()
        receipt = each.writer.manager.push_granted(issued.grant, each.source, [0, 1, 3])
        assert receipt.nbytes == TOTAL
        assert each.landed().tolist() == [index < int(TOTAL * share) for index in range(TOTAL)]
        with pytest.raises(DigestMismatch):
            issued.wait(1.0)


@pytest.mark.parametrize("share", [0.0, 0.41, 0.9999])
def test_a_flip_changes_exactly_one_bit(share: float) -> None:
    for each in scene(one(Fault(FaultKind.FLIP, share=share))):
        issued = each.grant()
        each.push(issued)
        byte = int(TOTAL * 8 * share) // 8
        assert np.flatnonzero(~each.landed()).tolist() == [byte]
        tensor, pair = byte // (3 * NBYTES), byte % (3 * NBYTES) // NBYTES
        found = each.target.numpy(tensor)[[5, 2, 7][pair]].view(np.uint8)[byte % NBYTES]
        assert int(found ^ (1 + tensor)).bit_count() == 1
        with pytest.raises(DigestMismatch, match=f"block {[5, 2, 7][pair]} of tensor {tensor} .*1 of 12 blocks"):
            issued.wait(1.0)


def test_a_duplicate_comes_late_and_is_refused_once_the_grant_is_over() -> None:
    for each in scene(one(Fault(FaultKind.DUPLICATE))):
        issued = each.grant()
        each.push(issued)
        issued.wait(1.0)
        each.receiver.fill(each.target.cache_id, 9)
        each.writer.deliver_late()
        assert (each.target.numpy(0) == 9).all()
        assert [(entry.number, entry.what, entry.outcome) for entry in each.writer.logged()] == [
            (0, "", "landed"),
            (0, "late", "GrantRevoked"),
        ]


def test_a_duplicate_of_a_plain_push_writes_again_before_the_next_push_of_its_link() -> None:
    for each in scene(one(Fault(FaultKind.DUPLICATE))):
        each.writer.manager.push_blocks(KEY, each.source, [0], [1])
        each.receiver.fill(each.target.cache_id, 9)
        each.writer.manager.push_blocks(KEY, each.source, [0], [2])
        assert [int(each.target.numpy(0)[block, 0]) for block in (0, 1, 2)] == [9, 1, 1]


def test_a_delay_is_a_share_of_the_longest() -> None:
    plan = FaultPlan(steps={(Event.PUSH, 0): Fault(FaultKind.DELAY, Point.COPIED, 0.5)}, max_delay_s=0.2)
    for each in scene(plan):
        receipt = each.writer.manager.start_push(KEY, each.source, [0], [1]).wait(10)
        assert receipt.landed_ns - receipt.started_ns >= 0.1e9
        assert [entry.fault for entry in each.writer.logged()] == ["delay at copied"]


@pytest.mark.parametrize(
    ("point", "moved"),
    list(zip(Point, [0, 0, TOTAL // 2, TOTAL, TOTAL], strict=True)),
)
def test_a_pause_is_where_it_is_named(point: Point, moved: int) -> None:
    halt = Halt()
    for each in scene(one(Fault(FaultKind.PAUSE, point)), halt):
        issued = each.grant()
        thread = threading.Thread(target=each.push, args=(issued,))
        thread.start()
        halt.await_reached()
        assert int(each.landed().sum()) == moved
        assert issued.done() is (point is Point.LANDED)
        halt.go_on()
        thread.join()
        assert issued.wait(1.0).verified == "crc32c"
    with pytest.raises(TransferTimeout, match="nobody ended the pause at 'halfway'"):
        Halt(0.001)(Point.HALFWAY, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("point", INSIDE)
def test_a_revoke_waits_for_who_pauses_inside_and_stops_it(point: Point) -> None:
    halt = Halt()
    refused: list[BaseException] = []
    for each in scene(one(Fault(FaultKind.PAUSE, point)), halt):
        issued = each.grant()

        def push(each: Scene = each, issued: IssuedGrant = issued) -> None:
            try:
                each.push(issued)
            except GrantRevoked as error:
                refused.append(error)

        thread = threading.Thread(target=push)
        thread.start()
        halt.await_reached()
        with pytest.raises(TransferTimeout, match="still inside"):
            issued.revoke(0.01)
        moved = int(each.landed().sum())
        halt.go_on()
        issued.revoke(5.0)
        thread.join()
        assert len(refused) == 1
        assert int(each.landed().sum()) == moved


def test_a_pull_is_hit_as_well() -> None:
    plan = FaultPlan(steps={(Event.PULL, 0): Fault(FaultKind.DROP), (Event.PULL, 1): Fault(FaultKind.FLIP)})
    for each in scene(plan):
        for block in (1, 2):
            each.writer.manager.pull_blocks(KEY, each.source, [0], [block])
        found = each.source.numpy(0).view(np.uint8)
        assert (found[1] == 1).all()
        assert found[2].tolist() == [201] + [200] * (NBYTES - 1)
        assert [(entry.event, entry.fault) for entry in each.writer.logged()] == [("pull", "drop"), ("pull", "flip")]


@pytest.mark.parametrize("transport", ["shared_memory", "process_vm"])
def test_bytes_of_another_process_are_hit_alike(transport: str) -> None:
    directory, settings = DictDirectory(), SETTINGS.model_copy(update={"transports": (transport,)})
    faults = [
        Fault(FaultKind.FLIP, share=0.5),
        Fault(FaultKind.TRUNCATE, share=0.5),
        Fault(FaultKind.PAUSE, Point.HALFWAY),
    ]
    plan = FaultPlan(steps={(Event.PUSH, number): fault for number, fault in enumerate(faults)})
    writer, child = LocalPeer(1, directory, settings, faults=plan), ChildPeer(2, directory, settings)
    try:
        source = writer.manager.cache(writer.allocate(1, (8, 64), "DT_INT8", None))
        target = (
            child.register(1, (8, 64), "DT_INT8", 0)
            if transport == "process_vm"
            else child.allocate(1, (8, 64), "DT_INT8", 0)
        )
        found = []
        for _ in faults:
            child.fill(target, 0)
            write_tensor(source, 0, np.full(8 * 64, 255, np.uint8))
            writer.manager.push_blocks(KEY, source, [0, 1], [4, 2], tensor_num_per_layer=1)
            memory = np.frombuffer(child.read(target)[0], np.uint8).reshape(8, 64)
            assert not memory[[0, 1, 3, 5, 6, 7]].any()
            found.append(np.concatenate([memory[4], memory[2]]))
        assert sorted(found[0].tolist()) == [254] + [255] * 127
        assert found[0][64] == 254
        assert found[1].tolist() == [255] * 64 + [0] * 64
        assert found[2].tolist() == [255] * 128
    finally:
        writer.close()
        child.close()


@pytest.mark.parametrize("kind", [FaultKind.DIE, FaultKind.FREEZE])
def test_a_child_is_struck_in_its_own_push(kind: FaultKind) -> None:
    directory, settings = DictDirectory(), SETTINGS.model_copy(update={"transports": ("shared_memory",)})
    receiver = LocalPeer(2, directory, settings)
    child = ChildPeer(1, directory, settings, kind=Pusher, faults=one(Fault(kind, Point.HALFWAY)))
    try:
        target = receiver.manager.cache(receiver.allocate(1, (8, 64), "DT_INT8", 0))
        child.introduce()
        issued = receiver.manager.grant_blocks(target, [3], tensor_num_per_layer=1, ttl_s=20)
        thread = threading.Thread(target=_push_and_die, args=(child, issued.grant))
        thread.start()
        if kind is FaultKind.DIE:
            with pytest.raises(PeerLost, match="died"):
                issued.wait(10.0)
        else:
            _await_byte(target, 3)
            with pytest.raises(TransferTimeout, match="quarantine"):
                issued.revoke(0.05)
            child.kill()
            issued.revoke(5.0)
        thread.join(20)
        assert target.numpy(0)[3].tolist() == [7] * 32 + [0] * 32
    finally:
        child.close()
        receiver.close()


def _await_byte(cache: Cache, block: int) -> None:
    deadline = Deadline.after(20)
    while not cache.numpy(0)[block, 0] and not deadline.passed:
        time.sleep(0.01)


def _push_and_die(child: ChildPeer, grant: Grant) -> None:
    with pytest.raises(EOFError):
        child.call("push", grant)


class Pusher(LocalPeer):
    """A child that pushes one block of sevens."""

    def push(self, grant: Grant) -> None:
        cache = self.manager.cache(self.allocate(1, (8, 64), "DT_INT8", None))
        write_tensor(cache, 0, np.full(8 * 64, 7, np.uint8))
        self.manager.push_granted(grant, cache, [0], tensor_num_per_layer=1)


# ---- the log ---------------------------------------------------------------------------------------


def print_log(seed: int) -> None:
    """What one process sees of sixty pushes."""
    rates = dict.fromkeys((FaultKind.FLIP, FaultKind.DROP, FaultKind.TRUNCATE, FaultKind.PAUSE), 0.1)
    for each in scene(FaultPlan(seed, {**rates, FaultKind.DUPLICATE: 0.2, FaultKind.DELAY: 0.1}, max_delay_s=0.0001)):
        for number in range(60):
            issued = each.grant(request_id=str(number))
            each.push(issued)
            issued.revoke()
        print(json.dumps(each.writer.logged()))


def test_the_same_seed_and_the_same_calls_give_the_same_log_in_every_process() -> None:
    logs = [_log_of(3, "0"), _log_of(3, "4711"), _log_of(4, "0")]
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]
    assert len({entry[3] for entry in logs[0]}) > 6


def _log_of(seed: int, hash_seed: str) -> list[list[object]]:
    program = f"from tests.unit.test_faults import print_log; print_log({seed})"
    ran = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    log: list[list[object]] = json.loads(ran.stdout)
    return log
