"""Which outcomes of errands an endpoint's next poll takes along, and which are told by themselves."""

from __future__ import annotations

import threading
import time

from ray_kvfabric.actors.membership import Batch
from ray_kvfabric.control.errands import Outcome


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
