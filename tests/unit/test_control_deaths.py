"""How the scheduler tells of deaths, of stale handles and of endpoints that drain: each rule by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.control.events import (
    Announce,
    Call,
    Died,
    Ended,
    Leave,
    LookUp,
    Orders,
    Poll,
    Resolve,
    Send,
)
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import CacheNotFound, EndpointDraining, NotLinked, StaleIncarnation
from ray_kvfabric.testing.directory import DictDirectory
from tests.unit.test_control import KEY, Desk, cache, endpoint

ERRAND = Errand("e", "push_blocks", {})


@pytest.fixture
def desk() -> Desk:
    return Desk()


def parked(desk: Desk, cluster_id: int, *watching: tuple[int, int]) -> int:
    """A member's poll that is not answered yet."""
    desk.get(Announce, endpoint(cluster_id), None)
    request = desk.ask(Poll, endpoint(cluster_id), (), watching)
    assert request not in desk.answers
    return request


class TestDeaths:
    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (lambda desk: desk.tell(Died, endpoint(9), "died"), "died"),
            (lambda desk: desk.get(Leave, endpoint(9)), "left the fabric"),
            (lambda desk: desk.get(Announce, endpoint(9, 2), "actor"), "was restarted"),
        ],
        ids=["died", "left", "restarted"],
    )
    def test_every_parked_poll_is_answered_with_it_at_once(self, desk: Desk, end, reason: str) -> None:
        desk.get(Announce, endpoint(9), "actor")
        polls = [parked(desk, 7, (9, 1)), parked(desk, 8)]  # the link of 8 may be younger than its poll
        own = desk.ask(Poll, endpoint(9), ())
        end(desk)
        news = Orders(ended=(Ended((9, 1), f"{endpoint(9)} {reason}"),))
        assert [desk.value(poll) for poll in polls] == [news, news]
        assert desk.value(own) == Orders(announce_again=True)

    def test_a_lease_that_is_over_is_told_too(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(9), None)
        desk.pass_time(14)
        poll = parked(desk, 7, (9, 1))
        desk.pass_time(1)
        assert [each.mark for each in desk.value(poll).ended] == [(9, 1)]

    def test_a_poll_that_watches_who_is_gone_is_answered_at_once_and_again(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(9, 2), None)
        desk.get(Announce, endpoint(7), None)
        for _ in range(2):  # the first answer was lost
            orders = desk.get(Poll, endpoint(7), (), ((9, 2), (9, 1), (5, 1)))
            assert orders == Orders(ended=tuple(Ended(each, "is not in the fabric") for each in ((9, 1), (5, 1))))

    def test_errands_and_deaths_come_home_together(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), None)
        desk.get(Send, 7, ERRAND)
        orders = desk.get(Poll, endpoint(7), (), ((9, 1),))
        assert (orders.errands, [each.mark for each in orders.ended]) == ((ERRAND,), [(9, 1)])

    def test_a_restarted_scheduler_waits_for_peers_before_it_says_that_they_are_gone(self) -> None:
        desk = Desk(rebuild_until=103.0)
        polls = [parked(desk, 7, (8, 1)), parked(desk, 8, (7, 1)), parked(desk, 6, (9, 1), (7, 1))]
        desk.pass_time(2)
        assert not set(polls) & set(desk.answers)
        desk.pass_time(1)
        assert desk.value(polls[2]) == Orders(ended=(Ended((9, 1), "is not in the fabric"),))
        assert not {*polls[:2]} & set(desk.answers)  # they watch each other, and both are back
        assert desk.get(Poll, endpoint(6), (), ((9, 1),)).ended


class TestStaleHandles:
    def test_a_handle_of_a_replaced_incarnation_is_refused_with_both(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7, 0xABC), "actor", (cache(1),))
        assert isinstance(desk.get(Send, 7, ERRAND, 0xABC), Call)
        desk.get(Announce, endpoint(7, 0xDEF), "actor", (cache(1),))
        both = r"incarnation 0000000000000abc of endpoint 7 was replaced by .*incarnation 0000000000000def"
        with pytest.raises(StaleIncarnation, match=both):
            desk.get(Send, 7, ERRAND, 0xABC)
        assert isinstance(desk.get(Send, 7, ERRAND), Call)  # a handle without one means whoever is there


class TestDraining:
    DRAINING = replace(endpoint(7), is_draining=True)

    def test_its_caches_are_refused_and_it_still_is_found_and_called(self, desk: Desk) -> None:
        desk.get(Announce, endpoint(7), "actor", (cache(1),))
        desk.get(Announce, endpoint(8), "actor", (cache(1),))
        desk.get(Announce, self.DRAINING, "actor", (cache(1),))
        for kind, *fields in ((Resolve, 7, KEY), (Send, 8, ERRAND, None, BlocksCacheKey(7))):
            with pytest.raises(EndpointDraining, match=r"endpoint 7 .* is draining and takes no new work"):
                desk.get(kind, *fields)
        assert desk.get(LookUp, 7) == self.DRAINING
        assert isinstance(desk.get(Send, 7, ERRAND, 1, BlocksCacheKey(8)), Call)
        assert [member.endpoint.is_draining for member in desk.state.members()] == [True, False]
        assert desk.state.describe()["endpoints_draining"] == 1

    def test_its_next_incarnation_takes_work(self, desk: Desk) -> None:
        desk.get(Announce, self.DRAINING, "actor", (cache(1),))
        desk.get(Announce, endpoint(7, 2), "actor", (cache(1),))
        assert desk.get(Resolve, 7, KEY).endpoint == endpoint(7, 2)

    def test_nobody_waits_for_it_while_a_scheduler_rebuilds(self) -> None:
        desk = Desk(rebuild_until=103.0)
        desk.get(Announce, self.DRAINING, "actor", (cache(1),))
        with pytest.raises(EndpointDraining):
            desk.get(Resolve, 7, KEY)

    def test_the_directory_of_tests_says_the_same(self) -> None:
        directory, deadline = DictDirectory(), Deadline.after(1)
        directory.announce(endpoint(7), deadline)
        directory.publish(endpoint(7), cache(1), deadline)
        assert directory.resolve(7, KEY, deadline).cache == cache(1)
        directory.announce(self.DRAINING, deadline)
        with pytest.raises(EndpointDraining, match="endpoint 7"):
            directory.resolve(7, KEY, deadline)
        assert directory.endpoint(7, deadline).is_draining
        assert issubclass(EndpointDraining, NotLinked)
        assert not issubclass(EndpointDraining, CacheNotFound)
