"""Which outcomes of errands an endpoint's next poll takes along, and which are told by themselves."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future

import pytest

from ray_kvfabric.actors.membership import Agent, Batch, Reply
from ray_kvfabric.control.errands import Outcome
from ray_kvfabric.control.events import Orders
from ray_kvfabric.errors import NotLinked


def test_outcomes_that_are_there_in_time_go_with_the_poll_and_nobody_tells_them_again() -> None:
    batch = Batch(2)
    assert batch.put("a", Outcome(1))
    threading.Timer(0.05, batch.put, ("b", Outcome(2))).start()
    assert batch.close(10.0) == (("a", Outcome(1)), ("b", Outcome(2)))


def test_a_late_outcome_is_its_own_threads_to_tell() -> None:
    batch = Batch(2)
    batch.put("a", Outcome(1))
    assert batch.close(0.01) == (("a", Outcome(1)),)
    assert not batch.put("b", Outcome(2))


def test_a_poll_that_brought_nothing_is_followed_at_once() -> None:
    begun = time.monotonic()
    assert Batch(0).close(10.0) == ()
    assert time.monotonic() - begun < 5


class Polling(Agent):
    """Its polls fail while they bring outcomes."""

    def __init__(self, error: Exception) -> None:
        self._stopped = Future()
        self._error = error
        self.reported: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()

    def _ray_is_ours(self) -> bool:
        return True

    def _poll(self, reply: Reply) -> Orders:
        raise self._error

    def _report(self, errand_id: str, outcome: Outcome) -> None:
        self.reported.put((errand_id, outcome))


@pytest.mark.parametrize("error", [TypeError("cannot be pickled"), NotLinked("no answer")], ids=repr)
def test_an_outcome_that_fails_a_poll_is_told_by_itself_and_fails_no_other_poll(error: Exception) -> None:
    agent = Polling(error)
    assert agent._turn(Reply(("a",), (("a", Outcome(1)),))) == Reply(("a",), ())
    assert agent.reported.get(timeout=5) == ("a", Outcome(1))
