"""What counts as a death: an unavailable actor is a suspicion until somebody knows."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from ray_kvfabric.actors import liveness
from ray_kvfabric.actors.endings import Endings
from ray_kvfabric.actors.liveness import Verdict, judge, node_gone, process_gone
from ray_kvfabric.control.events import Ended
from ray_kvfabric.route import EndpointInfo, HostId

NODE = "ab12"
HERE = EndpointInfo(7, 5, os.getpid(), HostId.here(), 3, 4, (), node=NODE)
FAR = replace(HERE, host=HostId("another boot", 1, 0))
UNAVAILABLE = ActorUnavailableError("connection reset", None)


def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.01)


class Actor:
    """Answers each ping with the next of `answers`, and with the last for ever; a number of seconds is silence."""

    def __init__(self, *answers: int | float | Exception) -> None:
        self.ping = self
        self.pings = 0
        self._answers = answers

    async def remote(self) -> int:
        answer = self._answers[min(self.pings, len(self._answers) - 1)]
        self.pings += 1
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        return int(answer)


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What Ray says of its nodes: one, alive, whose raylet listens."""
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        rows = [{"NodeID": NODE, "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": _port(raylet)}]
        monkeypatch.setattr(liveness.ray, "nodes", lambda: rows)
        monkeypatch.setattr(liveness, "PING_S", 0.05)
        monkeypatch.setattr(liveness, "PAUSE_S", 0.01)
        yield rows


def _port(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def verdict(actor: Actor | None, endpoint: EndpointInfo = FAR, within_s: float = 5.0) -> Verdict:
    return asyncio.run(judge(actor, endpoint, within_s))  # type: ignore[arg-type]


class TestActors:
    @pytest.mark.parametrize(
        ("answers", "wanted"),
        [
            ([5], Verdict.LIVES),
            ([6], Verdict.DIED),  # another incarnation has its place
            ([ActorDiedError()], Verdict.DIED),
            ([UNAVAILABLE, UNAVAILABLE, 5], Verdict.LIVES),
            ([UNAVAILABLE, 1.0, ActorDiedError()], Verdict.DIED),
            ([1.0, UNAVAILABLE, 6], Verdict.DIED),
        ],
    )
    def test_a_suspicion_is_confirmed_by_fresh_calls(self, answers: list[Any], wanted: Verdict) -> None:
        actor = Actor(*answers)
        assert verdict(actor) is wanted
        assert actor.pings == len(answers)

    @pytest.mark.parametrize("answer", [UNAVAILABLE, 1.0])
    def test_nothing_known_is_no_death_and_ends_in_time(self, answer: Any) -> None:
        start = time.monotonic()
        assert verdict(Actor(answer), within_s=0.3) is Verdict.UNKNOWN
        assert 0.3 <= time.monotonic() - start < 2.0

    def test_a_process_of_this_host_is_looked_at(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        endpoint = replace(HERE, pid=process.pid)
        assert verdict(Actor(UNAVAILABLE), endpoint, 0.1) is Verdict.UNKNOWN
        process.kill()
        eventually(lambda: verdict(Actor(UNAVAILABLE), endpoint) is Verdict.DIED, 5, "a zombie is dead")
        process.communicate()
        assert verdict(Actor(UNAVAILABLE), endpoint) is Verdict.DIED
        assert not process_gone(replace(endpoint, host=FAR.host))  # its pid says nothing here

    def test_an_endpoint_without_an_actor_is_looked_at_once(self) -> None:
        assert verdict(None, HERE) is Verdict.UNKNOWN
        assert verdict(None, replace(HERE, pid=2**22 + 1)) is Verdict.DIED


class TestNodes:
    def test_a_node_that_ray_counts_as_dead_is_gone(self, nodes: list[dict[str, Any]]) -> None:
        assert not node_gone(NODE)
        nodes[0]["Alive"] = False
        assert node_gone(NODE)
        assert verdict(Actor(UNAVAILABLE)) is Verdict.DIED
        assert verdict(Actor(5)) is Verdict.LIVES  # what answers lives, whatever is said of its node

    def test_a_raylet_that_refuses_is_dead_before_ray_says_so(self, nodes: list[dict[str, Any]]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nodes[0]["NodeManagerPort"] = _port(closed)
        assert node_gone(NODE)
        assert verdict(Actor(UNAVAILABLE)) is Verdict.DIED

    def test_a_host_that_does_not_answer_proves_nothing(
        self, nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*address: object) -> socket.socket:
            raise TimeoutError

        monkeypatch.setattr(liveness.socket, "create_connection", silent)
        assert not node_gone(NODE)
        assert verdict(Actor(UNAVAILABLE), within_s=0.1) is Verdict.UNKNOWN

    @pytest.mark.parametrize("node", ["", "cd34"])
    def test_a_node_that_ray_does_not_list_is_not_known_to_be_gone(self, node: str) -> None:
        assert not node_gone(node)


class Manager:
    """Has these peers in use, and keeps what it is told."""

    def __init__(self, *in_use: tuple[int, int], told: Callable[[], object] = lambda: None) -> None:
        self.in_use = in_use
        self.ended: list[tuple[int, int, str]] = []
        self._told = told

    def peers_in_use(self) -> tuple[tuple[int, int], ...]:
        return self.in_use

    def peer_ended(self, *ended: Any) -> None:
        self.ended.append(ended)
        self._told()


class TestEndings:
    def test_who_is_told_of_is_not_watched_until_a_while_after(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray_kvfabric.actors.endings.AGAIN_S", 0.2)
        manager = Manager((7, 1), (8, 1))
        endings = Endings(manager)  # type: ignore[arg-type]
        assert endings.watching() == ((7, 1), (8, 1))
        endings.tell((Ended((7, 1), "died"),))
        assert endings.watching() == ((8, 1),)
        eventually(lambda: manager.ended == [(7, 1, "died")], 5, "the manager is told")
        assert endings.watching() == ((8, 1),)
        eventually(lambda: endings.watching() == ((7, 1), (8, 1)), 5, "what it has in use all the same is watched")

    def test_telling_does_not_wait_for_the_manager(self) -> None:
        manager = Manager((7, 1), told=lambda: time.sleep(0.5))
        endings = Endings(manager)  # type: ignore[arg-type]
        start = time.monotonic()
        endings.tell((Ended((7, 1), "died"), Ended((8, 1), "left")))
        assert time.monotonic() - start < 0.4
        eventually(lambda: [each[0] for each in manager.ended] == [7, 8], 5, "the manager is told of both")

    def test_a_failure_is_logged_and_the_peer_watched_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("ray_kvfabric.actors.endings.AGAIN_S", 0.1)

        def fail() -> None:
            raise OSError("no more descriptors")

        manager = Manager((7, 1), told=fail)
        endings = Endings(manager)  # type: ignore[arg-type]
        endings.tell((Ended((7, 1), "died"),))
        eventually(lambda: endings.watching() == ((7, 1),), 5, "it is watched again")
        assert "no more descriptors" in caplog.text
