"""What a seed decides, and the two ports on which requests and replies are lost."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest

from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, PeerLost, TransferTimeout
from ray_kvfabric.testing.dict_peers import DictPeers
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.faults import (
    Event,
    Fault,
    FaultKind,
    FaultPlan,
    FaultyDirectory,
    FaultyPeers,
    Point,
    ray_rpc_failure,
)
from ray_kvfabric.testing.peer import LocalPeer

SETTINGS = EndpointSettings.model_validate({"transports": ("loopback",)})

# ---- the plan --------------------------------------------------------------------------------------


def test_a_decision_depends_on_nothing_but_seed_event_and_number() -> None:
    rates = {FaultKind.FLIP: 0.2, FaultKind.PAUSE: 0.2, FaultKind.LOSE_REPLY: 0.3}
    plan, again = FaultPlan(5, rates), pickle.loads(pickle.dumps(FaultPlan(5, rates)))
    numbers = list(range(300))
    forwards = [plan.decide(Event.PUSH, number) for number in numbers]
    assert forwards == [again.decide(Event.PUSH, number) for number in reversed(numbers)][::-1]
    assert forwards != [FaultPlan(6, rates).decide(Event.PUSH, number) for number in numbers]
    assert forwards != [plan.decide(Event.ASK, number) for number in numbers]


def test_rates_are_shares_of_the_events_that_a_fault_fits() -> None:
    plan = FaultPlan(1, {FaultKind.FLIP: 0.1, FaultKind.DIE: 0.3, FaultKind.LOSE_REQUEST: 0.5}, victim=77)
    pushes = [plan.decide(Event.PUSH, number) for number in range(4000)]
    kinds = Counter(fault.kind for fault in pushes if fault)
    assert set(kinds) == {FaultKind.FLIP, FaultKind.DIE}
    assert 300 < kinds[FaultKind.FLIP] < 500
    assert 1000 < kinds[FaultKind.DIE] < 1400
    assert {fault.point for fault in pushes if fault} == set(Point)
    assert {fault.pid for fault in pushes if fault} == {77}
    asked = Counter(fault.kind for number in range(1000) if (fault := plan.decide(Event.ASK, number)))
    assert set(asked) == {FaultKind.LOSE_REQUEST}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: FaultPlan(rates={FaultKind.FLIP: 1.5}), "rate of 'flip'.*1.5"),
        (lambda: FaultPlan(rates={FaultKind.FLIP: 0.6, FaultKind.DIE: 0.6}), "push sum up to 1.2"),
        (lambda: FaultPlan(steps={(Event.ASK, 3): Fault(FaultKind.FLIP)}), "ask 3 cannot be hit by 'flip'"),
        (lambda: Fault(FaultKind.FLIP, share=1.0), "share must be in"),
        (lambda: ray_rpc_failure(["x"], requests=60, replies=60), "percent of the same calls"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        wrong()  # type: ignore[operator]


def test_what_makes_ray_lose_calls_is_json_for_each_method() -> None:
    told = ray_rpc_failure(["A.grpc_client.b", "*"], requests=10, replies=20, in_flight=5, num_failures=7)
    lost = {"num_failures": 7, "req_failure_prob": 10, "resp_failure_prob": 20, "in_flight_failure_prob": 5}
    assert {name: json.loads(value) for name, value in told.items()} == {
        "RAY_testing_rpc_failure": {"A.grpc_client.b": lost, "*": lost}
    }


# ---- the ports -------------------------------------------------------------------------------------


def test_a_lost_request_never_arrives_and_a_lost_reply_took_effect() -> None:
    inner = DictDirectory()
    plan = FaultPlan(
        steps={(Event.CALL, 0): Fault(FaultKind.LOSE_REQUEST), (Event.CALL, 1): Fault(FaultKind.LOSE_REPLY)}
    )
    lossy, peer = FaultyDirectory(inner, plan), LocalPeer(1, DictDirectory(), SETTINGS)
    try:
        for arrived in (False, True):
            with pytest.raises(TransferTimeout, match="announce"):
                lossy.announce(peer.manager.endpoint, Deadline.after(1))
            assert (1 in inner.endpoints) is arrived
        assert lossy.endpoint(1, Deadline.after(1)) == peer.manager.endpoint
        assert [tuple(entry) for entry in lossy.log.entries] == [
            ("call", 0, "announce", "lose request", "TransferTimeout"),
            ("call", 1, "announce", "lose reply", "TransferTimeout"),
            ("call", 2, "endpoint", "", "answered"),
        ]
    finally:
        peer.close()


def test_a_question_is_lost_as_the_tests_owner_says() -> None:
    plan = FaultPlan(steps={(Event.ASK, 0): Fault(FaultKind.LOSE_REQUEST), (Event.ASK, 1): Fault(FaultKind.LOSE_REPLY)})
    inner, heard = DictPeers(), Counter[str]()
    peer = LocalPeer(1, DictDirectory(), SETTINGS)
    try:
        peer.manager.answers("hear", lambda arguments: heard.update([str(arguments["what"])]))
        inner.register(peer.manager)
        lossy = FaultyPeers(inner, plan, error=PeerLost)
        for what in "abc":
            if what == "c":
                lossy.ask(peer.manager.endpoint, "hear", {"what": what}, Deadline.after(1))
                continue
            with pytest.raises(PeerLost, match="hear"):
                lossy.ask(peer.manager.endpoint, "hear", {"what": what}, Deadline.after(1))
        assert heard == {"b": 1, "c": 1}
        assert [entry.fault for entry in lossy.log.entries] == ["lose request", "lose reply", ""]
    finally:
        peer.close()
