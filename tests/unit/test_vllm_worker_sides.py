"""Producer and consumer over real caches and grants in one process, without an engine: numpy arrays are the layers.

The shapes are vLLM's (one tensor a layer) and Ascend's (K and V apart, parts of unequal sizes, layers without a name).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.vllm.consumer import Consumer
from ray_kvfabric.integrations.vllm.layout import KVLayout, LayoutMismatch, TensorForm, Terms, describe_lanes, lay_out
from ray_kvfabric.integrations.vllm.offer_text import shown_offer
from ray_kvfabric.integrations.vllm.orders import Begin, Decline, Expect, Finish, Orders, Part, Receive, Span
from ray_kvfabric.integrations.vllm.producer import Producer
from ray_kvfabric.integrations.vllm.pushes import Offer
from ray_kvfabric.integrations.vllm.seat import cluster_id_of
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings
from ray_kvfabric.integrations.vllm.tally import Tally, merged, readable
from ray_kvfabric.testing.dict_peers import DictPeers
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.transport import notices

BLOCKS = 16
LAYERS = ("a", "b", "c")
SHAPES = {
    "one tensor a layer": [[256]],
    "K and V apart": [[128, 128]],
    "parts of unequal sizes": [[512, 64]],
    "groups of different shapes": [[256], [64, 64]],
}


@dataclass
class Side:
    manager: CacheManager
    arrays: dict[str, list[np.ndarray]]
    caches: list[Any]


class Pair:
    def __init__(
        self, shapes: list[list[int]], settings: ConnectorSettings | None = None, **differing: tuple[str, str]
    ) -> None:
        """`differing` are terms, each as the two sides have it."""
        settings = settings or ConnectorSettings(transfer_timeout_s=5, push_timeout_s=2, ask_timeout_s=2)
        self.groups = [[f"{layer}{group}" for layer in LAYERS] for group in range(len(shapes))]
        forms = {
            name: [TensorForm(BLOCKS, nbytes) for nbytes in shapes[group]]
            for group, names in enumerate(self.groups)
            for name in names
        }
        self.layout = lay_out(self.groups, forms)
        self.directory, self.peers = DictDirectory(), DictPeers()
        self.sides = [self._side("P", forms, 1), self._side("D", forms, 0)]
        self.tally = Tally()
        same = ("kv_cache", describe_lanes(self.layout.lanes))
        terms = [
            Terms(name, (same, *((field, values[side]) for field, values in differing.items())))
            for side, name in enumerate(("P", "D"))
        ]
        source, target = self.sides
        self.producer = Producer(source.manager, self.layout, source.caches, terms[0], 0, settings, self.tally)
        self.consumer = Consumer(target.manager, self.layout, target.caches, terms[1], 0, settings, Tally())

    def _side(self, name: str, forms: dict[str, list[TensorForm]], seed: int) -> Side:
        manager = CacheManager(
            cluster_id_of(name, 0), directory=self.directory, peers=self.peers, settings=EndpointSettings(mem_pool=None)
        )
        self.peers.register(manager)
        random = np.random.default_rng(seed)
        arrays = {
            layer: [
                random.integers(0, 255, (form.num_blocks, form.block_nbytes), np.uint8) if seed
                else np.zeros((form.num_blocks, form.block_nbytes), np.uint8)
                for form in mine
            ]
            for layer, mine in forms.items()
        }  # fmt: skip
        return Side(manager, arrays, list(register(manager, self.layout, arrays)))

    def receive(self, req_id: str, transfer_id: str, first: int = 0, source: str = "P") -> None:
        spans = tuple(Span(group, first, tuple(range(8 + first, 12))) for group in range(len(self.groups)))
        self.consumer.follow(Orders(receive=[Receive(req_id, transfer_id, source, 16, spans)]))

    def compute(self, req_id: str, blocks: range, *, is_last: bool, name_layers: bool = True) -> None:
        spans = tuple(Span(group, blocks.start, tuple(blocks)) for group in range(len(self.groups)))
        self.producer.follow(Orders(parts=[Part(req_id, spans, is_last)]))
        for index in range(len(LAYERS)):
            for names in self.groups:
                self.producer.save(names[index] if name_layers else "")
        self.producer.end_step()

    def equal(self, first: int = 0) -> bool:
        source, target = self.sides
        return all(
            np.array_equal(mine[first:4], theirs[8 + first : 12])
            for layer in source.arrays
            for mine, theirs in zip(source.arrays[layer], target.arrays[layer], strict=True)
        )

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()
        for side in self.sides:
            side.manager.close()


def register(manager: CacheManager, layout: KVLayout, arrays: dict[str, list[np.ndarray]]) -> Iterator[Any]:
    for lane, members in zip(layout.lanes, layout.tensors, strict=True):
        desc = CacheDesc(len(members), list(lane.form), DataType.DT_INT8, Placement.HOST)
        yield manager.register_blocks_cache(desc, [arrays[layer][index] for layer, index in members], grants_only=True)


def eventually(condition: Callable[[], Any], within_s: float = 5.0) -> Any:
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(SHAPES["one tensor a layer"])
    yield made
    made.close()


@pytest.mark.parametrize("comes_first", ["grant", "layers"])
@pytest.mark.parametrize("name_layers", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_every_tensor_of_every_layer_lands(shapes: list[list[int]], name_layers: bool, comes_first: str) -> None:
    pair = Pair(shapes)
    try:
        pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
        if comes_first == "grant":
            pair.receive("d", "t")
            eventually(lambda: pair.producer._book._sending["p"].grants)
        pair.compute("p", range(2), is_last=False, name_layers=name_layers)
        if comes_first == "layers":
            pair.receive("d", "t")
        pair.compute("p", range(2, 4), is_last=True, name_layers=name_layers)
        (ended,) = eventually(pair.consumer.take_ended)
        assert (ended.req_id, ended.has_failed, ended.blocks) == ("d", False, ())
        assert pair.equal()
        pair.producer.follow(Orders(finish=[Finish("p", None)]))
        assert eventually(pair.producer.take_sent) == ["p"]
        assert pair.consumer.num_open == pair.producer.num_open == 0
    finally:
        pair.close()


def test_a_suffix_is_paired_with_what_it_is_the_suffix_of(pair: Pair) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t", first=2)
    pair.compute("p", range(4), is_last=True)
    eventually(pair.consumer.take_ended)
    assert pair.equal(first=2)
    assert not pair.sides[1].arrays["a0"][0][:10].any(), "what the consumer had is not written"


def test_an_aborted_request_is_reported_once_and_its_blocks_are_never_written_again(pair: Pair) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t")
    pair.compute("p", range(2), is_last=False)
    eventually(lambda: pair.sides[1].arrays["c0"][0][9].any())
    pair.consumer.follow(Orders(revoke=["d"]))
    (ended,) = eventually(pair.consumer.take_ended)
    assert (ended.req_id, ended.has_failed) == ("d", False), "nobody wants a second try"
    pair.sides[1].arrays["a0"][0][:] = 0
    pair.compute("p", range(2, 4), is_last=True)
    pair.producer.follow(Orders(finish=[Finish("p", None)]))
    assert eventually(pair.producer.take_sent) == ["p"]
    assert not pair.sides[1].arrays["a0"][0].any()
    pair.consumer.close()  # its threads have ended
    assert not pair.consumer.take_ended()


def test_a_prefill_that_ends_early_fails_its_consumer_at_once_and_names_the_blocks(pair: Pair) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t")
    pair.compute("p", range(2), is_last=False)
    pair.producer.follow(Orders(finish=[Finish("p", "aborted")]))
    (ended,) = eventually(pair.consumer.take_ended, within_s=2.0)
    assert ended.has_failed
    assert ended.blocks == (8, 9, 10, 11)
    assert eventually(pair.producer.take_sent) == ["p"]


def test_a_consumer_whose_producer_is_not_there_fails_at_once(pair: Pair) -> None:
    pair.receive("d", "t", source="nobody")
    (ended,) = eventually(pair.consumer.take_ended, within_s=2.0)
    assert ended.has_failed


def test_a_request_to_an_engine_that_has_changed_since_the_start_is_refused_and_nothing_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = Pair(SHAPES["one tensor a layer"], dtype=("bf16", "fp16"))
    try:
        pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
        pair.receive("d", "t")
        (ended,) = eventually(pair.consumer.take_ended, within_s=2.0)
        assert ended.has_failed
        assert "dtype is bf16 here and fp16 there" in caplog.text
        pair.compute("p", range(4), is_last=True)
        assert not pair.sides[1].arrays["a0"][0].any()
    finally:
        pair.close()


def test_what_is_verified_lands_as_well() -> None:
    pair = Pair(SHAPES["K and V apart"], ConnectorSettings(verify="crc32c", transfer_timeout_s=5))
    try:
        pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
        pair.receive("d", "t")
        eventually(lambda: pair.producer._book._sending["p"].grants)
        assert all(each.grant.verify for each in pair.producer._book._sending["p"].grants.values())
        pair.compute("p", range(2), is_last=False)
        pair.compute("p", range(2, 4), is_last=True)
        (ended,) = eventually(pair.consumer.take_ended)
        assert not ended.has_failed
        assert pair.equal()
    finally:
        pair.close()


def test_a_consumer_that_declines_frees_the_producers_blocks(pair: Pair) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.consumer.follow(Orders(expect=[Expect("t")]))
    pair.compute("p", range(4), is_last=True)
    pair.producer.follow(Orders(finish=[Finish("p", None)]))
    assert not pair.producer.take_sent()
    pair.consumer.follow(Orders(decline=[Decline("t", "P")]))
    assert eventually(pair.producer.take_sent) == ["p"]


def test_a_layer_that_is_said_twice_or_has_no_cache_is_pushed_once_or_not_at_all(pair: Pair) -> None:
    """As vllm-ascend says it: before its attention and after it, and nameless for layers without a cache."""
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t")
    eventually(lambda: pair.producer._book._sending["p"].grants)
    pair.producer.follow(Orders(parts=[Part("p", (Span(0, 0, tuple(range(4))),), True)]))
    for layer in ("a0", "", "a0", "b0", "linear", "b0", "c0", "c0"):
        pair.producer.save(layer)
    pair.producer.end_step()
    eventually(pair.consumer.take_ended)
    assert pair.equal()
    counts = pair.tally.take()
    assert counts is not None
    assert counts["bytes_pushed"] == 3 * 4 * 256


def test_what_landed_early_counts_as_hidden(pair: Pair) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t")
    eventually(lambda: pair.producer._book._sending["p"].grants)
    pair.compute("p", range(4), is_last=True)
    eventually(pair.consumer.take_ended)
    counts = pair.tally.take()
    assert counts is not None
    assert counts["bytes_pushed"] == 3 * 4 * 256
    assert counts["bytes_hidden"] == 2 * 4 * 256, "all but the last layer"
    assert readable(counts)["hidden_share"] == 0.667
    assert pair.tally.take() is None


def test_a_mismatch_names_the_field_and_both_sides() -> None:
    here, there = (Terms(name, (("dtype", dtype), ("heads", "8"))) for name, dtype in (("P", "bf16"), ("D", "fp16")))
    with pytest.raises(LayoutMismatch, match="engine P cannot share KV with D: dtype is bf16 here and fp16 there"):
        here.check(there)
    assert here.digest != there.digest


def test_engines_with_other_numbers_of_blocks_fit() -> None:
    few, many = (lay_out([["a"]], {"a": [TensorForm(blocks, 256)]}) for blocks in (8, 800))
    assert describe_lanes(few.lanes) == describe_lanes(many.lanes)


def test_a_layer_without_a_tensor_and_an_unknown_setting_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="layer 'b' of KV group 0 has no KV cache tensor"):
        lay_out([["a", "b"]], {"a": [TensorForm(8, 256)], "b": []})
    with pytest.raises(ConfigError, match="transfer_timeout"):
        ConnectorSettings.of({"transfer_timeout": 3})


def test_sums_of_two_workers_add_up() -> None:
    assert merged({"pushes": 1}, {"pushes": 2, "failed_PeerLost": 1}) == {"pushes": 3, "failed_PeerLost": 1}


def test_small_layers_are_pushed_without_waking_a_push_thread(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.receive("d", "t")
    eventually(lambda: pair.producer._book._sending["p"].grants)
    woken = []
    monkeypatch.setattr(pair.producer._has_work, "notify", lambda: woken.append(threading.current_thread().name))
    pair.compute("p", range(2), is_last=False)
    pair.compute("p", range(2, 4), is_last=True)
    (ended,) = eventually(pair.consumer.take_ended)
    assert not ended.has_failed
    assert pair.equal()
    assert woken == []


def test_the_directory_is_asked_once_about_an_engine_and_again_when_it_was_replaced(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = pair.directory
    asked = []
    find = directory.endpoint
    monkeypatch.setattr(directory, "endpoint", lambda *what: (asked.append(what[0]), find(*what))[1])
    for number in range(3):
        pair.producer.follow(Orders(begin=[Begin(f"p{number}", f"t{number}", "D", 16)]))
        pair.receive(f"d{number}", f"t{number}")
        eventually(lambda number=number: pair.producer._book._sending[f"p{number}"].grants)
        pair.consumer.follow(Orders(revoke=[f"d{number}"]))
        eventually(pair.consumer.take_ended)
    assert asked == [cluster_id_of("P", 0)]
    pair.consumer._peers["P"] = replace(pair.consumer._peers["P"], incarnation=99)  # as before a restart
    pair.receive("d", "t")
    pair.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    pair.compute("p", range(4), is_last=True)
    (ended,) = eventually(pair.consumer.take_ended)
    assert not ended.has_failed
    assert len(asked) == 2


@pytest.fixture
def met(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair that has done one transfer: each knows the other, and what is asked by a call is counted anew.

    Nobody gives an offer up because this machine is slow.
    """
    transfer(pair, "0")
    monkeypatch.setattr(notices, "AWAY_S", 5.0)
    monkeypatch.setattr(notices, "LOOKS_S", 5.0)
    pair.peers.calls.clear()
    return pair


def transfer(pair: Pair, name: str) -> None:
    pair.producer.follow(Orders(begin=[Begin(f"p{name}", name, "D", 16)]))
    pair.receive(f"d{name}", name)
    pair.compute(f"p{name}", range(4), is_last=True)
    (ended,) = eventually(pair.consumer.take_ended)
    assert (ended.req_id, ended.has_failed) == (f"d{name}", False)
    pair.producer.follow(Orders(finish=[Finish(f"p{name}", None)]))
    assert eventually(pair.producer.take_sent) == [f"p{name}"]


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those of a consumer whose offer is not found yet."""
    taken: list[float] = []

    def nap(seconds: float) -> None:
        if seconds == notices.NAP_S:
            taken.append(seconds)
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(notices.time, "sleep", nap)
    return taken


def first_part() -> Part:
    return Part("p", (Span(0, 0, (0, 1)),), False)


def granted(pair: Pair) -> object:
    return pair.producer._book._sending["p"].grants


@pytest.mark.parametrize("comes_first", ["producer", "consumer"])
def test_a_producer_that_computes_finds_the_offer_of_a_consumer_that_it_knows_without_a_call(
    met: Pair, comes_first: str
) -> None:
    if comes_first == "consumer":
        met.receive("d", "t")
        eventually(lambda: met.sides[1].manager._identity.page.shown)
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)], parts=[first_part()]))
    if comes_first == "producer":
        met.receive("d", "t")
    met.sides[1].arrays["a0"][0][:] = 0
    eventually(lambda: met.producer.save("a0") or met.producer._look_for_offers() or granted(met))
    for layer in ("b0", "c0"):
        met.producer.save(layer)
    met.producer.end_step()
    met.compute("p", range(2, 4), is_last=True)
    (ended,) = eventually(met.consumer.take_ended)
    assert not ended.has_failed
    assert met.equal()
    assert "vllm.offer" not in met.peers.calls


def test_an_offer_is_found_between_two_layers_and_what_was_parked_is_pushed_with_the_next(met: Pair) -> None:
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    spans = (Span(0, 0, tuple(range(4))),)
    met.producer.follow(Orders(parts=[Part("p", spans, True)]))
    met.producer.save("a0")
    met.receive("d", "t")
    eventually(lambda: met.sides[1].manager._identity.page.shown)
    met.sides[1].arrays["a0"][0][:] = 0
    met.producer.save("b0")
    source, target = (side.arrays for side in met.sides)
    assert all(np.array_equal(source[layer][0][:4], target[layer][0][8:12]) for layer in ("a0", "b0"))
    met.producer.save("c0")
    eventually(met.consumer.take_ended)
    assert met.equal()
    assert "vllm.offer" not in met.peers.calls


def test_a_producer_that_holds_what_it_has_computed_is_called_at_once(met: Pair, naps: list[float]) -> None:
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    met.compute("p", range(4), is_last=True)
    met.receive("d", "t")
    (ended,) = eventually(met.consumer.take_ended)
    assert not ended.has_failed
    assert met.peers.calls["vllm.offer"] == 1
    assert not naps


def test_an_offer_that_comes_in_the_moment_of_the_last_layer_is_found(met: Pair, naps: list[float]) -> None:
    """Between the last look of a step's layers and its end, where the producer says that it looks no more."""
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    met.producer.follow(Orders(parts=[Part("p", (Span(0, 0, tuple(range(4))),), True)]))
    for layer in ("a0", "b0", "c0"):
        met.producer.save(layer)
    met.receive("d", "t")
    eventually(lambda: naps)
    met.producer.end_step()
    (ended,) = eventually(met.consumer.take_ended)
    assert not ended.has_failed
    assert "vllm.offer" not in met.peers.calls


def test_an_offer_that_is_found_when_a_step_begins_without_this_prompt_brings_what_was_parked(met: Pair) -> None:
    """No layer of it is saved in such a step, so nobody but a push thread would push it."""
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)], parts=[first_part()]))
    for layer in ("a0", "b0", "c0"):
        met.producer.save(layer)
    met.producer.end_step()
    met.receive("d", "t")
    eventually(lambda: met.sides[1].manager._identity.page.shown)
    met.sides[1].arrays["c0"][0][:] = 0
    met.producer.follow(Orders(begin=[Begin("q", "u", "D", 16)]))
    assert granted(met)
    eventually(lambda: met.sides[1].arrays["c0"][0][9].any(), within_s=0.5)


def test_a_request_that_only_waits_for_its_turn_promises_nobody_to_come_by(met: Pair, naps: list[float]) -> None:
    met.producer.follow(Orders(begin=[Begin("q", "u", "D", 16)]))
    met.receive("d", "t")
    eventually(lambda: met.peers.calls["vllm.offer"])
    assert not naps


def test_an_offer_that_is_made_by_a_call_after_all_of_it_has_landed_is_no_failure(met: Pair) -> None:
    """It was found while the consumer gave it up, and the prompt had ended when the call came."""
    made = []
    ask = met.consumer._ask

    def late(*what: Any) -> object:
        made.append(what[2]["offer"])
        transfer_is_over.wait(5)
        return ask(*what)

    transfer_is_over = threading.Event()
    met.consumer._ask = late  # type: ignore[method-assign]
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    met.receive("d", "t")
    (offer,) = eventually(lambda: made)
    assert met.producer._book.offered(offer, 0) is None
    met.compute("p", range(4), is_last=True)
    met.producer.follow(Orders(finish=[Finish("p", None)]))
    assert eventually(met.producer.take_sent) == ["p"]
    transfer_is_over.set()
    (ended,) = eventually(met.consumer.take_ended)
    assert not ended.has_failed
    assert met.equal()


def test_a_producer_that_is_not_there_yet_is_called_after_a_moment(
    met: Pair, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "AWAY_S", 0.02)
    met.receive("d", "t")
    eventually(lambda: met.peers.calls["vllm.offer"])
    assert naps
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    met.compute("p", range(4), is_last=True)
    (ended,) = eventually(met.consumer.take_ended)
    assert not ended.has_failed


@pytest.mark.parametrize("case", ["way closed", "other terms", "no offer"])
def test_an_offer_that_cannot_be_taken_at_a_glance_is_made_by_a_call(met: Pair, case: str) -> None:
    source, target = met.sides
    met.producer.follow(Orders(begin=[Begin("p", "t", "D", 16)]))
    if case == "way closed":
        met.producer._manager.forget_ways(target.manager.endpoint.cluster_id)
    if case == "other terms":
        met.consumer._terms = Terms("D", (("dtype", "fp16"),))
    if case == "no offer":
        target.manager.show(source.manager.endpoint, b'{"terms": 1}')
    met.receive("d", "t")
    if case == "no offer":
        met.compute("p", range(4), is_last=True)
    else:
        met.producer.follow(Orders(parts=[Part("p", (Span(0, 0, tuple(range(4))),), True)]))
        eventually(lambda: met.producer._look_for_offers() or met.peers.calls["vllm.offer"])
        met.producer.end_step()
    (ended,) = eventually(met.consumer.take_ended)
    assert ended.has_failed == (case == "other terms")


def test_an_offer_that_is_shown_is_the_one_that_is_made_by_a_call(met: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the producer, which may have taken the one just before it is asked the other, refused it."""
    shown: list[bytes] = []
    called: list[Offer] = []
    monkeypatch.setattr(met.consumer._manager, "show", lambda _, text: shown.append(text))
    monkeypatch.setattr(met.producer._book, "offered", lambda offer, _: called.append(offer))
    met.receive("d", "t")
    eventually(lambda: called)
    found = shown_offer(shown[0])
    assert found is not None
    assert [found.offer] == called
