"""A call that comes twice takes effect once, whatever became of the first."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_kvfabric.actors.answers import Answers
from ray_kvfabric.errors import CacheNotFound, LLMStatusCode, TransferTimeout


class Count:
    """Counts its calls; the answer is the number of the call."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls = 0
        self.error = error

    def __call__(self) -> int:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.calls


def test_the_same_call_is_answered_as_it_was_and_another_one_is_made() -> None:
    answers, count = Answers(), Count()
    assert [answers.once(each, count) for each in ("a", "a", "b", "a")] == [1, 1, 2, 1]


def test_a_refusal_is_repeated_whole_and_never_tried_again() -> None:
    answers, count = Answers(), Count(CacheNotFound("no cache 7", status_code=LLMStatusCode.LLM_FAILED))
    for _ in range(3):
        with pytest.raises(CacheNotFound, match="no cache 7") as caught:
            answers.once("a", count)
        assert caught.value.status_code is LLMStatusCode.LLM_FAILED
    assert count.calls == 1


def test_who_comes_while_the_first_is_answered_waits_for_that_answer() -> None:
    answers, begun, go_on = Answers(), threading.Event(), threading.Event()

    def slow() -> object:
        begun.set()
        assert go_on.wait(10)
        return object()

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(answers.once, "a", slow)
        assert begun.wait(10)
        later = [pool.submit(answers.once, "a", Count()) for _ in range(3)]
        assert not any(each.done() for each in later)
        go_on.set()
        assert {id(each.result(10)) for each in later} == {id(first.result(10))}


def test_who_waits_for_too_long_is_told_so() -> None:
    answers, begun, go_on = Answers(patience_s=0.05), threading.Event(), threading.Event()

    def stuck() -> bool:
        begun.set()
        return go_on.wait(10)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(answers.once, "abc", stuck)
        assert begun.wait(10)
        with pytest.raises(TransferTimeout, match=r"call abc came again.* 0.05 s"):
            answers.once("abc", Count())
        go_on.set()
        assert first.result(10) is True


def test_an_answer_that_was_broken_off_leaves_nobody_waiting() -> None:
    answers = Answers(patience_s=10)
    with pytest.raises(KeyboardInterrupt):
        answers.once("a", Count(KeyboardInterrupt()))
    with pytest.raises(TransferTimeout, match="KeyboardInterrupt"):
        answers.once("a", Count())


def test_only_the_newest_answers_are_kept() -> None:
    answers, count = Answers(kept=2), Count()
    assert [answers.once(each, count) for each in ("a", "b", "c", "b", "a")] == [1, 2, 3, 2, 4]


class Held:
    """Something of a caller's frame."""


def test_a_kept_refusal_holds_nothing_of_those_who_asked() -> None:
    answers = Answers()

    def ask() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(CacheNotFound):
            answers.once("a", Count(CacheNotFound("no")))
        return weakref.ref(held)

    seen = [ask(), ask()]
    gc.collect()
    assert [each() for each in seen] == [None, None]
