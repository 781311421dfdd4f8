"""HCCL moves bytes two-sided and in order; what does not pair is an error on both sides."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import pytest

from tests.emulator.rules.cann import HUGE_FIRST, INT8, RECV, SEND, UINT8, Cann
from tests.emulator.rules.pairs import Rank, pair
from tests.emulator.rules.processes import pipe

BIG = (5 << 20) + 13  # several times the buffer between the ranks, and no multiple of anything


def _pattern(size: int, seed: int) -> bytes:
    step = bytes((seed + 7 * at) % 251 for at in range(1009))
    return (step * (size // len(step) + 1))[:size]


def _send_big(rank: Rank) -> None:
    address = rank.buffer(_pattern(BIG, 3))
    assert rank.send(address, BIG) == 0
    assert rank.wait() == 0


def _receive_big(rank: Rank) -> None:
    address = rank.cann.malloc(BIG + 64)
    rank.cann.put(address, b"?" * (BIG + 64))
    assert rank.receive(address, BIG) == 0
    assert rank.wait() == 0
    assert rank.cann.get(address, BIG + 64) == _pattern(BIG, 3) + b"?" * 64


def test_a_transfer_larger_than_the_buffer_arrives_exactly(child):
    for rank in pair(child, _send_big, _receive_big):
        rank.result()


def _exchange(rank: Rank) -> None:
    sizes = [1, 4096, BIG, 77, 1 << 20]
    sends = [rank.buffer(_pattern(size, rank.rank * 5 + at)) for at, size in enumerate(sizes)]
    receives = [rank.cann.malloc(size) for size in sizes]
    items = [(SEND, a, size, UINT8, rank.peer) for a, size in zip(sends, sizes, strict=True)]
    items += [(RECV, a, size, UINT8, rank.peer) for a, size in zip(receives, sizes, strict=True)]
    assert rank.cann.batch(items, rank.comm, rank.stream) == 0
    assert rank.wait() == 0
    for at, (address, size) in enumerate(zip(receives, sizes, strict=True)):
        assert rank.cann.get(address, size) == _pattern(size, rank.peer * 5 + at), at
    assert rank.cann.async_error(rank.comm) == 0
    assert rank.destroy() == [0]


def test_the_items_of_one_batch_go_both_ways_at_once_each_into_its_place(child):
    for rank in pair(child, _exchange, _exchange):
        rank.result()


def _send_then_receive(rank: Rank) -> tuple[int, list[int]]:
    out, into = rank.buffer(b"x" * 64), rank.cann.malloc(64)
    assert rank.send(out, 64, stream=rank.cann.stream()) == 0
    assert rank.receive(into, 64) == 0  # on another stream: the order is the communicator's
    code = rank.wait(500)
    rank.line.send("tried")
    rank.line.recv()
    return code, rank.destroy()


def test_opposite_sends_before_their_receives_on_one_communicator_hang_until_it_is_destroyed(child):
    for rank in pair(child, _send_then_receive, _send_then_receive):
        code, destroyed = rank.result()
        assert code == 507046
        assert destroyed[0] == 20
        assert destroyed[-1] == 0


def _two_communicators(rank: Rank) -> None:
    root = rank.cann.root() if rank.rank == 0 else rank.line.recv()
    if rank.rank == 0:
        rank.line.send(root)
    other = rank.cann.join(root, 2, rank.rank)
    sending, receiving = (rank.comm, other) if rank.rank == 0 else (other, rank.comm)
    out, into = rank.buffer(bytes([rank.rank]) * 64), rank.cann.malloc(64)
    second = rank.cann.stream()
    assert rank.cann.move("HcclSend", out, 64, UINT8, rank.peer, sending, second) == 0
    assert rank.cann.move("HcclRecv", into, 64, UINT8, rank.peer, receiving, rank.stream) == 0
    assert rank.wait() == 0
    assert rank.cann.wait(second) == 0
    assert rank.cann.get(into, 64) == bytes([rank.peer]) * 64


def test_a_communicator_for_each_direction_does_not_hang(child):
    for rank in pair(child, _two_communicators, _two_communicators):
        rank.result()


def _send_in_order(rank: Rank) -> None:
    for at in range(20):
        assert rank.send(rank.buffer(bytes([at]) * 64), 64) == 0
    assert rank.wait() == 0


def _receive_in_order(rank: Rank) -> None:
    addresses = [rank.cann.malloc(64) for _ in range(20)]
    for address in addresses:
        assert rank.receive(address, 64) == 0
    assert rank.wait() == 0
    assert [rank.cann.get(address, 1)[0] for address in addresses] == list(range(20))


def test_what_is_sent_first_is_received_first(child):
    for rank in pair(child, _send_in_order, _receive_in_order):
        rank.result()


def _mismatch(count: int, kind: int, receives: bool, rank: Rank) -> None:
    address = rank.buffer(b"o" * 256)
    assert (rank.receive if receives else rank.send)(address, count, kind) == 0
    assert rank.wait() != 0
    assert "differ" in rank.cann.message()
    assert rank.cann.async_error(rank.comm) == 1
    assert rank.cann.get(address, 256) == b"o" * 256
    rank.line.send("seen")
    rank.line.recv()


class _Mismatch:
    def __init__(self, count: int, kind: int, receives: bool) -> None:
        self.arguments = count, kind, receives

    def __call__(self, rank: Rank) -> None:
        _mismatch(*self.arguments, rank)


@pytest.mark.parametrize(("count", "kind"), [(64, UINT8), (128, INT8), (32, 3)])
def test_a_count_or_type_that_differs_is_an_error_on_both_sides(child, count, kind):
    for rank in pair(child, _Mismatch(128, UINT8, False), _Mismatch(count, kind, True)):
        rank.result()


def _refused(rank: Rank) -> None:
    cann = rank.cann
    address = cann.malloc(4096)
    host = ctypes.create_string_buffer(4096)
    assert rank.send(ctypes.addressof(host), 64) == 1, "a host pointer"
    assert rank.receive(ctypes.addressof(host), 64) == 1
    assert rank.send(address + 4000, 97) == 1, "past the end"
    assert rank.send(address, 1025, 2) == 1, "past the end, in elements"
    assert rank.send(address, 64, 99) == 5, "no such type"
    assert rank.send(0, 64) == 2
    assert cann.move("HcclSend", address, 64, UINT8, rank.rank, rank.comm, rank.stream) == 1, "to itself"
    assert cann.move("HcclSend", address, 64, UINT8, 2, rank.comm, rank.stream) == 1, "no such rank"
    assert cann.move("HcclSend", address, 64, UINT8, rank.peer, rank.comm + 8, rank.stream) == 1, "no communicator"
    assert cann.move("HcclSend", address, 64, UINT8, rank.peer, rank.comm, 0) == 2, "no stream"
    items = [(SEND, address, 64, UINT8, rank.peer), (RECV, ctypes.addressof(host), 64, UINT8, rank.peer)]
    assert cann.batch(items, rank.comm, rank.stream) == 1, "one bad item refuses the whole batch"
    assert cann.batch([(7, address, 64, UINT8, rank.peer)], rank.comm, rank.stream) == 1
    assert rank.wait() == 0
    assert rank.destroy() == [0]


def test_host_pointers_and_buffers_out_of_bounds_are_refused_at_the_call(child):
    for rank in pair(child, _refused, _refused):
        rank.result()


def _never_received(rank: Rank) -> list[int]:
    address = rank.buffer(b"n" * 64)  # much smaller than the buffer between: it must still not count as sent
    assert rank.send(address, 64) == 0
    assert rank.wait(300) == 507046
    codes = rank.destroy()
    assert rank.wait() == 107023
    rank.line.send("end")
    return codes


def _does_not_receive(rank: Rank) -> None:
    rank.line.recv()


def test_a_send_nobody_receives_stays_until_its_communicator_is_destroyed(child):
    sender, other = pair(child, _never_received, _does_not_receive)
    codes = sender.result()
    assert codes[0] == 20
    assert codes[-1] == 0
    other.result()


def _stalled(rank: Rank) -> list[int]:
    rank.cann.faults("HcclSend:1:stall")
    assert rank.send(rank.buffer(b"s" * 64), 64) == 0
    assert rank.wait(100) == 507046
    codes = rank.destroy()
    assert rank.wait() == 107023
    rank.line.send("end")
    return codes


def _receives_nothing(rank: Rank) -> None:
    into = rank.buffer(b"?" * 64)
    assert rank.receive(into, 64) == 0
    rank.line.recv()
    assert rank.wait(0) == 507046
    assert rank.cann.get(into, 64) == b"?" * 64


def test_a_send_that_a_fault_stalls_ends_with_its_communicator(child):
    sender, receiver = pair(child, _stalled, _receives_nothing)
    assert sender.result()[-1] == 0
    receiver.result()


def _times_out(rank: Rank) -> int:
    assert rank.send(rank.buffer(b"n" * 64), 64) == 0
    code = rank.wait()
    assert rank.cann.async_error(rank.comm) == 9
    rank.line.send("end")
    return code


def test_a_send_nobody_receives_ends_with_the_execution_timeout(child):
    sender, other = pair(child, _times_out, _does_not_receive, HCCL_EXEC_TIMEOUT="0.5")
    assert sender.result() == 507048
    other.result()


def _peer_dies(rank: Rank) -> tuple[int, int]:
    address = rank.cann.malloc(BIG)
    assert rank.receive(address, BIG) == 0
    code = rank.wait()
    return code, rank.cann.async_error(rank.comm)


def _dies_in_the_middle(rank: Rank) -> None:
    address = rank.buffer(_pattern(BIG, 1))
    rank.cann.faults("HcclSend:1:kill")
    rank.send(address, BIG)


def test_a_peer_that_died_is_an_error_and_not_a_wait(child):
    receiver, dead = pair(child, _peer_dies, _dies_in_the_middle)
    assert receiver.result() == (507057, 21)
    assert dead.exitcode() == -signal.SIGKILL


def _receives_and_dies(rank: Rank) -> None:
    rank.line.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def _sends_to_the_dead(rank: Rank) -> tuple[int, int]:
    assert rank.send(rank.buffer(_pattern(BIG, 1)), BIG) == 0
    time.sleep(0.1)
    rank.line.send("die")
    code = rank.wait()
    return code, rank.cann.async_error(rank.comm)


def test_a_receiver_that_died_is_an_error_for_the_sender(child):
    sender, _ = pair(child, _sends_to_the_dead, _receives_and_dies)
    assert sender.result() == (507057, 21)


def _idle(rank: Rank) -> int:
    rank.line.recv()
    rank.line.poll(10)  # until the other end is gone
    time.sleep(0.1)
    return rank.cann.async_error(rank.comm)


def _leaves(rank: Rank) -> None:
    assert rank.destroy() == [0]
    rank.line.send("left")


def _dies(rank: Rank) -> None:
    rank.line.send("left")
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_idle_communicator_tells_of_a_death_but_not_of_a_peer_that_left_in_order(child):
    assert pair(child, _idle, _leaves)[0].result() == 0
    assert pair(child, _idle, _dies)[0].result() == 21


def _all_to_all(ranks: int, rank: int, line) -> None:
    cann = Cann(rank)
    if rank == 0:
        line.send(cann.root())
    comm = cann.join(line.recv(), ranks, rank)
    stream = cann.stream()
    size = (1 << 20) + 4096 + rank  # the sender's rank is in the size
    items, into = [], {}
    for peer in range(ranks):  # itself too
        address = cann.malloc(size, HUGE_FIRST)
        cann.put(address, _pattern(size, rank * 16 + peer))
        items.append((SEND, address, size, UINT8, peer))
        into[peer] = cann.malloc((1 << 20) + 4096 + peer, HUGE_FIRST)
        items.append((RECV, into[peer], (1 << 20) + 4096 + peer, UINT8, peer))
    assert cann.batch(items, comm, stream) == 0
    assert cann.wait(stream, 60000) == 0, cann.message()
    for peer, address in into.items():
        assert cann.get(address, (1 << 20) + 4096 + peer) == _pattern((1 << 20) + 4096 + peer, peer * 16 + rank), peer


def test_eight_processes_send_to_each_other_and_to_themselves(child):
    ranks = 8
    lines = [pipe() for _ in range(ranks)]
    children = [child(_all_to_all, ranks, rank, lines[rank][1], KVFABRIC_EMULATED_NPUS="8") for rank in range(ranks)]
    root = lines[0][0].recv()
    for mine, _ in lines:
        mine.send(root)
    for each in children:
        each.result()
