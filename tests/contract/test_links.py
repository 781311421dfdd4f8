"""Sections 9.5 to 9.10: links by address and by communicator, and switch_role."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ray_kvfabric import BlocksCacheKey
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed, LLMException, LLMStatusCode, PeerLost, TransferTimeout
from ray_kvfabric.integrations.llm_datadist import _engine
from ray_kvfabric.integrations.llm_datadist._calls import Calls
from tests.contract.conftest import deviates, invalid, refused, wrong_ints
from tests.contract.instances import (
    OK,
    PATIENCE_S,
    Background,
    Hold,
    Instances,
    instances,
    manager_of,
    offer,
    reaches,
)
from tests.contract.world import Ends, MemoryWorld, describe

ALREADY = LLMStatusCode.LLM_ALREADY_LINK
INVALID = LLMStatusCode.LLM_PARAM_INVALID
LINK_FAILED = LLMStatusCode.LLM_LINK_FAILED
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
UNLINK_FAILED = LLMStatusCode.LLM_UNLINK_FAILED
HIXL = {"llm__TransferBackend": "hixl"}
PAIR = {1: 0, 2: 1}


@pytest.fixture
def cast(llm_datadist: ModuleType, world: MemoryWorld) -> Iterator[Instances]:
    with instances(llm_datadist, world) as made:
        yield made


@pytest.fixture(params=["link_clusters", "unlink_clusters"])
def both(request: pytest.FixtureRequest) -> str:
    """What holds for either method."""
    return str(request.param)


def fails_with(code: LLMStatusCode, call: Callable[[], object]) -> None:
    with pytest.raises(LLMException) as caught:
        call()
    assert caught.value.status_code is code


def one(status: LLMStatusCode) -> tuple[LLMStatusCode, list[LLMStatusCode]]:
    """The outcome of a call with one cluster."""
    return status, [status]


class TestArguments:
    """Sections 9.5 and 9.6: what raises."""

    def test_the_timeout_is_a_positive_int32(self, cast: Instances, both: str) -> None:
        call = getattr(cast.open(), both)
        for value, kind in wrong_ints("int32"):
            with refused(kind, "timeout"):
                call([cast.info()], value)
        for value in (0, -1, False):
            with invalid("timeout"):
                call([cast.info()], value)

    def test_clusters_are_a_list_or_tuple_of_cluster_infos(self, cast: Instances, both: str) -> None:
        call = getattr(cast.open(), both)
        for clusters in (None, cast.info(), {1: cast.info()}, [None], [cast.info(), 2], "ab"):
            with refused(TypeError, "clusters"):
                call(clusters)
        assert len(call((cast.info(), cast.info(3)))[1]) == 2

    def test_the_remote_cluster_id_must_be_set(self, cast: Instances, both: str) -> None:
        info = cast.package.LLMClusterInfo()
        info.append_local_ip_info("127.0.0.1", 1)
        info.append_remote_ip_info("127.0.0.1", 2)
        with refused(TypeError, "remote_cluster_id"):
            getattr(cast.open(), both)([cast.info(), info])

    def test_an_ip_is_a_uint32_when_it_is_used(self, cast: Instances, both: str) -> None:
        call = getattr(cast.open(), both)
        for end in ("local", "remote"):
            info = cast.info()
            getattr(info, f"append_{end}_ip_info")(2**32, 1)
            with refused(TypeError, "ip"):
                call([info])

    def test_link_clusters_needs_a_local_address(self, cast: Instances) -> None:
        made = cast.open()
        cast.engine(2)
        info = cast.info()
        info.local_ip_info_list.clear()
        with invalid("local_ip_info_list is empty"):
            made.link_clusters([cast.info(), info])
        assert not reaches(made, 2)  # the first one was not linked either
        assert made.unlink_clusters([info]) == one(OK)

    @pytest.mark.parametrize("resource", ["", "anything"])
    def test_a_local_comm_res_that_says_something_replaces_it(self, cast: Instances, resource: str) -> None:
        made = cast.open(llm__LocalCommRes=resource)
        offer(cast.engine(2))
        info = cast.info()
        info.local_ip_info_list.clear()
        if resource:
            assert made.link_clusters([info]) == one(OK)
            assert reaches(made, 2)
        else:
            with invalid("local_ip_info_list is empty"):
                made.link_clusters([info])

    def test_force_is_a_bool(self, cast: Instances) -> None:
        made = cast.open()
        for force in (1, 0, "yes", None):
            with refused(TypeError, "force"):
                made.unlink_clusters([cast.info()], 100, force)


class TestOutcomes:
    """Sections 9.5 and 9.6: what does not raise but shows in the tuple."""

    def test_no_cluster_at_all(self, cast: Instances, both: str) -> None:
        assert getattr(cast.open(), both)([]) == (INVALID, [])

    def test_one_remote_address_no_more_no_less(self, cast: Instances, both: str) -> None:
        call = getattr(cast.open(), both)
        cast.engine(2)
        none, two = cast.info(), cast.info()
        none.remote_ip_info_list.clear()
        two.append_remote_ip_info("127.0.0.1", 26002)
        assert call([none, two]) == (INVALID, [INVALID, INVALID])

    def test_link_clusters_takes_one_local_address(self, cast: Instances) -> None:
        cast.engine(2)
        info = cast.info()
        info.append_local_ip_info("127.0.0.1", 26003)
        assert cast.open().link_clusters([info]) == one(INVALID)

    def test_several_local_addresses_with_a_local_comm_res(self, cast: Instances) -> None:
        cast.engine(2)
        info = cast.info()
        info.append_local_ip_info("127.0.0.1", 26003)
        assert cast.open(llm__LocalCommRes="{}").link_clusters([info]) == one(OK)

    def test_in_input_order_and_the_last_failure_is_the_whole_s(self, cast: Instances) -> None:
        made = cast.open()
        for cluster_id in (2, 4):
            cast.engine(cluster_id, 26000 + cluster_id)
        bad = cast.info(5)
        bad.remote_ip_info_list.clear()
        absent = cast.info(3, 26003)
        good = cast.info(4, 26004)
        assert made.link_clusters([absent, cast.info(2, 26002), bad, good]) == (
            INVALID,
            [LINK_FAILED, OK, INVALID, OK],
        )
        assert made.link_clusters([bad, good, absent]) == (LINK_FAILED, [INVALID, ALREADY, LINK_FAILED])

    def test_clusters_are_linked_side_by_side(self, cast: Instances) -> None:
        """Each answer waits until all three were asked."""
        made = cast.open()
        together = threading.Barrier(3, timeout=PATIENCE_S)
        ask = cast.world.peers.ask
        cast.world.peers.ask = lambda *arguments: together.wait() * 0 + 1 and ask(*arguments)  # type: ignore[method-assign]
        infos = []
        for cluster_id in (2, 3, 4):
            cast.engine(cluster_id, 26000 + cluster_id)
            infos.append(cast.info(cluster_id, 26000 + cluster_id))
        assert made.link_clusters(infos) == (OK, [OK] * 3)

    def test_a_peer_that_is_lost_while_it_is_asked(self, cast: Instances) -> None:
        made = cast.open()
        offer(cast.engine(2))
        cast.world.peers.ask = _raising(PeerLost("gone"))  # type: ignore[method-assign]
        assert made.link_clusters([cast.info()]) == one(LINK_FAILED)
        assert not reaches(made, 2)

    def test_a_peer_that_does_not_answer_in_time(self, cast: Instances) -> None:
        """The given timeout bounds the question, whatever the peer does with it."""
        assert deviates("half_open_peer")
        made = cast.open()
        cast.engine(2)
        left: list[float] = []

        def ask(peer: Any, question: str, arguments: Any, deadline: Deadline) -> object:
            left.append(deadline.remaining_s)
            raise TransferTimeout("silent")

        cast.world.peers.ask = ask  # type: ignore[method-assign]
        assert made.link_clusters([cast.info()], 70) == one(TIMEOUT)
        assert 0 < left[0] <= 0.07
        made._llm_datadist.links.add(2)
        assert made.unlink_clusters([cast.info()], 70) == one(TIMEOUT)
        assert made._llm_datadist.links.is_linked(2)

    def test_a_time_that_passed_before_anybody_was_found(self, cast: Instances) -> None:
        def endpoint_at(alias: str, deadline: Deadline) -> Any:
            raise TransferTimeout("no answer")

        made = cast.open()
        cast.world.directory.endpoint_at = endpoint_at  # type: ignore[method-assign]
        assert made.link_clusters([cast.info()]) == one(TIMEOUT)
        assert made.unlink_clusters([cast.info()]) == one(TIMEOUT)


def _raising(error: Exception) -> Callable[..., Any]:
    def ask(*arguments: object) -> Any:
        raise error

    return ask


class TestLinkClusters:
    """Section 9.5 with the comm backend."""

    @pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), OSError("x")])
    def test_nothing_that_a_peer_raises_is_raised(self, cast: Instances, error: Exception) -> None:
        made = cast.open()
        cast.engine(2)
        cast.world.peers.ask = _raising(error)  # type: ignore[method-assign]
        for call in (made.link_clusters, made.unlink_clusters):
            assert call([cast.info()]) == one(LLMStatusCode.LLM_FAILED)

    def test_of_two_calls_at_once_one_is_late(self, cast: Instances) -> None:
        made = cast.open()
        cast.engine(2)
        overall, each = made.link_clusters([cast.info()] * 2)
        assert (overall, sorted(each)) == (ALREADY, [OK, ALREADY])
        ask, inside = cast.world.peers.ask, threading.Event()

        def wait(*arguments: Any) -> Any:
            inside.set()
            time.sleep(0.2)
            return ask(*arguments)

        made.unlink_clusters([cast.info()])
        cast.world.peers.ask = wait  # type: ignore[method-assign]
        first = Background(lambda: made.link_clusters([cast.info()]))
        assert inside.wait(5)
        assert made.link_clusters([cast.info()]) == one(ALREADY)
        assert first.result() == one(OK)

    def test_a_link_by_communicator_is_one(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine(2)
        link_both(made, peer)
        assert made.link_clusters([cast.info()]) == one(ALREADY)

    def test_the_link_goes_whatever_id_it_was_named_by(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine(2)
        offer(peer)
        assert made.link_clusters([cast.info(77)]) == one(OK)
        assert reaches(made, 2)
        assert made.unlink_clusters([cast.info(77)]) == one(OK)
        assert made._llm_datadist.links.linked() == peer.links.linked() == {}

    def test_without_one_nobody_is_reached(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(made)
        offer(peer)
        assert not reaches(made, 2)
        assert not reaches(peer, 1)

    def test_one_call_serves_both_ends(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine()
        offer(made)
        offer(peer)
        assert made.link_clusters([cast.info()]) == one(OK)
        assert reaches(made, 2)
        assert reaches(peer, 1)

    def test_a_second_call_is_told_so_at_either_end(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        made.link_clusters([cast.info()])
        assert made.link_clusters([cast.info()]) == one(ALREADY)
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(ALREADY)

    def test_it_is_registered_under_the_id_that_the_peer_reports(self, cast: Instances) -> None:
        made = cast.open()
        offer(cast.engine(2))
        assert made.link_clusters([cast.info(77)]) == one(OK)
        assert reaches(made, 2)
        assert not reaches(made, 77)
        assert made.link_clusters([cast.info(2)]) == one(ALREADY)

    @pytest.mark.parametrize("near", ["0", "1"])
    def test_the_flags_of_both_ends_must_be_equal(self, cast: Instances, near: str) -> None:
        made = cast.open(llm__EnableRemoteCacheAccessible=near)
        far = cast.engine(2, llm__EnableRemoteCacheAccessible=str(1 - int(near)))
        assert made.link_clusters([cast.info()]) == one(INVALID)
        assert not far.links.is_linked(1)
        assert not made._llm_datadist.links.is_linked(2)

    def test_the_listening_end_has_any_role(self, cast: Instances) -> None:
        prompt = cast.package.LLMDataDist(cast.package.LLMRole.PROMPT, 1)
        prompt.init({"llm.EnableCacheManager": "1", "llm.EnableRemoteCacheAccessible": "1"})
        cast.engine(2)
        assert prompt.link_clusters([cast.info()]) == one(OK)

    def test_an_address_of_another_form_is_the_same(self, cast: Instances) -> None:
        info = cast.info()
        info.remote_ip_info_list[:] = []
        info.append_remote_ip_info("127.1", 26002)
        cast.engine(2)
        assert cast.open().link_clusters([info]) == one(OK)

    @pytest.mark.parametrize("listen", ["0.0.0.0:26002", "127.0.0.1:26002"])
    def test_0_0_0_0_is_every_ip(self, cast: Instances, listen: str) -> None:
        cast.engine(2, None, llm__listenIpInfo=listen)
        assert cast.open().link_clusters([cast.info()]) == one(OK)

    def test_oneself_by_one_s_own_address(self, cast: Instances) -> None:
        made = cast.open(26001)
        offer(made)
        assert not reaches(made, 1)
        assert made.link_clusters([cast.info(1, 26001)]) == one(OK)
        assert reaches(made, 1)
        assert made.link_clusters([cast.info(1, 26001)]) == one(ALREADY)
        assert made.unlink_clusters([cast.info(1, 26001)]) == one(OK)
        assert not reaches(made, 1)

    def test_it_does_not_set_the_linked_mark(self, cast: Instances) -> None:
        """After `link` remote_accessible=True is refused, not after this."""
        made = cast.open()
        cast.engine(2)
        made.link_clusters([cast.info()])
        made.cache_manager.register_blocks_cache(describe(1), [1], None, True)

    def test_a_link_that_only_the_server_still_has_is_replaced(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(made)
        made.link_clusters([cast.info()])
        assert reaches(peer, 1)
        made.finalize()
        made.init({"llm.EnableCacheManager": "1", "llm.EnableRemoteCacheAccessible": "1", **_POOL})
        offer(made)
        assert peer.links.is_linked(1)
        assert made.link_clusters([cast.info()]) == one(OK)
        assert reaches(peer, 1)

    def test_a_client_s_stale_link_is_told_so(self, cast: Instances) -> None:
        made = cast.open()
        cast.engine(2).finalize()
        made._llm_datadist.links.add(2)
        cast.engine(2)
        assert made.link_clusters([cast.info()]) == one(ALREADY)
        assert made.unlink_clusters([cast.info()], force=True) == one(OK)
        assert made.link_clusters([cast.info()]) == one(OK)


_POOL = {"llm.MemPoolConfig": '{"memory_size": 16777216}'}


class TestHixl:
    """Sections 9.5 to 9.8 with llm.TransferBackend hixl."""

    def test_only_the_initiator_may_transfer(self, cast: Instances) -> None:
        made, peer = cast.open(**HIXL), cast.engine(**HIXL)
        offer(made)
        offer(peer)
        assert made.link_clusters([cast.info()]) == one(OK)
        assert reaches(made, 2)
        assert not reaches(peer, 1)
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(OK)
        assert reaches(peer, 1)

    def test_the_caller_chooses_the_id(self, cast: Instances) -> None:
        made = cast.open(**HIXL)
        offer(cast.engine(**HIXL))
        assert made.link_clusters([cast.info(77)]) == one(OK)
        assert reaches(made, 77)
        assert not reaches(made, 2)
        assert made.link_clusters([cast.info(77)]) == one(ALREADY)
        assert made.unlink_clusters([cast.info(77)]) == one(OK)
        assert not reaches(made, 77)

    def test_a_chosen_id_lets_no_other_pass(self, cast: Instances) -> None:
        """A cache that was reached as 77's is not reached by its id as 2's."""
        made, peer = cast.open(**HIXL), cast.engine(**HIXL)
        manager, mine = made.cache_manager, None
        mine = manager.allocate_cache(describe())
        theirs = manager_of(peer).allocate_cache(describe())
        made.link_clusters([cast.info(77)])
        key = cast.package.CacheKeyByIdAndIndex
        manager.push_cache(key(77, theirs.cache_id), mine)
        fails_with(LLMStatusCode.LLM_NOT_YET_LINK, lambda: manager.push_cache(key(2, theirs.cache_id), mine))

    @pytest.mark.parametrize("force", [False, True])
    def test_unlinking_asks_nobody(self, cast: Instances, force: bool) -> None:
        made, peer = cast.open(**HIXL), cast.engine(**HIXL)
        made.link_clusters([cast.info()])
        peer.link_clusters([cast.info(1, 26001)], 1000)
        info = cast.info()
        info.remote_ip_info_list.clear()
        assert made.unlink_clusters([info], force=force) == one(OK)
        assert not made._llm_datadist.links.is_linked(2)
        assert peer.links.is_linked(1)

    def test_link_is_not_enabled(self, cast: Instances) -> None:
        made = cast.open(**HIXL)
        fails_with(LLMStatusCode.LLM_FEATURE_NOT_ENABLED, lambda: made.link("name", PAIR, "{}"))
        with invalid("comm_name"):  # arguments first
            made.link("", PAIR, "{}")

    def test_a_role_keeps_its_listen_address(self, cast: Instances) -> None:
        made = cast.open(26001, **HIXL)
        decoder = cast.package.LLMRole.DECODER
        not_enabled = LLMStatusCode.LLM_FEATURE_NOT_ENABLED
        fails_with(not_enabled, lambda: made.switch_role(decoder, {"llm.listenIpInfo": "127.0.0.1:26009"}))
        fails_with(not_enabled, lambda: made.switch_role(decoder, {"llm.listenIpInfo": "127.0.0.2:26001"}))
        assert made._role is cast.package.LLMRole.MIX
        made.switch_role(decoder, {"llm.listenIpInfo": "127.0.0.1:26001"})
        made.switch_role(decoder)
        assert made._role is decoder
        assert cast.engine(2, 26002, **HIXL).link_clusters([cast.info(1, 26001)], 1000) == one(OK)

    def test_a_role_is_accepted_while_linked(self, cast: Instances) -> None:
        made = cast.open(**HIXL)
        cast.engine(**HIXL)
        made.link_clusters([cast.info()])
        made.switch_role(cast.package.LLMRole.DECODER)


class TestUnlinkClusters:
    """Section 9.6 with the comm backend."""

    def test_it_ends_both_ends(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(made)
        offer(peer)
        made.link_clusters([cast.info()])
        assert reaches(made, 2)
        assert reaches(peer, 1)
        assert made.unlink_clusters([cast.info()]) == one(OK)
        assert not reaches(made, 2)
        assert not reaches(peer, 1)

    def test_the_accepting_end_may_do_it(self, cast: Instances) -> None:
        made, peer = cast.open(26001), cast.engine()
        made.link_clusters([cast.info()])
        assert peer.unlink_clusters([cast.info(1, 26001)], 1000, False) == one(OK)
        assert not made._llm_datadist.links.is_linked(2)

    def test_forced_it_ends_this_end_only(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(made)
        offer(peer)
        made.link_clusters([cast.info()])
        info = cast.info()
        info.remote_ip_info_list.clear()
        assert made.unlink_clusters([info], force=True) == one(OK)
        assert not reaches(made, 2)
        assert reaches(peer, 1)

    def test_after_it_one_may_link_again(self, cast: Instances) -> None:
        made = cast.open()
        offer(cast.engine(2))
        for _ in range(3):
            assert made.link_clusters([cast.info()]) == one(OK)
            assert reaches(made, 2)
            assert made.unlink_clusters([cast.info()]) == one(OK)
            assert not reaches(made, 2)

    @pytest.mark.parametrize("force", [False, True])
    def test_what_was_never_linked_succeeds(self, cast: Instances, force: bool) -> None:
        cast.engine(2)
        assert cast.open().unlink_clusters([cast.info()], force=force) == one(OK)

    def test_when_nobody_listens_the_link_stays(self, cast: Instances) -> None:
        made = cast.open()
        peer = cast.engine()
        offer(peer)
        made.link_clusters([cast.info()])
        peer.manager.listen("")  # switch_role does not stop it while it is linked
        assert made.unlink_clusters([cast.info()]) == one(UNLINK_FAILED)
        assert reaches(made, 2)
        assert made.unlink_clusters([cast.info()], force=True) == one(OK)
        assert not reaches(made, 2)

    def test_when_the_peer_is_lost_the_link_stays(self, cast: Instances) -> None:
        made = cast.open()
        cast.engine(2)
        made.link_clusters([cast.info()])
        cast.world.peers.ask = _raising(LinkFailed("lost"))  # type: ignore[method-assign]
        assert made.unlink_clusters([cast.info()]) == one(UNLINK_FAILED)
        assert made._llm_datadist.links.is_linked(2)

    @pytest.mark.parametrize("force", [False, True])
    def test_a_transfer_under_way_is_waited_for(self, cast: Instances, force: bool) -> None:
        made = cast.open()
        source = offer(made)
        offer(cast.engine(2))
        made.link_clusters([cast.info()])
        hold = Hold(cast.world)
        push = Background(lambda: made.cache_manager.push_blocks(BlocksCacheKey(2), source, [0], [0]))
        assert hold.came.wait(5)
        unlink = Background(lambda: made.unlink_clusters([cast.info()], 5000, force))
        assert unlink.lasts(0.1)
        hold.release()
        push.result()
        assert unlink.result() == one(OK)
        assert not reaches(made, 2)

    def test_a_transfer_of_the_peer_is_waited_for(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(made)
        made.link_clusters([cast.info()])
        with peer.calls.enter(1):
            unlink = Background(lambda: made.unlink_clusters([cast.info()]))
            assert unlink.lasts(0.1)
        assert unlink.result() == one(OK)

    def test_a_transfer_that_does_not_end_is_not_waited_for_forever(self, cast: Instances) -> None:
        assert deviates("bounded_waits")
        made = cast.open()
        cast.engine(2)
        made.link_clusters([cast.info()])
        with made._llm_datadist.calls.enter(2):
            assert made.unlink_clusters([cast.info()], 50) == one(TIMEOUT)
        assert not made._llm_datadist.links.is_linked(2)

    def test_a_call_that_goes_elsewhere_is_not_waited_for(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        made.link_clusters([cast.info()])
        with made._llm_datadist.calls.enter(3), peer.calls.enter(), made._llm_datadist.calls.enter():
            unlink = Background(lambda: made.unlink_clusters([cast.info()]))
            assert unlink.result() == one(OK)
        assert not peer.links.is_linked(1)

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("is_oneself", [False, True])
    def test_a_way_that_is_just_being_opened_keeps_nobody(self, cast: Instances, force: bool, is_oneself: bool) -> None:
        assert deviates("bounded_waits")
        made = cast.open()
        source = offer(made)
        other = made if is_oneself else cast.engine(2)
        if not is_oneself:
            offer(other)
        info = cast.info(1, 26001) if is_oneself else cast.info()
        made.link_clusters([info])
        hold = Hold(cast.world, info.remote_cluster_id)
        key = BlocksCacheKey(info.remote_cluster_id)
        push = Background(lambda: made.cache_manager.push_blocks(key, source, [0], [1]))
        assert hold.came.wait(5)
        unlink = Background(lambda: made.unlink_clusters([info], 50, force))
        assert not unlink.lasts(2)
        assert unlink.result() == one(TIMEOUT)
        hold.release()
        push.result()
        assert not reaches(made, info.remote_cluster_id)  # the way that was opened meanwhile was not kept

    def test_calls_that_come_later_are_not_waited_for(self) -> None:
        """Two threads that keep on transferring to others never leave a gap."""
        calls = Calls()
        drained = threading.Event()
        first, second = calls.enter(2), calls.enter(2)
        first.__enter__()
        waiting = Background(lambda: (calls.drain([2], Deadline.after(PATIENCE_S)), drained.set()))
        time.sleep(0.05)
        second.__enter__()
        assert not drained.is_set()
        first.__exit__(None, None, None)
        waiting.result()
        assert drained.is_set()
        second.__exit__(None, None, None)


class TestSwitchRole:
    """Section 9.7."""

    def test_arguments(self, cast: Instances) -> None:
        made, role = cast.open(), cast.package.LLMRole.DECODER
        for wrong, kind in [(1, TypeError), ("DECODER", TypeError), (None, KeyError)]:
            with refused(kind):  # type: ignore[arg-type]
                made.switch_role(wrong)
        for options in ([], "", {1: "1"}, {"a": 1}):
            with refused(TypeError, "switch_options"):
                made.switch_role(role, options)
        for listen, kind in [("127.0.0.1", LLMException), ("127.0.0.1:x", ValueError), ("host:1", RuntimeError)]:
            with refused(kind):  # type: ignore[arg-type]
                made.switch_role(role, {"llm.listenIpInfo": listen})
        assert made._role is cast.package.LLMRole.MIX

    def test_the_current_role_may_be_chosen(self, cast: Instances) -> None:
        made = cast.open(26001)
        made.switch_role(cast.package.LLMRole.MIX, {"llm.listenIpInfo": "127.0.0.1:26001"})
        made.switch_role(cast.package.LLMRole.DECODER)
        made.switch_role(cast.package.LLMRole.DECODER)
        assert made._role is cast.package.LLMRole.DECODER

    def test_a_bad_address_answers_before_a_live_link(self, cast: Instances) -> None:
        made = cast.open(26001)
        cast.engine()
        made.link_clusters([cast.info()])
        with refused(ValueError, "port"):
            made.switch_role(cast.package.LLMRole.DECODER, {"llm.listenIpInfo": "127.0.0.1:x"})

    @pytest.mark.parametrize("how", ["link_clusters", "link", "accepted"])
    def test_a_live_link_stands_in_the_way(self, cast: Instances, how: str) -> None:
        made, peer = cast.open(26001), cast.engine()
        if how == "link_clusters":
            made.link_clusters([cast.info()])
        elif how == "accepted":
            peer.link_clusters([cast.info(1, 26001)], 1000)
        else:
            link_both(made, peer)
        decoder = cast.package.LLMRole.DECODER
        fails_with(LLMStatusCode.LLM_EXIST_LINK, lambda: made.switch_role(decoder))
        assert made._role is cast.package.LLMRole.MIX
        if how == "link":
            made.unlink(1)
        else:
            made.unlink_clusters([cast.info()])
        made.switch_role(decoder)

    def test_another_port_moves_the_listening(self, cast: Instances) -> None:
        made, peer = cast.open(26001), cast.engine()
        made.switch_role(cast.package.LLMRole.DECODER, {"llm.listenIpInfo": "127.0.0.1:26009"})
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(LINK_FAILED)
        assert peer.link_clusters([cast.info(1, 26009)], 1000) == one(OK)

    def test_the_same_port_changes_nothing(self, cast: Instances) -> None:
        """The ip is not compared."""
        made, peer = cast.open(26001), cast.engine()
        made.switch_role(cast.package.LLMRole.DECODER, {"llm.listenIpInfo": "10.0.0.1:26001"})
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(OK)

    def test_without_the_option_it_stops_listening(self, cast: Instances) -> None:
        made, peer = cast.open(26001), cast.engine()
        made.switch_role(cast.package.LLMRole.DECODER)
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(LINK_FAILED)
        made.switch_role(cast.package.LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:26001"})
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(OK)

    def test_a_taken_address_leaves_the_old_one(self, cast: Instances) -> None:
        assert deviates("listen_alias")
        made, peer = cast.open(26001), cast.engine(2, 26002)
        fails_with(
            LLMStatusCode.LLM_FAILED,
            lambda: made.switch_role(cast.package.LLMRole.DECODER, {"llm.listenIpInfo": "127.0.0.1:26002"}),
        )
        assert made._role is cast.package.LLMRole.MIX
        assert peer.link_clusters([cast.info(1, 26001)], 1000) == one(OK)

    @pytest.mark.parametrize("role", ["PROMPT", "DECODER"])
    def test_transfers_do_not_depend_on_it(self, cast: Instances, role: str) -> None:
        made = cast.open()
        made.switch_role(cast.package.LLMRole[role])
        offer(cast.engine(2))
        made.link_clusters([cast.info()])
        assert reaches(made, 2)


def link_both(one_end: Any, other: Any, name: str = "name") -> tuple[int, int]:
    """An LLMDataDist and an engine call `link` at once."""
    call = Background(lambda: other.link(name, (1, 2)))
    comm_id = one_end.link(name, PAIR, "{}")
    return comm_id, call.result()


WRONG_LINKS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"comm_name": None}, TypeError, "comm_name"),
    ({"comm_name": 1}, TypeError, "comm_name"),
    ({"comm_name": ""}, LLMException, "comm_name"),
    ({"comm_name": "n" * 128}, LLMException, "comm_name"),
    ({"ranks": None}, AttributeError, "cluster_rank_info"),
    ({"ranks": [1]}, TypeError, "cluster_rank_info"),
    ({"ranks": {"1": 0}}, TypeError, "cluster_rank_info"),
    ({"ranks": {1: 0, 2: 1, 3: 2.0}}, TypeError, "cluster_rank_info"),
    ({"ranks": {-1: 0, 1: 1, 2: 2, 3: 3, 4: 4}}, LLMException, "at most 4"),
    ({"ranks": {-1: 2, 1: 1}}, ValueError, "cluster_rank_info"),
    ({"ranks": {2**64: 2, 1: 1}}, ValueError, "cluster_rank_info"),
    ({"ranks": {1: 2**32, 2: 1}}, ValueError, "cluster_rank_info"),
    ({"ranks": {2: -1, 3: 1}}, ValueError, "cluster_rank_info"),
    ({"table": None}, TypeError, "rank_table"),
    ({"table": 1}, TypeError, "rank_table"),
    ({"table": b""}, TypeError, "rank_table"),
    ({"ranks": {}}, LLMException, "at least 2"),
    ({"ranks": {2: 0}}, LLMException, "at least 2"),
    ({"ranks": {2: 1, 3: 0}}, LLMException, "ranks"),
    ({"ranks": {2: 0, 3: 1}}, LLMException, "not this cluster"),
]


class TestLinkArguments:
    """Section 9.8: the checks in their order, each before all that follow."""

    @pytest.mark.parametrize("index", range(len(WRONG_LINKS)))
    def test_the_first_mistake_answers(self, cast: Instances, index: int) -> None:
        """The later mistakes are made as well where an argument has room for both."""
        given = {"comm_name": "name", "ranks": {2: 1, 3: 0}, "table": 1}
        order = ["comm_name", "ranks", "table"]
        wrong, kind, says = WRONG_LINKS[index]
        given |= wrong
        if "table" not in wrong and index >= 15:  # what is checked after the table
            given["table"] = ""
        with refused(kind, says):
            cast.open().link(*(given[name] for name in order))
        assert not cast.world.peers.calls

    def test_of_invalid_ones_the_code_says_so(self, cast: Instances) -> None:
        made = cast.open()
        for wrong, kind, says in WRONG_LINKS:
            given = {"comm_name": "name", "ranks": {1: 0, 2: 1}, "table": "", **wrong}
            if kind is LLMException:
                with invalid(says):
                    made.link(given["comm_name"], given["ranks"], given["table"])

    def test_equal_ranks_do_not_fall(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        call = Background(lambda: peer.link("name", (1, 2)))
        assert made.link("name", {1: 3, 2: 3}, "no table at all") == 1
        assert call.result() == 1

    def test_ids_of_unlink_and_query(self, cast: Instances) -> None:
        made = cast.open()
        for method in (made.unlink, made.query_register_mem_status):
            for value, kind in wrong_ints("uint64"):
                with refused(kind, "comm_id"):
                    method(value)
            fails_with(LLMStatusCode.LLM_NOT_YET_LINK, lambda method=method: method(1))


class TestLink:
    """Sections 9.8 to 9.10."""

    def test_it_returns_when_all_members_have_called_it(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        first = Background(lambda: made.link("name", PAIR, "{}"))
        assert first.lasts(0.1)
        assert peer.link("name", (1, 2)) == 1
        assert first.result() == 1

    def test_four_members(self, cast: Instances) -> None:
        made = cast.open(None)
        peers = [cast.engine(cluster_id, None) for cluster_id in (2, 3, 4)]
        for end in (made, *peers):
            offer(end)
        calls = [Background(lambda peer=peer: peer.link("name", (1, 2, 3, 4))) for peer in peers]
        assert made.link("name", {1: 0, 2: 1, 3: 2, 4: 3}, "{}") == 1
        assert [call.result() for call in calls] == [1, 1, 1]
        assert all(reaches(one, other) for one in peers for other in (1, 2, 3, 4) if other != one.cluster_id)

    def test_both_ends_may_transfer(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        offer(made)
        offer(peer)
        link_both(made, peer)
        assert reaches(made, 2)
        assert reaches(peer, 1)

    def test_no_member_reaches_itself_by_it(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        offer(made)
        link_both(made, peer)
        assert not reaches(made, 1)

    def test_the_memory_is_ready_at_once(self, cast: Instances) -> None:
        assert deviates("link_is_ready")
        made, peer = cast.open(None), cast.engine(2, None)
        comm_id, _ = link_both(made, peer)
        assert made.query_register_mem_status(comm_id) is cast.package.RegisterMemStatus.OK

    def test_ids_count_from_1_and_are_not_used_again(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        assert link_both(made, peer) == (1, 1)
        assert link_both(made, peer, "another") == (2, 2)
        made.unlink(2)
        peer.unlink(2)
        assert link_both(made, peer) == (3, 3)
        made.finalize()
        made.init({"llm.EnableCacheManager": "1", "llm.EnableRemoteCacheAccessible": "1"})
        assert link_both(made, peer) == (1, 4)

    def test_nobody_else_comes(self, cast: Instances) -> None:
        made = cast.open(llm__LinkTotalTime="1")
        cast.engine(2)
        started = time.monotonic()
        fails_with(LINK_FAILED, lambda: made.link("name", PAIR, "{}"))
        assert 0.9 < time.monotonic() - started < 5
        made.cache_manager.register_blocks_cache(describe(1), [1], None, True)  # no mark was set

    @pytest.mark.parametrize("other", ["another name", "another member", "afterwards"])
    def test_the_others_call_must_match(self, cast: Instances, other: str) -> None:
        made, peer = cast.open(llm__LinkTotalTime="1"), cast.engine(2, llm__LinkTotalTime="1")
        name = "other" if other == "another name" else "name"
        members = (2, 3) if other == "another member" else (1, 2)
        if other == "afterwards":
            fails_with(LINK_FAILED, lambda: made.link("name", PAIR, "{}"))
            fails_with(LINK_FAILED, lambda: peer.link(name, members))
            return
        call = Background(lambda: peer.link(name, members))
        fails_with(LINK_FAILED, lambda: made.link("name", PAIR, "{}"))
        fails_with(LINK_FAILED, call.result)

    @pytest.mark.parametrize("unlinked", [False, True])
    def test_a_name_that_was_used_needs_all_members_again(self, cast: Instances, unlinked: bool) -> None:
        made, peer = cast.open(llm__LinkTotalTime="1"), cast.engine(2, llm__LinkTotalTime="1")
        comm_id, other_id = link_both(made, peer)
        if unlinked:
            made.unlink(comm_id)
        fails_with(LINK_FAILED, lambda: made.link("name", PAIR, "{}"))
        fails_with(LINK_FAILED, lambda: peer.link("name", (1, 2)))
        assert peer.query_register_mem_status(other_id) is cast.package.RegisterMemStatus.OK
        offer(peer)
        assert reaches(made, 2) != unlinked

    def test_members_are_the_same_at_all_ends(self, cast: Instances) -> None:
        made, peer = cast.open(llm__LinkTotalTime="1"), cast.engine(2, llm__LinkTotalTime="1")
        cast.engine(3, 26003)
        call = Background(lambda: peer.link("name", (1, 2, 3)))
        fails_with(LINK_FAILED, lambda: made.link("name", PAIR, "{}"))
        fails_with(LINK_FAILED, call.result)

    def test_members_may_be_named_in_any_order(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        call = Background(lambda: peer.link("name", (2, 1)))
        assert made.link("name", {1: 0, 2: 0}, "{}") == call.result() == 1

    def test_an_answer_that_was_lost_is_given_again(self, cast: Instances) -> None:
        """The peer has its link already when it is asked for the second time."""
        made, peer = cast.open(None), cast.engine(2, None)
        ask = cast.world.peers.ask

        def lose_one(asked: Any, question: str, arguments: Any, deadline: Any) -> Any:
            answer = ask(asked, question, arguments, deadline)
            if answer and question == _engine.MEET and arguments["cluster_id"] == 1:
                cast.world.peers.ask = ask  # type: ignore[method-assign]
                call.result()
                raise TransferTimeout("the answer was lost")
            return answer

        cast.world.peers.ask = lose_one  # type: ignore[method-assign]
        call = Background(lambda: peer.link("name", (1, 2)))
        assert made.link("name", PAIR, "{}") == 1

    def test_a_peer_that_cannot_be_asked_yet_is_asked_again(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        ask, failures = cast.world.peers.ask, [PeerLost("not yet"), TransferTimeout("busy")]

        def sometimes(*arguments: Any) -> object:
            if failures:
                raise failures.pop()
            return ask(*arguments)

        cast.world.peers.ask = sometimes  # type: ignore[method-assign]
        assert link_both(made, peer) == (1, 1)
        assert failures == []

    def test_a_member_that_leaves_at_once_has_been_there(
        self, cast: Instances, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other one looks only now and then: it would wait for somebody who is gone."""
        monkeypatch.setattr(_engine, "_NAP_S", 0.3)
        made, peer = cast.open(None), cast.engine(2, None)
        slow = Background(lambda: peer.link("name", (1, 2)))
        time.sleep(0.1)  # it has looked, and sleeps
        made.unlink(made.link("name", PAIR, "{}"))
        made.finalize()
        assert slow.result() == 1

    def test_the_newest_link_counts_and_the_older_one_may_go(self, cast: Instances) -> None:
        assert deviates("newest_link_stays")
        made, peer = cast.open(None), cast.engine(2, None)
        offer(peer)
        older, _ = link_both(made, peer, "older")
        newer, _ = link_both(made, peer, "newer")
        made.unlink(older)
        assert reaches(made, 2)
        made.unlink(newer)
        assert not reaches(made, 2)

    def test_the_newest_one_may_go_first(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        offer(peer)
        older, _ = link_both(made, peer, "older")
        newer, _ = link_both(made, peer, "newer")
        made.unlink(newer)
        assert reaches(made, 2)
        made.unlink(older)
        assert not reaches(made, 2)

    def test_a_link_by_address_is_another_one(self, cast: Instances) -> None:
        made, peer = cast.open(), cast.engine()
        offer(peer)
        made.link_clusters([cast.info()])
        comm_id, _ = link_both(made, peer)
        assert made.unlink_clusters([cast.info()]) == one(OK)
        assert reaches(made, 2)
        made.unlink(comm_id)
        assert not reaches(made, 2)

    def test_unlinking_ends_this_end(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        offer(made)
        offer(peer)
        comm_id, _ = link_both(made, peer)
        made.unlink(comm_id)
        assert not reaches(made, 2)
        assert reaches(peer, 1)
        fails_with(LLMStatusCode.LLM_NOT_YET_LINK, lambda: made.unlink(comm_id))
        fails_with(LLMStatusCode.LLM_NOT_YET_LINK, lambda: made.query_register_mem_status(comm_id))

    def test_unlinking_waits_for_a_transfer(self, cast: Instances) -> None:
        made, peer = cast.open(None), cast.engine(2, None)
        source = offer(made)
        offer(peer)
        comm_id, _ = link_both(made, peer)
        hold = Hold(cast.world)
        push = Background(lambda: made.cache_manager.push_blocks(BlocksCacheKey(2), source, [0], [0]))
        assert hold.came.wait(5)
        unlink = Background(lambda: made.unlink(comm_id))
        assert unlink.lasts(0.1)
        hold.release()
        push.result()
        unlink.result()

    def test_it_sets_the_mark_that_closes_registration(self, cast: Instances) -> None:
        """Section 11.1: nothing clears it, not even unlink."""
        made, peer = cast.open(None), cast.engine(2, None)
        comm_id, _ = link_both(made, peer)
        made.unlink(comm_id)
        with invalid("remote_accessible"):
            made.cache_manager.register_blocks_cache(describe(1), [1], None, True)

    def test_the_rank_table_is_not_read(self, cast: Instances) -> None:
        assert deviates("rank_table_not_read")
        made, peer = cast.open(None), cast.engine(2, None)
        call = Background(lambda: peer.link("name", (1, 2)))
        assert made.link("name", PAIR, "{ no JSON") == 1
        assert call.result() == 1


class TestPeersThatEnd:
    def test_a_restarted_peer_is_reached_by_the_old_link(self, ends: Ends) -> None:
        assert deviates("restarted_peer_is_reached")
        near, far = ends.open(1), ends.open(2)
        ends.link(near, far)
        source = near.manager.allocate_blocks_cache(describe())
        far.manager.allocate_blocks_cache(describe(), BlocksCacheKey(0))
        near.manager.push_blocks(BlocksCacheKey(2), source, [0], [0])
        far.manager.close() if far.engine is None else far.engine.finalize()
        ends.open(2).manager.allocate_blocks_cache(describe(), BlocksCacheKey(0))
        near.manager.push_blocks(BlocksCacheKey(2), source, [0], [0])

    def test_native_links_open_by_themselves(self, world: MemoryWorld) -> None:
        assert deviates("links_open_by_themselves").where == "native"
        ends = Ends("native", world)
        near, far = ends.open(1), ends.open(2)
        far.manager.allocate_blocks_cache(describe(), BlocksCacheKey(0))
        near.manager.push_blocks(BlocksCacheKey(2), near.manager.allocate_blocks_cache(describe()), [0], [0])
        ends.close()
