"""Communicators begin when all ranks are there, or not at all."""

from __future__ import annotations

import os
import signal
import threading
import time

from tests.emulator.rules.cann import Cann, Config
from tests.emulator.rules.processes import pipe


def _alone() -> tuple[int, float]:
    cann = Cann()
    root = cann.root()
    start = time.monotonic()
    code, _ = cann.try_join(root, 2, 0)
    return code, time.monotonic() - start


def test_a_rank_whose_peer_never_comes_waits_and_then_times_out(child):
    code, seconds = child(_alone, HCCL_CONNECT_TIMEOUT="1").result()
    assert code == 9
    assert 0.9 < seconds < 5


def _early(line) -> tuple[float, int]:
    cann = Cann(0)
    line.send(cann.root())
    root = line.recv()
    start = time.monotonic()
    comm = cann.join(root, 2, 0)
    seconds = time.monotonic() - start
    assert cann.destroy(comm) == 0
    return seconds, cann.destroy(comm)


def _late(line) -> None:
    cann = Cann(1)
    root = line.recv()
    line.send(root)
    time.sleep(0.6)
    cann.join(root, 2, 1)


def test_the_first_rank_blocks_until_the_last_one_joins(child):
    mine, theirs = pipe()
    early, late = child(_early, mine), child(_late, theirs)
    late.result()
    seconds, second_destroy = early.result()
    assert seconds > 0.4
    assert second_destroy != 0, "a destroyed communicator is no communicator"


def _join_code(root: bytes, ranks: int, rank: int, device: int, config: Config | None = None) -> int:
    return Cann(device).try_join(root, ranks, rank, config)[0]


def _root_giver(line) -> None:
    line.send(Cann(0).root())
    line.recv()


def _root(child) -> tuple[object, bytes]:
    mine, theirs = pipe()
    child(_root_giver, theirs)
    return mine, mine.recv()


def test_a_rank_taken_twice_is_an_error(child):
    line, root = _root(child)
    first = child(_join_code, root, 2, 0, 0, HCCL_CONNECT_TIMEOUT="2")
    time.sleep(0.7)
    assert child(_join_code, root, 2, 0, 1, HCCL_CONNECT_TIMEOUT="2").result() == 1
    assert first.result() == 9
    line.send("end")


def test_ranks_that_differ_about_their_number_do_not_meet(child):
    line, root = _root(child)
    first = child(_join_code, root, 2, 0, 0, HCCL_CONNECT_TIMEOUT="2")
    time.sleep(0.7)
    assert child(_join_code, root, 3, 1, 1, HCCL_CONNECT_TIMEOUT="2").result() == 1
    assert first.result() == 9
    line.send("end")


def test_two_ranks_on_one_device_are_refused(child):
    line, root = _root(child)
    ranks = [child(_join_code, root, 2, rank, 0) for rank in range(2)]
    assert [rank.result() for rank in ranks] == [1, 1]
    line.send("end")


def test_a_root_info_whose_process_is_gone_is_refused(child):
    mine, theirs = pipe()
    giver = child(_root_giver, theirs)
    root = mine.recv()
    os.kill(giver.pid, signal.SIGKILL)
    giver.exitcode()
    assert child(_join_code, root, 2, 0, 0).result() == 11
    assert child(_join_code, bytes(4108), 2, 0, 0).result() == 1


def _without_device() -> tuple[int, int]:
    cann = Cann(device=None)
    return cann.call("HcclGetRootInfo", bytes(4108)), cann.try_join(bytes(4108), 2, 0)[0]


def test_a_thread_without_a_device_cannot_initialise(child):
    assert child(_without_device).result() == (15, 15)


def _two_threads() -> list[int]:
    cann = Cann()
    roots = [cann.root(), cann.root()]
    codes = []

    def join(root: bytes) -> None:
        cann.ok("aclrtSetDevice", 0)
        codes.append(cann.try_join(root, 2, 0)[0])

    threads = [threading.Thread(target=join, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(codes)


def test_two_threads_that_initialise_on_one_device_at_once_are_told_no(child):
    assert child(_two_threads, HCCL_CONNECT_TIMEOUT="1").result() == [4, 9]


def _configs() -> list[int]:
    cann = Cann()
    wrong = [Config.initialised() for _ in range(5)]
    wrong[0].magic = 0
    wrong[1].size = 2232
    wrong[2].version = 99
    wrong[3].buffer_megabytes = 0
    wrong[4].version = 5  # whose structure is shorter
    root = cann.root()
    codes = [cann.try_join(root, 1, 0, config)[0] for config in wrong]
    return [*codes, cann.try_join(root, 1, 0, Config.initialised(1))[0]]


def test_a_config_that_was_not_initialised_is_refused(child):
    assert child(_configs).result() == [1, 1, 1, 1, 1, 0]


def _buffers(megabytes: int) -> int:
    cann = Cann()
    return cann.try_join(cann.root(), 1, 0, Config.initialised(megabytes))[0]


def test_a_communicator_takes_twice_its_buffer_from_the_device(child):
    memory = str(64 << 20)
    assert child(_buffers, 32, KVFABRIC_EMULATED_HBM=memory).result() == 0
    assert child(_buffers, 33, KVFABRIC_EMULATED_HBM=memory).result() == 24
