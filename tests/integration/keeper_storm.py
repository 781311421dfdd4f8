"""A program: many short runs and keepers without Ray meet in one folder, and each run must find its keeper alive.

    python keeper_storm.py FOLDER RUNS
A keeper here is a listening socket. What went wrong is printed, a line each; no line means that nothing did.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from ray_kvfabric.cli import local_cluster
from ray_kvfabric.cli.local_cluster import Kept, find_kept, join_cluster, publish, try_end, try_lock

LASTS_S = 3.0


def start_keeper(folder: Path, start: int, own_only: bool) -> Kept:
    ready, told = os.pipe()
    fork_keeper(folder, start, told)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    kept = find_kept(folder)
    assert kept is not None
    return kept


def start_keeper_and_die(folder: Path, start: int, own_only: bool) -> Kept:
    fork_keeper(folder, start, os.open(os.devnull, os.O_RDWR))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def fork_keeper(folder: Path, start: int, told: int) -> None:
    if os.fork() == 0:
        signal.alarm(60)
        close_all_but(start, told)  # a keeper is another program: it has none of the run's locks
        keep(folder, start, told)
        os._exit(0)


def close_all_but(*kept: int) -> None:
    for fd in range(3, 256):
        if fd not in kept:
            with suppress(OSError):
                os.close(fd)


def keep(folder: Path, start: int, told: int) -> None:
    if try_lock(folder / "only-one", fcntl.LOCK_EX) is None:
        print("two keepers at once", flush=True)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.001)
    time.sleep(random.uniform(0, 0.05))
    publish(folder, Kept(f"127.0.0.1:{listener.getsockname()[1]}", True, None))
    os.close(start)
    os.close(told)
    while not try_end(folder):
        with suppress(TimeoutError):
            listener.accept()[0].close()
    listener.close()
    time.sleep(random.uniform(0, 0.005))


def run(folder: Path, number: int) -> None:
    random.seed(number)
    signal.alarm(60)
    time.sleep(random.uniform(0, LASTS_S))
    if number % 5 == 0:  # killed at any moment: waiting or at work, and if it starts a keeper, then
        local_cluster._start_keeper = start_keeper_and_die
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.05))
    host, port = join_cluster(folder).address.split(":")
    for _ in range(3):
        try:
            socket.create_connection((host, int(port)), 5).close()
        except OSError as error:
            print(f"run {number} lost its keeper: {error}", flush=True)
        time.sleep(random.uniform(0, 0.01))


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    local_cluster._start_keeper = start_keeper
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            run(folder, number)
            os._exit(0)
        children.append(child)
    killed = [number for number, child in enumerate(children) if os.waitpid(child, 0)[1] != 0]
    for number in killed:
        if number % 5:
            print(f"run {number} failed", flush=True)
    end = time.monotonic() + 30
    while (folder / "address").exists() or try_lock(folder / "only-one", fcntl.LOCK_EX) is None:
        if time.monotonic() > end:
            print("a keeper stays", flush=True)
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()
