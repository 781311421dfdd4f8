"""Questions between endpoints: answered at once wherever the peer lives, and once even if the scheduler dies."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import threading
import time
from collections import Counter
from typing import Any

import pytest
import ray

from ray_kvfabric.actors.clients import SchedulerClient
from ray_kvfabric.actors.worker import CacheWorker
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import CacheNotFound, ParamInvalid, PeerLost
from ray_kvfabric.fabric import Fabric

pytestmark = pytest.mark.ray

COUNT, REFUSE, SLOW = "count", "refuse", "slow"
SLOW_S = 1.0


class Tally:
    """Answers with how often it was asked, which shows each answer that was made twice."""

    def __init__(self, manager: Any) -> None:
        self.asked = 0
        manager.answers(COUNT, self.count)
        manager.answers(SLOW, self.count_slowly)
        manager.answers(REFUSE, self.refuse)

    def count(self, arguments: dict[str, Any]) -> tuple[int, Any]:
        self.asked += 1
        return self.asked, arguments["note"]

    def count_slowly(self, arguments: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(SLOW_S)
        return self.count(arguments)

    def refuse(self, arguments: dict[str, Any]) -> object:
        raise CacheNotFound(f"no {arguments['note']} here")


class Counting(CacheWorker):
    """A peer that is an actor: questions are calls of it."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        self.tally = Tally(self.manager)


@ray.remote(num_cpus=0)
class Joined:
    """A peer of another process that only polls."""

    def __init__(self, fabric: str, cluster_id: int) -> None:
        self.fabric = Fabric.connect(fabric)
        self.tally = Tally(self.fabric.join(cluster_id))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.fabric.close()


@pytest.fixture(params=["polls", "actor"])
def asker(request, fabric):
    """A manager of this process; endpoint 2 is the peer that it asks."""
    peer = None
    if request.param == "actor":
        fabric.add_workers(2, worker_class=Counting)
    else:
        peer = Joined.remote(fabric.name, 2)
        ray.get(peer.ready.remote(), timeout=60)
    with fabric.join(1) as manager:
        yield manager
    if peer is not None:
        ray.get(peer.close.remote(), timeout=60)


def ask(manager: Any, question: str, note: object, timeout_s: float = 30.0) -> Any:
    deadline = Deadline.after(timeout_s)
    return manager.ask(manager.find_endpoint(2, deadline), question, {"note": note}, deadline)


def test_a_peer_answers_within_milliseconds(asker) -> None:
    seconds = []
    for number in range(1, 31):
        start = time.perf_counter()
        assert ask(asker, COUNT, ("note", number)) == (number, ("note", number))
        seconds.append(time.perf_counter() - start)
    print(f"median {statistics.median(seconds) * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms")
    assert statistics.median(seconds) < 0.1  # no poll's length in it


def test_a_refusal_is_the_askers_error(asker) -> None:
    with pytest.raises(CacheNotFound, match="no bread here"):
        ask(asker, REFUSE, "bread")
    with pytest.raises(ParamInvalid, match="riddle"):
        ask(asker, "riddle", "")


def test_a_question_under_way_is_answered_once_when_the_scheduler_dies(asker, fabric) -> None:
    scheduler = fabric.status()["scheduler"]["pid"]
    killer = threading.Timer(SLOW_S / 2, os.kill, (scheduler, signal.SIGKILL))
    killer.start()
    assert ask(asker, SLOW, "long") == (1, "long")
    killer.join()
    assert ask(asker, COUNT, "short") == (2, "short")
    assert fabric.status()["scheduler"]["restarted"] is True


def test_another_incarnation_of_the_peer_is_lost(asker) -> None:
    peer = dataclasses.replace(asker.find_endpoint(2, Deadline.after(10)), incarnation=99)
    with pytest.raises(PeerLost, match="replaced"):
        asker.ask(peer, COUNT, {"note": 0}, Deadline.after(10))


def test_a_question_costs_the_scheduler_two_calls(fabric, monkeypatch) -> None:
    calls: Counter[str] = Counter()
    submit = SchedulerClient.submit

    def counted(client: SchedulerClient, method: str, *arguments: object, **options: Any) -> Any:
        calls[method] += 1
        return submit(client, method, *arguments, **options)

    with fabric.join(1) as asking, fabric.join(2) as asked:
        asked.answers(COUNT, lambda arguments: arguments["note"])
        assert ask(asking, COUNT, "the first") == "the first"
        peer = asking.find_endpoint(2, Deadline.after(10))
        monkeypatch.setattr(SchedulerClient, "submit", counted)
        for number in range(20):
            assert asking.ask(peer, COUNT, {"note": number}, Deadline.after(10)) == number
        seen = +calls
        monkeypatch.undo()
    assert seen["ask"] == 20
    assert seen["send"] == seen["outcome"] == seen["endpoint"] == 0
    assert seen["report"] <= 4, "an answer that was there at once goes with the next poll"
