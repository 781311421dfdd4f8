"""The scheduler's decisions: model-checked against a dictionary, then each rule by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.layout import Region
from ray_kvfabric.config import SchedulerSettings
from ray_kvfabric.control.errands import Errand, Outcome
from ray_kvfabric.control.events import (
    Announce,
    Answer,
    Await,
    Call,
    Command,
    Died,
    Forget,
    GaveUp,
    Leave,
    Lives,
    Orders,
    Poll,
    Probe,
    Publish,
    Refuse,
    Report,
    Resolve,
    Send,
    Tick,
    Watch,
    Withdraw,
)
from ray_kvfabric.control.state import SchedulerState
from ray_kvfabric.errors import (
    CacheNotFound,
    ClusterIdTaken,
    NotLinked,
    PeerLost,
    StaleIncarnation,
    TransferUnknown,
)
from ray_kvfabric.route import CacheInfo, EndpointInfo, HostId

SETTINGS = SchedulerSettings(lease_s=15, poll_s=5, rebuild_s=3, result_ttl_s=60)


def endpoint(cluster_id: int, incarnation: int = 1) -> EndpointInfo:
    return EndpointInfo(cluster_id, incarnation, 1000 + incarnation, HostId("boot", 1, 0), 3, 4, ("loopback",))


def cache(cache_id: int, model_id: int | None = 0) -> CacheInfo:
    region = Region(0, 4, 16, 16)
    return CacheInfo(cache_id, model_id, "DT_FLOAT16", "HOST", (4, 8), (region,), 0, 1, True, "memfd")


class Desk:
    """Hands events in, and keeps what each request was answered with."""

    def __init__(self, rebuild_until: float = 0.0) -> None:
        self.state = SchedulerState(SETTINGS, rebuild_until)
        self.now = 100.0
        self.answers: dict[int, Answer | Refuse | Call] = {}
        self.others: list[Command] = []
        self._next = 0

    def ask(self, kind: type, *fields: Any) -> int:
        self._next += 1
        self.tell(kind, self._next, *fields)
        return self._next

    def tell(self, kind: type, *fields: Any) -> None:
        for command in self.state.handle(kind(self.now, *fields)):
            if isinstance(command, Answer | Refuse | Call):
                assert command.request not in self.answers, "a request was answered twice"
                self.answers[command.request] = command
            else:
                self.others.append(command)
        self.state.check_integrity()

    def value(self, request: int) -> Any:
        """The value of an Answer; raises what a Refuse holds."""
        answer = self.answers[request]
        if isinstance(answer, Refuse):
            raise answer.error
        return answer.value if isinstance(answer, Answer) else answer

    def get(self, kind: type, *fields: Any) -> Any:
        return self.value(self.ask(kind, *fields))

    def pass_time(self, seconds: float) -> None:
        """As the actor does: a Tick whenever the state asks for one."""
        end = self.now + seconds
        while (wake_at := self.state.wake_at()) is not None and wake_at <= end:
            self.now = max(self.now, wake_at)
            self.tell(Tick)
            later = self.state.wake_at()
            assert later is None or later > self.now, "a Tick left something due"
        self.now = end


@pytest.fixture
def desk() -> Desk:
    return Desk()


class TestMembership:
    def test_a_live_rival_is_refused_with_both_incarnations_and_pids(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), None)
        first, second = desk.ask(Announce, endpoint(7, 2), None), desk.ask(Announce, endpoint(7, 3), None)
        assert desk.others == [Probe(endpoint(7, 1), None)]  # one probe for both
        desk.tell(Lives, endpoint(7, 1))
        for request, incarnation in ((first, 2), (second, 3)):
            with pytest.raises(ClusterIdTaken, match=rf"0001, pid 1001.*000{incarnation}, pid 100{incarnation}"):
                desk.value(request)

    def test_a_dead_rival_is_replaced_and_the_next_contender_meets_the_winner(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), None, (cache(1),))
        first, second = desk.ask(Announce, endpoint(7, 2), None), desk.ask(Announce, endpoint(7, 3), None)
        desk.tell(Died, endpoint(7, 1), "died")
        assert desk.value(first) is None
        assert desk.others[-1] == Probe(endpoint(7, 2), None)
        desk.tell(Lives, endpoint(7, 2))
        with pytest.raises(ClusterIdTaken):
            desk.value(second)
        with pytest.raises(CacheNotFound, match="it has: none"):  # nothing of the dead one is left
            desk.get(Resolve, 7, 0)

    def test_news_of_a_replaced_incarnation_touch_nobody(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), None)
        desk.get(Leave, endpoint(7, 1))
        desk.get(Announce, endpoint(7, 2), None, (cache(1),))
        contender = desk.ask(Announce, endpoint(7, 3), None)
        desk.tell(Died, endpoint(7, 1), "died")
        desk.tell(Lives, endpoint(7, 1))
        desk.get(Leave, endpoint(7, 1))
        desk.get(Withdraw, endpoint(7, 1), 1)
        assert desk.get(Resolve, 7, 0).endpoint == endpoint(7, 2)
        assert contender not in desk.answers
        with pytest.raises(StaleIncarnation):
            desk.get(Publish, endpoint(7, 1), cache(5))

    def test_a_restarted_actor_replaces_itself_without_a_probe(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), "actor")
        desk.get(Announce, endpoint(7, 2), "actor")
        assert desk.others == [Watch(endpoint(7, 1)), Forget(endpoint(7, 1)), Watch(endpoint(7, 2))]

    def test_a_repeated_announcement_is_no_second_watch(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), "actor")
        desk.get(Announce, endpoint(7), "actor", (cache(1),))
        assert desk.others == [Watch(endpoint(7))]
        assert desk.get(Resolve, 7, 0).cache == cache(1)

    def test_a_silent_endpoint_is_forgotten_after_its_lease_and_not_before(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None, (cache(1),))
        desk.pass_time(14)
        assert desk.get(Resolve, 7, 0).endpoint == endpoint(7)
        assert desk.get(Poll, endpoint(8), ()) == Orders(announce_again=True)
        desk.ask(Poll, endpoint(7), ())
        desk.pass_time(14)
        assert desk.get(Resolve, 7, 0).endpoint == endpoint(7)
        desk.pass_time(1)
        with pytest.raises(NotLinked, match="7; known: none"):
            desk.get(Resolve, 7, 0)
        assert desk.get(Poll, endpoint(7), ()) == Orders(announce_again=True)


class TestKeys:
    def test_a_newer_cache_takes_a_key_over_for_good(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        for number in (1, 2):
            desk.get(Publish, endpoint(7), cache(number))
        assert desk.get(Resolve, 7, 0).cache.cache_id == 2
        desk.get(Withdraw, endpoint(7), 2)
        with pytest.raises(CacheNotFound):
            desk.get(Resolve, 7, 0)

    def test_an_unknown_key_is_refused_with_the_keys_that_are_there(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None, (cache(1, 4), cache(2, 3), cache(3, None)))
        with pytest.raises(CacheNotFound, match="model_id=0; it has: model_id=3, model_id=4"):
            desk.get(Resolve, 7, 0)

    def test_a_cache_of_an_unknown_endpoint_is_refused(self, desk: Desk) -> None:
        with pytest.raises(NotLinked):
            desk.get(Publish, endpoint(7), cache(1))
        assert desk.get(Withdraw, endpoint(7), 1) is None


class TestRebuilding:
    def test_an_unknown_cluster_is_waited_for_after_a_restart(self) -> None:
        desk = Desk(rebuild_until=103.0)
        request = desk.ask(Resolve, 7, 0)
        launch = desk.ask(Send, 8, Errand("e", "push_blocks", {}), None, BlocksCacheKey(7))
        assert not desk.answers
        desk.get(Announce, endpoint(7), None, (cache(1),))
        assert desk.value(request).cache == cache(1)
        desk.get(Announce, endpoint(8), "actor")
        assert desk.value(launch) == Call(launch, endpoint(8), Errand("e", "push_blocks", {}))

    def test_who_does_not_come_back_in_time_is_unknown(self) -> None:
        desk = Desk(rebuild_until=103.0)
        request = desk.ask(Resolve, 7, 0)
        desk.pass_time(2.9)
        assert not desk.answers
        desk.pass_time(0.2)
        with pytest.raises(NotLinked):
            desk.value(request)
        with pytest.raises(NotLinked):
            desk.get(Resolve, 7, 0)

    def test_a_caller_that_gave_up_is_never_answered(self) -> None:
        desk = Desk(rebuild_until=103.0)
        desk.tell(GaveUp, desk.ask(Resolve, 7, 0))
        desk.get(Announce, endpoint(6), None)
        poll = desk.ask(Poll, endpoint(6), ())
        desk.tell(GaveUp, poll)
        desk.pass_time(10)
        assert len(desk.answers) == 1


class TestErrands:
    PUSH = Errand("push", "push_blocks", {"transfer_id": "push"})

    def test_a_push_to_an_unknown_key_never_reaches_its_source(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), "actor", (cache(1),))
        with pytest.raises(NotLinked):
            desk.get(Send, 7, self.PUSH, None, BlocksCacheKey(9))
        with pytest.raises(CacheNotFound):
            desk.get(Send, 7, self.PUSH, None, BlocksCacheKey(7, 5))
        with pytest.raises(PeerLost):
            desk.get(Send, 7, self.PUSH, 99)
        assert isinstance(desk.get(Send, 7, self.PUSH, 1, BlocksCacheKey(7)), Call)

    def test_an_errand_goes_home_with_the_poll_and_its_outcome_to_all_who_wait(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        poll = desk.ask(Poll, endpoint(7), ())
        assert desk.get(Send, 7, self.PUSH) is None
        assert desk.value(poll) == Orders(errands=(self.PUSH,))
        waiting = [desk.ask(Await, "push", 200.0) for _ in range(2)]
        desk.get(Report, "push", Outcome("receipt"))
        assert [desk.value(request) for request in waiting] == [Outcome("receipt")] * 2
        assert desk.get(Await, "push", 200.0) == Outcome("receipt")

    def test_an_errand_is_delivered_until_it_is_acknowledged(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        desk.get(Send, 7, self.PUSH)
        assert desk.get(Poll, endpoint(7), ()).errands == (self.PUSH,)
        assert desk.get(Poll, endpoint(7), ()).errands == (self.PUSH,)  # the first answer was lost
        parked = desk.ask(Poll, endpoint(7), ("push",))
        assert parked not in desk.answers

    def test_the_same_errand_twice_is_one(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        for _ in range(2):
            desk.get(Send, 7, self.PUSH)
        assert desk.get(Poll, endpoint(7), ()).errands == (self.PUSH,)
        for value in (1, 2):
            desk.get(Report, "push", Outcome(value))
        desk.get(Send, 7, self.PUSH)
        assert desk.get(Await, "push", 200.0) == Outcome(1)
        parked = desk.ask(Poll, endpoint(7), ())
        assert parked not in desk.answers  # nothing to fetch any more

    def test_what_a_lost_endpoint_owed_has_failed(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        desk.get(Send, 7, self.PUSH)
        waiting, poll = desk.ask(Await, "push", 200.0), desk.ask(Poll, endpoint(7), ("push",))
        desk.get(Leave, endpoint(7))
        assert isinstance(desk.value(waiting).error, PeerLost)
        assert desk.value(poll) == Orders(announce_again=True)

    def test_an_outcome_is_forgotten_after_its_time_and_an_unknown_one_is_no_wait(self, desk: Desk) -> None:
        desk.get(Report, "push", Outcome(1))
        desk.pass_time(59)
        assert desk.get(Await, "push", 200.0) == Outcome(1)
        desk.pass_time(2)
        with pytest.raises(TransferUnknown):
            desk.get(Await, "push", 200.0)

    def test_no_wait_is_longer_than_it_said(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        desk.get(Send, 7, self.PUSH)
        waiting, poll = desk.ask(Await, "push", 102.0), desk.ask(Poll, endpoint(7), ("push",))
        newer = desk.ask(Poll, endpoint(7), ())
        assert desk.value(poll) == Orders()  # a newer poll ends the older
        desk.pass_time(2)
        assert desk.value(waiting) is None
        desk.pass_time(3)
        assert desk.value(newer) == Orders()


CLUSTERS = st.integers(0, 2)
INCARNATIONS = st.integers(1, 2)
CACHES = st.integers(1, 3)
MODELS = st.none() | st.integers(0, 1)


class ControlMachine(RuleBasedStateMachine):
    """Any order of events against a dictionary: cluster_id -> [incarnation, lease_until, {cache_id: model_id}]."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.model: dict[int, list[Any]] = {}
        self.contending: dict[int, tuple[int, int]] = {}

    def _knows(self, cluster_id: int, incarnation: int) -> bool:
        return cluster_id in self.model and self.model[cluster_id][0] == incarnation

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS)
    def announce(self, cluster_id: int, incarnation: int) -> None:
        request = self.desk.ask(Announce, endpoint(cluster_id, incarnation), None)
        if cluster_id in self.model and not self._knows(cluster_id, incarnation):
            self.contending[request] = (cluster_id, incarnation)
            return
        self.model[cluster_id] = [incarnation, self.desk.now + 15, {}]
        assert self.desk.value(request) is None

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, cache_id=CACHES, model_id=MODELS)
    def publish(self, cluster_id: int, incarnation: int, cache_id: int, model_id: int | None) -> None:
        request = self.desk.ask(Publish, endpoint(cluster_id, incarnation), cache(cache_id, model_id))
        if not self._knows(cluster_id, incarnation):
            with pytest.raises((NotLinked, StaleIncarnation)):
                self.desk.value(request)
            return
        held = self.model[cluster_id][2]
        if model_id is not None:
            held.update({other: None for other, model in held.items() if model == model_id})
        held[cache_id] = model_id

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, cache_id=CACHES)
    def withdraw(self, cluster_id: int, incarnation: int, cache_id: int) -> None:
        self.desk.get(Withdraw, endpoint(cluster_id, incarnation), cache_id)
        if self._knows(cluster_id, incarnation):
            self.model[cluster_id][2].pop(cache_id, None)

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, how=st.sampled_from([Leave, Died]))
    def go(self, cluster_id: int, incarnation: int, how: type) -> None:
        who = endpoint(cluster_id, incarnation)
        if how is Leave:
            self.desk.get(Leave, who)
        else:
            self.desk.tell(Died, who, "died")
        if self._knows(cluster_id, incarnation):
            self._drop(cluster_id)

    def _drop(self, cluster_id: int) -> None:
        """The first contender for the name gets it, and with it all of the same incarnation."""
        del self.model[cluster_id]
        for request, (wanted, incarnation) in list(self.contending.items()):
            if wanted == cluster_id and (wanted not in self.model or self._knows(wanted, incarnation)):
                self.model[wanted] = [incarnation, self.desk.now + 15, {}]
                assert self.desk.value(request) is None
                del self.contending[request]

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS)
    def prove_alive(self, cluster_id: int, incarnation: int) -> None:
        self.desk.tell(Lives, endpoint(cluster_id, incarnation))
        if not self._knows(cluster_id, incarnation):
            return
        for request, (wanted, _) in list(self.contending.items()):
            if wanted == cluster_id:
                with pytest.raises(ClusterIdTaken):
                    self.desk.value(request)
                del self.contending[request]

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS)
    def poll(self, cluster_id: int, incarnation: int) -> None:
        request = self.desk.ask(Poll, endpoint(cluster_id, incarnation), ())
        if self._knows(cluster_id, incarnation):
            self.model[cluster_id][1] = self.desk.now + 15
            assert request not in self.desk.answers
        else:
            assert self.desk.value(request).announce_again

    @precondition(lambda self: not self.contending)
    @rule(seconds=st.sampled_from([1, 4, 10]))
    def wait(self, seconds: int) -> None:
        self.desk.pass_time(seconds)
        for cluster_id in [key for key, entry in self.model.items() if entry[1] <= self.desk.now]:
            del self.model[cluster_id]

    @rule(cluster_id=CLUSTERS, model_id=st.integers(0, 1))
    def resolve(self, cluster_id: int, model_id: int) -> None:
        request = self.desk.ask(Resolve, cluster_id, model_id)
        if cluster_id not in self.model:
            with pytest.raises(NotLinked):
                self.desk.value(request)
            return
        incarnation, _, held = self.model[cluster_id]
        keyed = [cache_id for cache_id, model in held.items() if model == model_id]
        if not keyed:
            with pytest.raises(CacheNotFound):
                self.desk.value(request)
            return
        route = self.desk.value(request)
        assert (route.endpoint.incarnation, [route.cache.cache_id]) == (incarnation, keyed)

    @invariant()
    def members_are_the_model(self) -> None:
        members = {
            member.endpoint.cluster_id: (
                member.endpoint.incarnation,
                {cache_id: held.model_id for cache_id, held in member.caches.items()},
            )
            for member in self.desk.state.members()
        }
        assert members == {key: (entry[0], entry[2]) for key, entry in self.model.items()}


TestControlMachine = ControlMachine.TestCase
TestControlMachine.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
