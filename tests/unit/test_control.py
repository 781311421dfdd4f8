"""The scheduler's decisions: model-checked against a dictionary, then each rule by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_kvfabric.cache.keys import BlocksCacheKey, CacheName
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
    End,
    Event,
    Forget,
    GaveUp,
    Leave,
    Lives,
    LookUp,
    LookUpAlias,
    Orders,
    Poll,
    Probe,
    Publish,
    Refuse,
    Report,
    Resolve,
    Retire,
    Send,
    Tick,
    Watch,
    Withdraw,
)
from ray_kvfabric.control.state import SchedulerState
from ray_kvfabric.errors import (
    AliasTaken,
    CacheNotFound,
    ClusterIdTaken,
    NotLinked,
    PeerLost,
    StaleIncarnation,
    TransferUnknown,
)
from ray_kvfabric.route import CacheInfo, EndpointInfo, HostId, RowKey

SETTINGS = SchedulerSettings(lease_s=15, poll_s=5, rebuild_s=3, result_ttl_s=60)


KEY = CacheName("model", 0, 0)


def endpoint(cluster_id: int, incarnation: int = 1, alias: str = "") -> EndpointInfo:
    host = HostId("boot", 1, 0)
    return EndpointInfo(cluster_id, incarnation, 1000 + incarnation, host, 3, 4, ("loopback",), alias=alias)


def cache(cache_id: int, model_id: int | None = 0, base: int = 0, keys: tuple[RowKey, ...] = ()) -> CacheInfo:
    region = Region(base, 4, 16, 16)
    return CacheInfo(cache_id, model_id, "DT_FLOAT16", "HOST", (4, 8), (region,), 0, 1, True, "memfd", keys=keys)


class Desk:
    """Hands events in, and keeps what each request was answered with. What endpoints tell has growing serials."""

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
        self.hand_in(kind(self.now, *fields))

    def hand_in(self, event: Event) -> None:
        if getattr(event, "serial", None) == 0:
            event = replace(event, serial=self._next)
        for command in self.state.handle(event):
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
        desk.ask(Announce, endpoint(7, 2), None)
        assert desk.others == [Probe(endpoint(7, 1), None)] * 2  # it may have died since

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
            desk.get(Resolve, 7, KEY)

    def test_news_of_a_replaced_incarnation_touch_nobody(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), None)
        desk.get(Leave, endpoint(7, 1))
        desk.get(Announce, endpoint(7, 2), None, (cache(1),))
        contender = desk.ask(Announce, endpoint(7, 3), None)
        desk.tell(Died, endpoint(7, 1), "died")
        desk.tell(Lives, endpoint(7, 1))
        desk.get(Leave, endpoint(7, 1))
        desk.get(Withdraw, endpoint(7, 1), 1)
        assert desk.get(Resolve, 7, KEY).endpoint == endpoint(7, 2)
        assert contender not in desk.answers
        with pytest.raises(StaleIncarnation):
            desk.get(Publish, endpoint(7, 1), cache(5))

    def test_a_restarted_actor_replaces_itself_without_a_probe(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), "actor")
        desk.get(Announce, endpoint(7, 2), "actor")
        assert desk.others == [Watch(endpoint(7, 1)), Forget(endpoint(7, 1)), Watch(endpoint(7, 2))]

    def test_who_left_is_not_let_in_again_by_an_announcement_that_comes_late(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1), None)
        waiting = desk.ask(Announce, endpoint(7, 2), None)
        desk.get(Leave, endpoint(7, 2))  # it gave up, and the announcement of its that waits is of no use
        with pytest.raises(NotLinked, match=r"endpoint 7 .*0002, pid 1002.* has left"):
            desk.value(waiting)
        desk.get(Leave, endpoint(7, 1))
        with pytest.raises(NotLinked, match="has left"):
            desk.get(Announce, endpoint(7, 1), None)
        assert desk.get(Announce, endpoint(7, 3), None) is None

    def test_what_comes_again_or_late_changes_nothing(self, desk: Desk) -> None:
        def told(event: Any) -> dict[int, CacheInfo]:
            desk.hand_in(event)
            assert desk.value(event.request) is None
            return desk.state.members()[0].caches

        who = endpoint(7)
        assert told(Announce(desk.now, 901, who, "actor", (), serial=1)) == {}
        assert list(told(Publish(desk.now, 902, who, cache(1), serial=2))) == [1]
        assert list(told(Announce(desk.now, 903, who, "actor", (), serial=1))) == [1]
        assert told(Withdraw(desk.now, 904, who, 1, serial=3)) == {}
        assert told(Publish(desk.now, 905, who, cache(1), serial=2)) == {}
        assert list(told(Publish(desk.now, 906, who, cache(1), serial=4))) == [1]
        assert list(told(Withdraw(desk.now, 907, who, 1, serial=3))) == [1]
        assert desk.others == [Watch(who)]

    def test_an_announcement_of_an_alias_given_up_since_is_no_contest(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        desk.get(Announce, endpoint(7, 1, ""), None)
        desk.get(Announce, endpoint(8, 1, "10.0.0.1:5"), None)
        desk.hand_in(Announce(desk.now, 901, endpoint(7, 1, "10.0.0.1:5"), None, serial=1))
        assert desk.value(901) is None
        assert desk.others == []
        assert desk.get(LookUpAlias, "10.0.0.1:5").cluster_id == 8

    def test_a_repeated_announcement_is_no_second_watch(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), "actor")
        desk.get(Announce, endpoint(7), "actor", (cache(1),))
        assert desk.others == [Watch(endpoint(7))]
        assert desk.get(Resolve, 7, KEY).cache == cache(1)

    def test_a_silent_endpoint_is_forgotten_after_its_lease_and_not_before(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None, (cache(1),))
        desk.pass_time(14)
        assert desk.get(Resolve, 7, KEY).endpoint == endpoint(7)
        assert desk.get(Poll, endpoint(8), ()) == Orders(announce_again=True)
        desk.ask(Poll, endpoint(7), ())
        desk.pass_time(14)
        assert desk.get(Resolve, 7, KEY).endpoint == endpoint(7)
        desk.pass_time(1)
        with pytest.raises(NotLinked, match="7; known: none"):
            desk.get(Resolve, 7, KEY)
        assert desk.get(Poll, endpoint(7), ()) == Orders(announce_again=True)


class TestKeys:
    def test_a_newer_cache_takes_a_key_over_for_good(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        for number in (1, 2):
            desk.get(Publish, endpoint(7), cache(number))
        assert desk.get(Resolve, 7, KEY).cache.cache_id == 2
        desk.get(Withdraw, endpoint(7), 2)
        with pytest.raises(CacheNotFound):
            desk.get(Resolve, 7, KEY)

    def test_an_unknown_key_is_refused_with_the_keys_that_are_there(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None, (cache(1, 4), cache(2, 3), cache(3, None)))
        with pytest.raises(CacheNotFound, match="model_id=0; it has: model_id=3, model_id=4"):
            desk.get(Resolve, 7, KEY)

    def test_a_cache_of_an_unknown_endpoint_is_refused(self, desk: Desk) -> None:
        with pytest.raises(NotLinked):
            desk.get(Publish, endpoint(7), cache(1))
        assert desk.get(Withdraw, endpoint(7), 1) is None


class TestNames:
    """What else than a model_id a cache is asked for by."""

    FIRST = cache(1, None, base=1000, keys=(RowKey("request", 5, 0, 0), RowKey("prefix", 6, 0, 1)))
    SECOND = cache(2, None, base=1032, keys=(RowKey("request", 5, 0, 3), RowKey("request", 5, 1, 2)))

    @pytest.mark.parametrize(
        ("name", "cache_id"),
        [
            (CacheName("id", 1), 1),
            (CacheName("id", 2), 2),
            (CacheName("request", 5), 1),  # the first that had it keeps it
            (CacheName("request", 5, 1), 2),
            (CacheName("prefix", 6), 1),
            (CacheName("address", 1000), 1),
            (CacheName("address", 1031), 1),
            (CacheName("address", 1032), 2),  # the newest that has it
            (CacheName("address", 1095), 2),
        ],
        ids=str,
    )
    def test_a_name_is_resolved(self, desk: Desk, name: CacheName, cache_id: int) -> None:
        desk.get(Announce, endpoint(7), None)
        for each in (self.FIRST, self.SECOND):
            desk.get(Publish, endpoint(7), each)
        assert desk.get(Resolve, 7, name).cache.cache_id == cache_id

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (CacheName("id", 3), "has no cache 3"),
            (CacheName("request", 6), "has no cache of request id 6, model_id=0"),
            (CacheName("prefix", 6, 1), "has no cache of prefix id 6, model_id=1"),
            (CacheName("address", 1096), "has no cache at address 0x448"),
        ],
        ids=str,
    )
    def test_a_name_that_nothing_has_is_said(self, desk: Desk, name: CacheName, text: str) -> None:
        desk.get(Announce, endpoint(7), None, (self.FIRST, self.SECOND))
        with pytest.raises(CacheNotFound, match=f"{text}$"):
            desk.get(Resolve, 7, name)

    def test_an_endpoint_is_found_by_its_cluster_id(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        assert desk.get(LookUp, 7) == endpoint(7, 1, "10.0.0.1:5")
        with pytest.raises(NotLinked, match="8; known: 7"):
            desk.get(LookUp, 8)


class TestAliases:
    @pytest.mark.parametrize(
        ("alias", "asked", "is_found"),
        [
            ("10.0.0.1:5", "10.0.0.1:5", True),
            ("10.0.0.1:5", "0.0.0.0:5", True),
            ("0.0.0.0:5", "10.0.0.1:5", True),
            ("10.0.0.1:5", "10.0.0.1:6", False),
            ("10.0.0.1:5", "10.0.0.2:5", False),
            ("0.0.0.0:5", "10.0.0.1:6", False),
            ("", "0.0.0.0:5", False),
        ],
    )
    def test_who_is_found_under_an_alias_and_who_may_not_have_it_too(
        self, desk: Desk, alias: str, asked: str, is_found: bool
    ) -> None:
        desk.get(Announce, endpoint(7, 1, alias), None)
        other = desk.ask(Announce, endpoint(8, 1, asked), None)
        if is_found:
            assert desk.get(LookUpAlias, asked) == endpoint(7, 1, alias)
            assert desk.others == [Probe(endpoint(7, 1, alias), None)]
        else:
            assert desk.value(other) is None
            assert desk.get(LookUpAlias, asked) == endpoint(8, 1, asked)

    def test_an_unknown_alias_is_refused_with_those_that_are_known(self, desk: Desk) -> None:
        for cluster_id, alias in ((7, "10.0.0.2:5"), (8, ""), (9, "10.0.0.1:5")):
            desk.get(Announce, endpoint(cluster_id, 1, alias), None)
        with pytest.raises(NotLinked, match=r"alias 10.0.0.3:5; known: 10.0.0.1:5, 10.0.0.2:5$"):
            desk.get(LookUpAlias, "10.0.0.3:5")

    def test_an_alias_of_a_live_endpoint_is_refused_with_both_sides(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        request = desk.ask(Announce, endpoint(8, 2, "0.0.0.0:5"), None)
        desk.tell(Lives, endpoint(7, 1, "10.0.0.1:5"))
        text = r"alias 10.0.0.1:5 belongs to the live endpoint 7 .*; refused: 0.0.0.0:5 of endpoint 8 .*pid 1002"
        with pytest.raises(AliasTaken, match=text):
            desk.value(request)
        with pytest.raises(NotLinked):
            desk.get(LookUp, 8)

    def test_the_dead_holders_of_an_alias_are_replaced_when_the_last_of_them_is_known_to_be_dead(
        self, desk: Desk
    ) -> None:
        holders = [endpoint(7, 1, "10.0.0.1:5"), endpoint(8, 1, "10.0.0.2:5")]
        for holder in holders:
            desk.get(Announce, holder, None)
        request = desk.ask(Announce, endpoint(9, 1, "0.0.0.0:5"), None)
        assert desk.others == [Probe(holder, None) for holder in holders]
        desk.tell(Died, holders[0], "died")
        assert request not in desk.answers
        desk.tell(Died, holders[1], "died")
        assert desk.value(request) is None
        assert desk.get(LookUpAlias, "10.0.0.2:5") == endpoint(9, 1, "0.0.0.0:5")
        with pytest.raises(NotLinked, match="7; known: 9"):
            desk.get(LookUp, 7)

    def test_one_live_holder_of_two_is_enough_for_a_refusal(self, desk: Desk) -> None:
        for cluster_id in (7, 8):
            desk.get(Announce, endpoint(cluster_id, 1, f"10.0.0.{cluster_id}:5"), None)
        request = desk.ask(Announce, endpoint(9, 1, "0.0.0.0:5"), None)
        desk.tell(Died, endpoint(7), "died")
        desk.tell(Lives, endpoint(8))
        with pytest.raises(AliasTaken, match="endpoint 8"):
            desk.value(request)

    def test_a_second_announcement_changes_the_alias_and_frees_the_old_one(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), "actor", (cache(1),))
        waiting = desk.ask(Announce, endpoint(8, 1, "10.0.0.1:5"), None)
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:6"), "actor", (cache(1),))
        assert desk.value(waiting) is None  # the probe has not ended, and need not
        desk.tell(Lives, endpoint(7, 1, "10.0.0.1:5"))
        assert desk.get(LookUpAlias, "10.0.0.1:5") == endpoint(8, 1, "10.0.0.1:5")
        assert desk.get(Resolve, 7, KEY).endpoint == endpoint(7, 1, "10.0.0.1:6")
        desk.get(Announce, endpoint(7, 1, ""), "actor", (cache(1),))
        with pytest.raises(NotLinked):
            desk.get(LookUpAlias, "10.0.0.1:6")
        assert [each for each in desk.others if isinstance(each, Watch)] == [Watch(endpoint(7, 1, "10.0.0.1:5"))]

    def test_an_endpoint_that_is_refused_another_alias_keeps_its_own(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        desk.get(Announce, endpoint(8, 1, "10.0.0.1:6"), None, (cache(1),))
        request = desk.ask(Announce, endpoint(8, 1, "10.0.0.1:5"), None, (cache(1),))
        desk.tell(Lives, endpoint(7))
        with pytest.raises(AliasTaken):
            desk.value(request)
        assert desk.get(LookUpAlias, "10.0.0.1:6") == desk.get(Resolve, 8, KEY).endpoint

    def test_a_restarted_actor_that_now_wants_a_taken_alias_frees_its_cluster_id_for_who_waits(
        self, desk: Desk
    ) -> None:
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        desk.get(Announce, endpoint(8, 1), "actor")
        waiting = desk.ask(Announce, endpoint(8, 2), None)
        restarted = desk.ask(Announce, endpoint(8, 3, "10.0.0.1:5"), "actor")
        assert desk.value(waiting) is None
        assert restarted not in desk.answers
        desk.tell(Lives, endpoint(8, 2))
        with pytest.raises(ClusterIdTaken):
            desk.value(restarted)


class TestRetirement:
    def test_a_fabric_with_an_endpoint_does_not_end(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        assert desk.get(Retire) is False
        assert desk.get(Announce, endpoint(8), None) is None
        assert End() not in desk.others

    def test_an_empty_one_ends_and_lets_nobody_in(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        desk.get(Leave, endpoint(7))
        assert desk.get(Retire) is True
        assert desk.others[-1] == End()
        with pytest.raises(NotLinked, match="ended"):
            desk.get(Announce, endpoint(8), None)

    def test_a_restarted_scheduler_waits_for_who_may_return(self) -> None:
        desk = Desk(rebuild_until=103.0)
        first = desk.ask(Retire)
        assert not desk.answers
        desk.get(Announce, endpoint(7), None)
        assert desk.value(first) is False
        desk.get(Leave, endpoint(7))
        second = desk.ask(Retire)
        desk.pass_time(3)
        assert desk.value(second) is True


class TestRebuilding:
    def test_an_unknown_alias_and_an_unknown_cluster_id_are_waited_for(self) -> None:
        desk = Desk(rebuild_until=103.0)
        back = [desk.ask(LookUpAlias, "10.0.0.1:5"), desk.ask(LookUp, 7)]
        lost = [desk.ask(LookUpAlias, "10.0.0.1:6"), desk.ask(LookUp, 8)]
        assert not desk.answers
        desk.get(Announce, endpoint(7, 1, "10.0.0.1:5"), None)
        assert [desk.value(request) for request in back] == [endpoint(7, 1, "10.0.0.1:5")] * 2
        desk.pass_time(3)
        for request in lost:
            with pytest.raises(NotLinked):
                desk.value(request)

    def test_an_unknown_cluster_is_waited_for_after_a_restart(self) -> None:
        desk = Desk(rebuild_until=103.0)
        request = desk.ask(Resolve, 7, KEY)
        launch = desk.ask(Send, 8, Errand("e", "push_blocks", {}), None, BlocksCacheKey(7))
        assert not desk.answers
        desk.get(Announce, endpoint(7), None, (cache(1),))
        assert desk.value(request).cache == cache(1)
        desk.get(Announce, endpoint(8), "actor")
        assert desk.value(launch) == Call(launch, endpoint(8), Errand("e", "push_blocks", {}))

    def test_who_does_not_come_back_in_time_is_unknown(self) -> None:
        desk = Desk(rebuild_until=103.0)
        request = desk.ask(Resolve, 7, KEY)
        desk.pass_time(2.9)
        assert not desk.answers
        desk.pass_time(0.2)
        with pytest.raises(NotLinked):
            desk.value(request)
        with pytest.raises(NotLinked):
            desk.get(Resolve, 7, KEY)

    def test_a_caller_that_gave_up_is_never_answered(self) -> None:
        desk = Desk(rebuild_until=103.0)
        desk.tell(GaveUp, desk.ask(Resolve, 7, KEY))
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
        with pytest.raises(StaleIncarnation, match=r"incarnation 0{14}63 of endpoint 7 was .* \(incarnation 0{15}1,"):
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
INCARNATIONS = st.integers(1, 3)
ALIASES = st.sampled_from(["", "10.0.0.1:5", "10.0.0.2:5", "0.0.0.0:5", "10.0.0.1:6"])
CACHES = st.integers(1, 3)
MODELS = st.none() | st.integers(0, 1)


class Held(NamedTuple):
    """What the model knows of a member; `lease_until` and `caches` (cache_id: model_id) change."""

    who: EndpointInfo
    lease_until: float
    caches: dict[int, int | None]


def shares(one: str, other: str) -> bool:
    every = {"0.0.0.0:5": {"10.0.0.1:5", "10.0.0.2:5", "0.0.0.0:5"}, "": set()}
    return bool(every.get(one, {one}) & every.get(other, {other}))


class ControlMachine(RuleBasedStateMachine):
    """Any order of events against a dictionary of members and a list of who waits to be one."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.model: dict[int, Held] = {}
        self.contending: dict[int, EndpointInfo] = {}
        self.left: set[tuple[int, int]] = set()
        self.parked: dict[int, tuple[tuple[int, int], ...]] = {}  # polls that were not answered: whom they watch

    def _knows(self, cluster_id: int, incarnation: int) -> bool:
        return cluster_id in self.model and self.model[cluster_id].who.incarnation == incarnation

    def _tells_already(self, cluster_id: int, incarnation: int) -> bool:
        """An endpoint tells one change at a time: while an announcement of it waits, it says nothing else."""
        return (cluster_id, incarnation) in {(who.cluster_id, who.incarnation) for who in self.contending.values()}

    def _rivals(self, who: EndpointInfo) -> list[EndpointInfo]:
        return [
            held.who
            for held in self.model.values()
            if (
                held.who.incarnation != who.incarnation
                if held.who.cluster_id == who.cluster_id
                else shares(held.who.alias, who.alias)
            )
        ]

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, alias=ALIASES)
    def announce(self, cluster_id: int, incarnation: int, alias: str) -> None:
        who = endpoint(cluster_id, incarnation, alias)
        request = self.desk.ask(Announce, who, None)
        if (cluster_id, incarnation) in self.left:
            with pytest.raises(NotLinked, match="has left"):
                self.desk.value(request)
            return
        self.contending[request] = who
        self._let_in()

    def _let_in(self) -> None:
        """Who wants what nobody has gets it, in the order of asking; that may free what an older one waits for."""
        for request, who in self.contending.items():
            if not self._rivals(who):
                assert self.desk.value(request) is None
                self.model[who.cluster_id] = Held(who, self.desk.now + 15, {})
                del self.contending[request]
                self._supersede(request, who)
                return self._let_in()
        assert not set(self.contending) & set(self.desk.answers)
        return None

    def _supersede(self, entered: int, who: EndpointInfo) -> None:
        """What the same incarnation asked for before counts no more, and its caller is let go."""
        same = (who.cluster_id, who.incarnation)
        for request, other in list(self.contending.items()):
            if request < entered and (other.cluster_id, other.incarnation) == same:
                assert self.desk.value(request) is None
                del self.contending[request]

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, cache_id=CACHES, model_id=MODELS)
    def publish(self, cluster_id: int, incarnation: int, cache_id: int, model_id: int | None) -> None:
        if self._tells_already(cluster_id, incarnation):
            return
        request = self.desk.ask(Publish, endpoint(cluster_id, incarnation), cache(cache_id, model_id))
        if not self._knows(cluster_id, incarnation):
            with pytest.raises((NotLinked, StaleIncarnation)):
                self.desk.value(request)
            return
        held = self.model[cluster_id].caches
        if model_id is not None:
            held.update({other: None for other, model in held.items() if model == model_id})
        held[cache_id] = model_id

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, cache_id=CACHES)
    def withdraw(self, cluster_id: int, incarnation: int, cache_id: int) -> None:
        if self._tells_already(cluster_id, incarnation):
            return
        self.desk.get(Withdraw, endpoint(cluster_id, incarnation), cache_id)
        if self._knows(cluster_id, incarnation):
            self.model[cluster_id].caches.pop(cache_id, None)

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS, how=st.sampled_from([Leave, Died]))
    def go(self, cluster_id: int, incarnation: int, how: type) -> None:
        who = endpoint(cluster_id, incarnation)
        if how is Leave:
            self._forget_contenders(cluster_id, incarnation)
            self.desk.get(Leave, who)
        else:
            self.desk.tell(Died, who, "died")
        if self._knows(cluster_id, incarnation):
            del self.model[cluster_id]
            self._all_are_told((cluster_id, incarnation))
            self._let_in()

    def _forget_contenders(self, cluster_id: int, incarnation: int) -> None:
        self.left.add((cluster_id, incarnation))
        kept = {
            request: who
            for request, who in self.contending.items()
            if (who.cluster_id, who.incarnation) not in self.left
        }
        self.contending = kept

    def _all_are_told(self, gone: tuple[int, int]) -> None:
        for request in self.parked:
            orders = self.desk.value(request)
            assert orders.announce_again or [each.mark for each in orders.ended] == [gone]
        self.parked.clear()

    @rule(cluster_id=CLUSTERS, incarnation=INCARNATIONS)
    def prove_alive(self, cluster_id: int, incarnation: int) -> None:
        self.desk.tell(Lives, endpoint(cluster_id, incarnation))
        if not self._knows(cluster_id, incarnation):
            return
        holder = self.model[cluster_id].who
        for request, who in list(self.contending.items()):
            if holder in self._rivals(who):
                with pytest.raises(ClusterIdTaken if who.cluster_id == cluster_id else AliasTaken):
                    self.desk.value(request)
                del self.contending[request]

    @rule(
        cluster_id=CLUSTERS, incarnation=INCARNATIONS, watching=st.sets(st.tuples(CLUSTERS, INCARNATIONS), max_size=2)
    )
    def poll(self, cluster_id: int, incarnation: int, watching: set[tuple[int, int]]) -> None:
        request = self.desk.ask(Poll, endpoint(cluster_id, incarnation), (), tuple(watching))
        self.parked = {each: whom for each, whom in self.parked.items() if each not in self.desk.answers}
        knows, gone = self._knows(cluster_id, incarnation), {each for each in watching if not self._knows(*each)}
        if knows:
            self.model[cluster_id] = self.model[cluster_id]._replace(lease_until=self.desk.now + 15)
        if knows and not gone:
            self.parked[request] = tuple(watching)
            return
        orders = self.desk.value(request)
        assert (orders.announce_again, {each.mark for each in orders.ended}) == (not knows, gone)

    @precondition(lambda self: not self.contending)
    @rule(seconds=st.sampled_from([1, 4, 10]))
    def wait(self, seconds: int) -> None:
        self.desk.pass_time(seconds)
        self.parked = {each: whom for each, whom in self.parked.items() if each not in self.desk.answers}
        for cluster_id in [key for key, held in self.model.items() if held.lease_until <= self.desk.now]:
            del self.model[cluster_id]

    @rule(cluster_id=CLUSTERS, model_id=st.integers(0, 1))
    def resolve(self, cluster_id: int, model_id: int) -> None:
        request = self.desk.ask(Resolve, cluster_id, CacheName("model", 0, model_id))
        if cluster_id not in self.model:
            with pytest.raises(NotLinked):
                self.desk.value(request)
            return
        who, _, held = self.model[cluster_id]
        keyed = [cache_id for cache_id, model in held.items() if model == model_id]
        if not keyed:
            with pytest.raises(CacheNotFound):
                self.desk.value(request)
            return
        route = self.desk.value(request)
        assert (route.endpoint, [route.cache.cache_id]) == (who, keyed)

    @rule(alias=ALIASES)
    def look_up(self, alias: str) -> None:
        found = [held.who for held in self.model.values() if shares(held.who.alias, alias)]
        request = self.desk.ask(LookUpAlias, alias)
        if found:
            assert self.desk.value(request) in found
        else:
            with pytest.raises(NotLinked):
                self.desk.value(request)

    @invariant()
    def who_waits_watches_the_living(self) -> None:
        assert not set(self.parked) & set(self.desk.answers)
        assert all(self._knows(*each) for watching in self.parked.values() for each in watching)

    @invariant()
    def members_are_the_model(self) -> None:
        members = {
            member.endpoint.cluster_id: (
                member.endpoint,
                {cache_id: held.model_id for cache_id, held in member.caches.items()},
            )
            for member in self.desk.state.members()
        }
        assert members == {key: (held.who, held.caches) for key, held in self.model.items()}


TestControlMachine = ControlMachine.TestCase
TestControlMachine.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
