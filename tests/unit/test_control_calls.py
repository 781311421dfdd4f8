"""Calls that are lost: made again under the same id, and settled where it is not known whether they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

from ray_kvfabric.actors.clients import RayDirectory, SchedulerClient
from ray_kvfabric.actors.edge import repeated
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import NotLinked, PeerLost, StaleIncarnation, TransferTimeout
from tests.unit.test_control import cache, endpoint

UNAVAILABLE = ActorUnavailableError("connection reset", None)
LOST = ObjectLostError("01", None, "")
SOON = Deadline.after(86_400)  # from the import on


class Client(SchedulerClient):
    """Notes each call; a call ends as the next of `ends` does, or well."""

    def __init__(self, *ends: Any) -> None:
        super().__init__("none")
        self.ends = list(ends)
        self.calls: list[tuple[Any, ...]] = []

    def call(self, method: str, *arguments: object, deadline: Deadline) -> Any:
        self.calls.append((method, *arguments))
        return _end(self.ends)


def _end(ends: list[Any]) -> Any:
    end = ends.pop(0) if ends else None
    if isinstance(end, Exception):
        raise end
    return end


@pytest.fixture(autouse=True)
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What waiting for a reference comes to, in order."""
    ends: list[Any] = []
    for name in ("ray_kvfabric.actors.edge", "ray_kvfabric.actors.clients"):
        monkeypatch.setattr(f"{name}.fetch", lambda *arguments: _end(ends))
        monkeypatch.setattr(f"{name}.RETRY_S", 0.001)
    return ends


class TestRepeated:
    def test_a_lost_call_is_made_again_until_it_is_answered(self, fetches: list[Any]) -> None:
        fetches += [UNAVAILABLE, LOST, 7]
        started: list[int] = []
        assert repeated(lambda: started.append(1), SOON, "it") == 7
        assert len(started) == 3

    def test_a_death_and_a_refusal_are_no_loss(self, fetches: list[Any]) -> None:
        for end in (ActorDiedError(), NotLinked("no")):
            fetches += [end, 7]
            with pytest.raises(type(end)):
                repeated(lambda: None, SOON, "it")
            fetches.clear()

    def test_what_is_lost_to_the_end_is_a_timeout_that_says_why(self, fetches: list[Any]) -> None:
        fetches += [UNAVAILABLE] * 1000
        with pytest.raises(TransferTimeout, match=r"the poll was not answered in time: .*connection reset"):
            repeated(lambda: None, Deadline.after(0.02), "the poll")


class TestErrands:
    def test_a_lost_one_is_sent_again_under_its_id(self, fetches: list[Any]) -> None:
        client = Client(["ref"], ["ref"], ["ref"])
        fetches += [UNAVAILABLE, LOST, "answer"]
        assert client.errand(7, "answer", SOON, 1, question="?") == "answer"
        assert [method for method, *_ in client.calls] == ["ask"] * 3
        assert len({errand.errand_id for _, _, errand, *_ in client.calls}) == 1

    def test_a_replaced_peer_is_lost_and_its_own_refusal_is_passed_on(self, fetches: list[Any]) -> None:
        with pytest.raises(PeerLost, match="was replaced"):
            Client(StaleIncarnation("it was replaced")).errand(7, "answer", SOON, 1)
        fetches.append(StaleIncarnation("my target was replaced"))
        with pytest.raises(StaleIncarnation, match="my target"):
            Client(["ref"]).errand(7, "answer", SOON, 1)
        told = Outcome(error=StaleIncarnation("my target was replaced"))
        with pytest.raises(StaleIncarnation, match="my target"):
            Client(told).errand(7, "answer", SOON, 1)

    def test_what_an_endpoint_that_polls_has_told_is_the_answer_and_nothing_told_is_a_timeout(self) -> None:
        assert Client(Outcome("yes")).errand(7, "answer", SOON, 1) == "yes"
        with pytest.raises(TransferTimeout, match="answer"):
            Client(None).errand(7, "answer", SOON, 1)

    def test_a_dead_peer_is_not_asked_again(self, fetches: list[Any]) -> None:
        client = Client(["ref"])
        fetches.append(ActorDiedError())
        with pytest.raises(ActorDiedError):
            client.errand(7, "answer", SOON, 1)
        assert [(method, errand.method) for method, _, errand, *_ in client.calls] == [("ask", "answer")]
        assert isinstance(client.calls[0][2], Errand)


class TestDirectory:
    @pytest.fixture
    def client(self) -> Client:
        return Client()

    @pytest.fixture
    def directory(self, client: Client) -> RayDirectory:
        directory = RayDirectory(client)
        directory.announce(endpoint(7), SOON)
        return directory

    def test_each_change_has_a_greater_serial(self, client: Client, directory: RayDirectory) -> None:
        client.ends = [None, NotLinked("who?")]  # the second publication finds a scheduler that knows nobody
        directory.publish(endpoint(7), cache(1), SOON)
        directory.publish(endpoint(7), cache(2), SOON)
        directory.withdraw(endpoint(7), 1, SOON)
        methods, serials = [call[0] for call in client.calls], [call[-1] for call in client.calls]
        assert methods == ["announce", "publish", "publish", "announce", "publish", "withdraw"]
        assert serials == sorted(set(serials))

    @pytest.mark.parametrize(
        ("change", "known"),
        [
            (lambda directory: directory.publish(endpoint(7), cache(2, 5), SOON), (1,)),
            (lambda directory: directory.withdraw(endpoint(7), 1, SOON), ()),
            (lambda directory: directory.announce(endpoint(7, alias="10.0.0.1:5"), SOON), (1,)),
        ],
        ids=["publish", "withdraw", "announce"],
    )
    def test_a_change_of_unknown_outcome_is_settled_by_the_next_announcement(
        self, client: Client, directory: RayDirectory, change: Callable[[RayDirectory], None], known: tuple[int, ...]
    ) -> None:
        directory.publish(endpoint(7), cache(1), SOON)
        assert not directory.is_in_doubt
        client.ends = [TransferTimeout("no answer")]
        with pytest.raises(TransferTimeout):
            change(directory)
        assert directory.is_in_doubt
        directory.announce_again(SOON)
        method, who, *_, caches, _ = client.calls[-1]
        assert (method, who, tuple(each.cache_id for each in caches)) == ("announce", endpoint(7), known)
        assert not directory.is_in_doubt

    def test_who_left_is_never_announced_again(self, client: Client, directory: RayDirectory) -> None:
        directory.leave(endpoint(7), SOON)
        with pytest.raises(NotLinked, match="has left"):
            directory.announce_again(SOON)
        assert [call[0] for call in client.calls] == ["announce", "leave"]
