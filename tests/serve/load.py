"""Requests to a deployment, one after the other on some threads, callers that hang up, and replicas that are killed."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from ray import serve

from tests.serve.deployment import Deployment

DEADLINE_S = 60.0


@dataclass
class Answers:
    """Prompts and what an undivided engine says to them."""

    pairs: list[tuple[list[int], list[int]]]
    rng: random.Random

    def pick(self) -> tuple[list[int], list[int]]:
        return self.rng.choice(self.pairs)

    @property
    def prompts(self) -> list[list[int]]:
        return [prompt for prompt, _ in self.pairs]

    @property
    def right(self) -> list[list[int]]:
        return [right for _, right in self.pairs]


def hang_up(split: Deployment, prompt: list[int], after_s: float) -> None:
    """Sends a request and closes the connection under it."""
    body = split.body(prompt=prompt, max_tokens=200, stream=True).encode()
    head = f"POST /{split.name}/v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", split.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(after_s)


class Load:
    """Requests one after the other, on some threads, until it is stopped."""

    def __init__(self, split: Deployment, answers: Answers, threads: int = 4) -> None:
        self._split, self._answers = split, answers
        self._stopped = threading.Event()
        self.told: Counter[str] = Counter()
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            prompt, right = self._answers.pick()
            begun = time.monotonic()
            try:
                got = self._split.complete(prompt, timeout_s=DEADLINE_S)
                self.told["right" if got == right else "WRONG"] += 1
            except TimeoutError:
                self.told["HUNG"] += 1
            except (RuntimeError, OSError):
                self.told["error"] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - begun)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(DEADLINE_S + 10)
            assert not thread.is_alive(), "a request hangs past its deadline"


class Replicas:
    """Of one side of a deployment: the actors' processes."""

    def __init__(self, split: Deployment, side: str) -> None:
        self._split = split
        self._side = side

    def now(self) -> dict[int, psutil.Process]:
        title = f"ray::ServeReplica:{self._split.name}:{self._side}:demo"
        running = psutil.process_iter(["pid", "cmdline"])
        return {each.pid: each for each in running if " ".join(each.info["cmdline"] or []).startswith(title)}

    def kill_busy(self, pid: int) -> None:
        """With all its processes, while its engine waits for KV that was granted, or pushes what it has promised."""
        replica = self.now()[pid]
        family = [replica, *replica.children(recursive=True)]
        mine = {each.pid for each in family}
        end = time.monotonic() + 10
        while not any(told.waiting + told.promised for told in self._split.engines().values() if told.pid in mine):
            assert time.monotonic() < end
        for each in family:
            each.suspend()
        for each in family:
            each.kill()
        psutil.wait_procs(family, timeout=10)

    def wait_for(self, count: int) -> None:
        """Serve starts another for one that died."""
        end = time.monotonic() + 180
        while len(self.now()) < count or serve.status().applications[self._split.name].status != "RUNNING":
            assert time.monotonic() < end
            time.sleep(0.5)
