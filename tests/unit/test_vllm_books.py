"""The bookkeeping of KVFabricConnector against a model of an engine: chunks, prefix hits, preemption, abort at any
point, grants that come early, late or never, and pushes that run whenever they like.

A block's content is its position and how many tokens of it were computed; blocks that the engine takes back are
poisoned, so a push that reads too early or too late shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_kvfabric.integrations.vllm.decode_book import DecodeBook
from ray_kvfabric.integrations.vllm.layout import TensorForm, lay_out
from ray_kvfabric.integrations.vllm.orders import NULL_BLOCK, Begin, Decline, Finish, Gone, Orders, Part, Receive, Span
from ray_kvfabric.integrations.vllm.params import (
    BadParams,
    Remote,
    consumer_params,
    key_of,
    producer_params,
    promised_to,
    transfer_id_of,
    wanted_from,
)
from ray_kvfabric.integrations.vllm.prefill_book import PrefillBook
from ray_kvfabric.integrations.vllm.pushes import LaneGrant, Offer, Push
from ray_kvfabric.integrations.vllm.send_book import DELIVERED, LEFT, OTHER_NS, TAKEN, UNWANTED, SendBook

LAYERS = ("a", "b", "c")
FORM = TensorForm(64, 256)


@dataclass(frozen=True)
class FakeGrant:
    """What SendBook looks at of a Grant."""

    blocks: tuple[int, ...]

    @property
    def grant_id(self) -> str:
        return str(self.blocks)


def layout(groups: int = 1) -> Any:
    names = [[f"{layer}{group}" for layer in LAYERS] for group in range(groups)]
    return lay_out(names, {name: [FORM] for group in names for name in group})


def offer(transfer_id: str, num_tokens: int, firsts: list[int], size: int) -> Offer:
    stop = -(-num_tokens // size)
    grants = {
        lane: LaneGrant(first, FakeGrant(tuple(range(100 + first, 100 + stop)))) for lane, first in enumerate(firsts)
    }
    return Offer(transfer_id, num_tokens, grants)  # type: ignore[arg-type]


# ---- parameters ------------------------------------------------------------------------------------


def test_parameters_name_the_same_transfer_on_both_sides() -> None:
    assert wanted_from(consumer_params("t", "P")) == Remote("t", "P")
    assert promised_to(producer_params("t", "D")) == Remote("t", "D")
    assert wanted_from(None) is None
    assert wanted_from(producer_params("t", "D")) is None
    assert promised_to(consumer_params("t", "P")) is None


def test_a_producer_without_a_transfer_id_makes_one() -> None:
    first, second = (promised_to({"do_remote_decode": True}) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.transfer_id != second.transfer_id
    assert first.engine is None


@pytest.mark.parametrize("field", ["transfer_id", "remote_engine_id"])
def test_a_consumer_that_does_not_say_what_it_wants_is_told_the_field(field: str) -> None:
    with pytest.raises(BadParams, match=field):
        wanted_from({**consumer_params("t", "P"), field: None})


def test_a_request_that_wants_to_be_both_sides_is_told_so() -> None:
    both = {**consumer_params("t", "P"), "do_remote_decode": True}
    for side in (wanted_from, promised_to):
        with pytest.raises(BadParams, match="do_remote_prefill' and 'do_remote_decode"):
            side(both)


def test_each_prompt_of_a_transfer_has_a_key_of_its_own_and_both_sides_find_the_same() -> None:
    makings = ((), ("law",), ("law", "picture"), ("lawpicture",))
    keys = [key_of("t", tokens, *more) for tokens in ([1, 2], [2, 1], [1, 2, 0]) for more in makings]
    assert len(set(keys)) == len(keys)
    assert key_of("a/b", [1, 2]) == key_of("a/b", [1, 2])
    assert transfer_id_of(key_of("a/b", [1, 2])) == "a/b"


# ---- the decode side -------------------------------------------------------------------------------


def begun(num_tokens: int, computed: int, table: list[int], size: int = 4) -> Receive:
    book, orders = DecodeBook([size]), Orders()
    book.arrived("r", Remote("t", "P"), num_tokens, orders)
    external = book.wanted_tokens("r", computed)
    book.allocated("r", [table], external, orders)
    (receive,) = orders.receive
    return receive


def test_exactly_the_blocks_behind_the_prefix_hit_are_granted() -> None:
    assert begun(10, 4, [7, 8, 9]).spans == (Span(0, 1, (8, 9)),)
    assert begun(10, 0, [7, 8, 9, 11]).spans == (Span(0, 0, (7, 8, 9)),), "a block for tokens to come is not granted"


def test_blocks_that_a_sliding_window_has_passed_are_not_granted() -> None:
    assert begun(10, 0, [0, 0, 9]).spans == (Span(0, 2, (9,)),)


def test_a_transfer_is_asked_for_once() -> None:
    book, orders = DecodeBook([4]), Orders()
    book.arrived("r", Remote("t", "P"), 10, orders)
    assert book.wanted_tokens("r", 4) == book.wanted_tokens("r", 4) == 5, "asking has no effect"
    book.allocated("r", [[1, 2, 3]], 5, orders)
    book.allocated("r", [[1, 2, 3]], 0, orders)  # the engine's second call, once all has come
    assert book.wanted_tokens("r", 0) == 0, "it was preempted: it computes its own KV now"
    assert len(orders.receive) == 1


def test_a_request_that_ends_before_its_blocks_are_there_is_declined_and_one_after_is_revoked() -> None:
    book, orders = DecodeBook([4]), Orders()
    for req_id in ("early", "late", "over"):
        book.arrived(req_id, Remote(f"t-{req_id}", "P"), 10, orders)
    for req_id in ("late", "over"):
        book.allocated(req_id, [[1, 2, 3]], 10, orders)
    book.received("over")
    for req_id in ("early", "late", "over"):
        book.finished(req_id, orders)
    assert orders.decline == [Decline("t-early", "P")]
    assert orders.revoke == ["late"]
    assert book.num_open == 0


def test_a_request_that_the_engine_computes_itself_is_declined() -> None:
    book, orders = DecodeBook([4]), Orders()
    book.arrived("r", Remote("t", "P"), 10, orders)
    book.allocated("r", [[1, 2, 3]], 0, orders)
    book.finished("r", orders)
    assert orders.decline == [Decline("t", "P")]
    assert not orders.receive


def test_a_twin_computes_its_own_kv_until_the_first_one_is_over() -> None:
    """n > 1, or one prompt twice in a call: a grant names one request's blocks."""
    book, orders = DecodeBook([4]), Orders()
    for req_id in ("first", "twin"):
        book.arrived(req_id, Remote("t", "P"), 10, orders)
    assert [book.wanted_tokens(req_id, 0) for req_id in ("first", "twin")] == [9, 0]
    assert len(orders.expect) == 1
    book.allocated("first", [[1, 2, 3]], 10, orders)
    book.finished("twin", orders)
    assert not orders.revoke
    assert not orders.decline
    book.received("first")
    book.arrived("later", Remote("t", "P"), 10, orders)
    assert book.wanted_tokens("later", 0) == 9


# ---- the prefill side ------------------------------------------------------------------------------


def parts(orders: Orders) -> list[Part]:
    found, orders.parts = orders.parts, []
    return found


def test_chunks_bring_the_blocks_that_they_fill_and_the_last_one_the_rest() -> None:
    book, orders = PrefillBook([4]), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6]], 0, 6, orders)
    assert parts(orders) == [Part("r", (Span(0, 0, (5,)),), False)]
    book.continued("r", [[7]], 6, 4, orders)
    assert parts(orders) == [Part("r", (Span(0, 1, (6, 7)),), True)]
    book.continued("r", [[8]], 10, 1, orders)
    assert not parts(orders), "what is generated afterwards is nobody's"


def test_the_last_block_is_left_for_the_step_that_computes_the_last_token_and_may_write_into_it() -> None:
    for num_tokens, rest in ((9, (6,)), (10, (7,))):
        book, orders = PrefillBook([4]), Orders()
        book.arrived("r", Remote("t", None), num_tokens, orders)
        book.scheduled("r", [[5, 6, 7]], 0, num_tokens - 1, orders)
        (part,) = parts(orders)
        assert not part.is_last
        book.continued("r", None, num_tokens - 1, 1, orders)
        (part,) = parts(orders)
        assert part.is_last
        assert part.spans[0].blocks == rest


def test_what_came_from_the_prefix_cache_is_brought_with_the_first_chunk() -> None:
    book, orders = PrefillBook([4]), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6, 7]], 8, 2, orders)
    assert parts(orders) == [Part("r", (Span(0, 0, (5, 6, 7)),), True)]


def test_a_preempted_request_is_brought_again_from_its_first_block() -> None:
    book, orders = PrefillBook([4]), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6]], 0, 8, orders)
    parts(orders)
    book.preempted("r", orders)
    assert orders.drop == ["r"]
    book.scheduled("r", [[1, 2, 3]], 4, 6, orders)
    assert parts(orders) == [Part("r", (Span(0, 0, (1, 2, 3)),), True)]


def test_a_prefill_that_ends_after_its_preemption_is_not_whole() -> None:
    book, orders = PrefillBook([4]), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6, 7]], 0, 10, orders)
    book.preempted("r", orders)
    book.finished("r", [[]], orders)
    assert orders.finish[0].reason is not None


def test_a_prefill_that_ends_early_says_so_and_keeps_its_blocks_until_they_were_sent() -> None:
    book, orders = PrefillBook([4]), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6]], 0, 6, orders)
    assert book.finished("r", [[5, 6]], orders) == "t"
    (finish,) = orders.finish
    assert finish.reason is not None
    assert book.finished("r", [[5, 6]], orders) is None
    assert book.finished("other", [[]], orders) is None


def test_a_twin_of_an_open_prefill_promises_nothing() -> None:
    book, orders = PrefillBook([4]), Orders()
    for req_id in ("first", "twin"):
        book.arrived(req_id, Remote("t", None), 10, orders)
    assert [begin.req_id for begin in orders.begin] == ["first"]
    assert not book.has("twin")
    assert book.finished("twin", [[]], orders) is None
    assert book.finished("first", [[]], orders) == "t"
    book.arrived("later", Remote("t", None), 10, orders)
    assert book.has("later")


def test_blocks_that_left_the_window_at_the_end_or_later_are_said_to_be_gone() -> None:
    book, orders = PrefillBook([4, 4], {1: 4}), Orders()
    book.arrived("r", Remote("t", None), 10, orders)
    book.scheduled("r", [[5, 6, 7], [8, 9, 10]], 0, 10, orders)
    book.finished("r", [[0, 6, 7], [0, 9, 10]], orders)
    assert orders.gone == [Gone("r", 1, 1)], "group 0 attends to everything: nothing of it is taken back"
    book.arrived("s", Remote("u", None), 10, orders)
    book.scheduled("s", [[5, 6, 7], [8, 9, 10]], 0, 10, orders)
    book.continued("s", None, 11, 1, orders)
    assert orders.gone[1:] == [Gone("s", 1, 2)], "what it generates moves the window on"


def test_of_a_window_that_is_no_number_of_tokens_everything_counts_as_gone() -> None:
    book, orders = PrefillBook([4], {0: None}), Orders()
    book.arrived("s", Remote("u", None), 10, orders)
    book.scheduled("s", [[8, 9, 10]], 0, 10, orders)
    book.continued("s", None, 11, 1, orders)
    assert orders.gone == [Gone("s", 0, 3)]


# ---- pushes ----------------------------------------------------------------------------------------


def run_all(book: SendBook) -> list[Push]:
    done = []
    while (push := book.next_push()) is not None:
        book.ended(push, None)
        done.append(push)
    return done


def one_part(book: SendBook, blocks: tuple[int, ...], *, first: int = 0, req_id: str = "r") -> None:
    """The last one, layer by layer."""
    book.start_step([Part(req_id, (Span(0, first, blocks),), True)])
    for layer in LAYERS:
        book.saved(f"{layer}0", None, 0)
    book.end_step(None, 0)


def test_layers_that_waited_for_their_grant_leave_in_one_push_and_later_ones_one_by_one() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    book.start_step([Part("r", (Span(0, 0, (5, 6)),), True)])
    book.saved("a0", None, 0)
    book.saved("b0", None, 0)
    assert book.next_push() is None, "nothing is granted"
    assert book.offered(offer("t", 8, [0], 4), 0) is None
    (first,) = run_all(book)
    assert (first.piece.first_layer, first.piece.stop_layer, first.piece.seals) == (0, 2, False)
    book.saved("c0", None, 0)
    (second,) = run_all(book)
    assert (second.piece.first_layer, second.piece.stop_layer, second.piece.seals) == (2, 3, True)


def test_layers_that_no_hook_names_are_pushed_when_the_step_ends() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    book.offered(offer("t", 8, [0], 4), 0)
    book.start_step([Part("r", (Span(0, 0, (5, 6)),), True)])
    book.saved("", None, 0)
    book.end_step(None, 0)
    (push,) = run_all(book)
    assert (push.piece.first_layer, push.piece.stop_layer, push.piece.seals) == (0, 3, True)


def test_what_the_other_side_has_already_is_not_pushed() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 12))
    book.offered(offer("t", 12, [1], 4), 0)
    one_part(book, (5, 6, 7))
    (push,) = run_all(book)
    assert (push.piece.blocks, push.at) == ((6, 7), 0)


def test_grants_may_come_before_the_request() -> None:
    book = SendBook(layout())
    assert book.offered(offer("t", 8, [0], 4), 0) is None
    book.begin(Begin("r", "t", None, 8))
    one_part(book, (5, 6))
    assert run_all(book)
    book.finish(Finish("r", None), 0)
    assert book.take_sent() == ["r"]
    assert book.take_sent() == []


def test_a_transfer_that_came_with_another_prompt_is_told_soon_and_one_that_did_not_come_is_waited_for() -> None:
    book = SendBook(layout())
    keys = [key_of("t", [1, 2]), key_of("t", [1, 3]), key_of("u", [1, 2])]
    for key in keys[1:]:
        book.offered(offer(key, 8, [0], 4), 0)
    book.begin(Begin("r", keys[0], None, 8))
    book.forget_early(OTHER_NS)
    assert not book.take_failures(), "it may be on its way, as the prompts of one call come one by one"
    book.forget_early(OTHER_NS + 1)
    (failure,) = book.take_failures()
    assert "transfer t has another prompt" in failure.reason
    book.begin(Begin("s", keys[2], None, 8))
    one_part(book, (5, 6), req_id="s")
    assert run_all(book)


def test_a_prompt_that_is_asked_for_again_is_sent_again() -> None:
    book = SendBook(layout())
    for blocks in ((5, 6), (7, 8)):
        book.begin(Begin("r", "t", "D", 8))
        assert book.offered(offer("t", 8, [0], 4), 0) is None
        one_part(book, blocks)
        assert [push.piece.blocks for push in run_all(book)] == [blocks]
        book.finish(Finish("r", None), 0)
        assert book.take_sent() == ["r"]


def test_a_decline_is_for_one_request_and_a_later_one_is_sent() -> None:
    for comes_first in (True, False):
        book = SendBook(layout())
        if comes_first:
            book.declined("t")
        book.begin(Begin("r", "t", "D", 8))
        if not comes_first:
            book.declined("t")
        book.finish(Finish("r", None), 0)
        assert book.take_sent() == ["r"]
        book.begin(Begin("s", "t", "D", 8))
        assert book.offered(offer("t", 8, [0], 4), 0) is None
        one_part(book, (5, 6), req_id="s")
        assert run_all(book)


def test_a_transfer_that_is_asked_for_again_while_its_first_request_still_sends_is_not_forgotten_with_it() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", "D", 8))
    book.offered(offer("t", 8, [0], 4), 0)
    one_part(book, (5, 6))
    push = book.next_push()
    assert push is not None
    book.finish(Finish("r", None), 0)
    book.begin(Begin("s", "t", "D", 8))
    book.ended(push, None)
    assert book.take_sent() == ["r"]
    assert book.offered(offer("t", 8, [0], 4), 0) is None
    one_part(book, (7, 8), req_id="s")
    assert [each.piece.blocks for each in run_all(book)] == [(7, 8)]
    book.finish(Finish("s", None), 0)
    assert book.take_sent() == ["s"]


def test_a_small_push_does_not_overtake_a_large_one_of_its_request() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 16))
    book.start_step([Part("r", (Span(0, 0, (5, 6, 7)),), False)])
    book.end_step(None, 0)
    book.offered(offer("t", 16, [0], 4), 0)
    one_part(book, (8,), first=3)
    assert book.next_push(2 * 256) is None
    assert [push.piece.first for push in run_all(book)] == [0, 3]


def test_early_grants_are_forgotten_with_their_deadline() -> None:
    book = SendBook(layout(), early_ns=10)
    book.offered(offer("t", 8, [0], 4), 0)
    book.forget_early(11)
    book.begin(Begin("r", "t", None, 8))
    one_part(book, (5, 6))
    assert book.next_push() is None


def test_blocks_are_kept_until_a_grant_comes_and_given_back_when_it_was_used() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", "D", 8))
    one_part(book, (5, 6))
    book.finish(Finish("r", None), 7)
    assert book.take_sent() == []
    assert [(begin.req_id, since) for begin, since in book.held()] == [("r", 7)]
    book.offered(offer("t", 8, [0], 4), 0)
    run_all(book)
    assert book.take_sent() == ["r"]
    assert book.offered(offer("t", 8, [0], 4), 0) is None, "a late twin of the offer"
    assert book.offered(offer("t", 8, [1], 4), 0) == DELIVERED, "other grants for the same transfer"


def test_a_declined_request_gives_its_blocks_back_whether_the_word_comes_early_or_late() -> None:
    for comes_first in (True, False):
        book = SendBook(layout())
        if comes_first:
            book.declined("t")
        book.begin(Begin("r", "t", "D", 8))
        one_part(book, (5, 6))
        if not comes_first:
            book.declined("t")
        assert book.next_push() is None
        book.finish(Finish("r", None), 0)
        assert book.take_sent() == ["r"]
        assert book.offered(offer("t", 8, [0], 4), 0) == UNWANTED


def test_a_failed_push_ends_the_request_and_tells_every_receiver() -> None:
    book = SendBook(layout(groups=2))
    book.begin(Begin("r", "t", None, 8))
    book.offered(offer("t", 8, [0, 0], 4), 0)
    book.start_step([Part("r", (Span(0, 0, (5, 6)), Span(1, 0, (7, 8))), True)])
    book.end_step(None, 0)
    push = book.next_push()
    assert push is not None
    book.finish(Finish("r", None), 0)
    assert book.take_sent() == [], "it still reads"
    book.ended(push, "PeerLost: gone")
    assert book.next_push() is None
    assert [failure.reason for failure in book.take_failures()] == ["PeerLost: gone"] * 2
    assert book.take_sent() == ["r"]


def test_after_a_preemption_only_the_groups_that_had_not_sealed_are_pushed_again() -> None:
    book = SendBook(layout(groups=2))
    book.begin(Begin("r", "t", None, 4))
    book.offered(offer("t", 4, [0, 0], 4), 0)
    part = Part("r", (Span(0, 0, (5,)), Span(1, 0, (7,))), True)
    book.start_step([part])
    for layer in LAYERS:
        book.saved(f"{layer}0", None, 0)
    run_all(book)
    book.drop("r")
    book.start_step([part])
    book.end_step(None, 0)
    assert [push.piece.lane for push in run_all(book)] == [1]
    book.finish(Finish("r", None), 0)
    assert book.take_sent() == ["r"]


def windowed(firsts: list[int]) -> SendBook:
    """A request of two blocks and two groups, computed; the second group's grants begin at position `firsts[1]`."""
    book = SendBook(layout(groups=2))
    book.begin(Begin("r", "t", None, 8))
    if firsts:
        book.offered(offer("t", 8, firsts, 4), 0)
    book.start_step([Part("r", (Span(0, 0, (5, 6)), Span(1, 0, (7, 8))), True)])
    book.end_step(None, 0)
    return book


def test_blocks_that_are_gone_are_not_pushed_and_the_other_side_is_told() -> None:
    queued = windowed([0, 0])
    assert not queued.lose(Gone("r", 1, 1)), "nothing reads them"
    assert queued.next_push() is None
    assert len(queued.take_failures()) == 2
    parked = windowed([])
    parked.lose(Gone("r", 1, 1))
    refusal = parked.offered(offer("t", 8, [0, 0], 4), 0)
    assert refusal is not None
    assert "window" in refusal


def test_a_request_that_is_resumed_has_all_its_blocks_again() -> None:
    book = windowed([])
    book.lose(Gone("r", 1, 1))
    book.drop("r")
    book.offered(offer("t", 8, [0, 0], 4), 0)
    book.start_step([Part("r", (Span(0, 0, (9, 10)), Span(1, 0, (11, 12))), True)])
    book.end_step(None, 0)
    assert [push.piece.blocks for push in run_all(book)] == [(9, 10), (11, 12)]


def test_blocks_that_are_gone_and_that_nobody_wants_keep_no_other_from_leaving() -> None:
    for firsts in ([0, 1], []):
        book = windowed(firsts)
        assert not book.lose(Gone("r", 1, 1))
        assert book.offered(offer("t", 8, [0, 1], 4), 0) is None
        assert {push.piece.lane for push in run_all(book)} == {0, 1}


def test_a_push_that_reads_blocks_that_go_is_waited_for_and_counts() -> None:
    book = windowed([0, 0])
    pushes = {}
    while (push := book.next_push()) is not None:
        pushes[push.piece.lane] = push
        if push.piece.lane == 0:
            book.ended(push, None)
    assert book.lose(Gone("r", 1, 1))
    assert book.is_reading("r")
    book.ended(pushes[1], None)
    assert not book.is_reading("r")
    book.finish(Finish("r", None), 0)
    assert book.take_sent() == ["r"]
    assert not book.take_failures()


def test_a_second_requests_grants_for_the_same_transfer_are_refused_early_and_late() -> None:
    book = SendBook(layout())
    mine, other = offer("t", 8, [0], 4), offer("t", 8, [1], 4)
    for _ in ("early", "late"):
        assert book.offered(mine, 0) is None
        assert book.offered(mine, 0) is None, "a twin of the offer"
        assert book.offered(other, 0) == TAKEN
        if not book.num_open:
            book.begin(Begin("r", "t", None, 8))


def test_a_request_that_has_its_grants_is_not_given_up() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", "D", 8))
    one_part(book, (5, 6))
    book.finish(Finish("r", None), 0)
    assert book.held()
    book.offered(offer("t", 8, [0], 4), 0)
    book.give_up("r", "the warden looked before they came")
    assert run_all(book)


def test_a_small_push_takes_no_more_layers_along_than_it_may() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    book.offered(offer("t", 8, [0], 4), 0)
    one_part(book, (5, 6))
    push = book.next_push(2 * 2 * 256)
    assert push is not None
    assert (push.piece.first_layer, push.piece.stop_layer, push.nbytes) == (0, 2, 2 * 2 * 256)
    book.ended(push, None)
    assert book.next_push(2 * 256 - 1) is None


def test_a_part_without_blocks_is_no_push() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    book.offered(offer("t", 8, [0], 4), 0)
    book.start_step([Part("r", (Span(0, 0, ()),), False)])
    book.end_step(None, 0)
    assert not book.is_ready
    one_part(book, (5, 6))
    assert [push.piece.seals for push in run_all(book)] == [True]


def two_in_a_step() -> SendBook:
    book = SendBook(layout())
    for name in ("r", "s"):
        book.begin(Begin(name, f"t-{name}", None, 4))
        book.offered(offer(f"t-{name}", 4, [0], 4), 0)
    book.start_step([Part("r", (Span(0, 0, (5,)),), True), Part("s", (Span(0, 0, (6,)),), True)])
    return book


def test_what_goes_alone_waits_for_every_other_push() -> None:
    book = two_in_a_step()
    book.saved("a0", None, 0)
    first = book.next_alone(1 << 20)
    assert first is not None
    assert book.next_alone(1 << 20) is None
    book.ended(first, None)
    assert book.next_alone(1 << 20) is not None


def test_prompts_of_different_lengths_are_refused_and_say_so() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    refusal = book.offered(offer("t", 9, [0], 4), 0)
    assert refusal is not None
    assert "8 tokens here, 9 there" in refusal


def test_an_aborted_prefill_fails_the_grant_it_has_or_will_be_offered() -> None:
    book = SendBook(layout())
    book.begin(Begin("r", "t", None, 8))
    book.offered(offer("t", 8, [0], 4), 0)
    book.finish(Finish("r", "aborted"), 0)
    assert [failure.reason for failure in book.take_failures()] == ["aborted"]
    assert book.take_sent() == ["r"]
    assert book.offered(offer("t", 8, [0], 4), 0) == "aborted"


def test_one_requests_slow_push_does_not_keep_anothers_and_its_own_stay_in_order() -> None:
    book = two_in_a_step()
    book.saved("a0", None, 0)
    slow = book.next_push()
    book.saved("b0", None, 0)
    assert book.is_ready
    other = book.next_push()
    assert slow is not None
    assert other is not None
    assert (slow.req_id, other.req_id) == ("r", "s")
    assert book.next_push() is None, "r's next layers wait for its first"
    assert not book.is_ready


# ---- everything at once ----------------------------------------------------------------------------

POISON = ("poison", -1)


@dataclass
class Engine:
    """A producer's engine and the memory of both sides. `size` tokens a block; the prompt has one token more than is
    promised. With a `window` blocks are taken back that no token attends to any more.
    """

    num_tokens: int
    size: int
    first_there: int
    window: int | None
    is_fixed: bool  # the book knows the window
    rng: Any
    memory: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)  # (layer, block) here
    landed: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)  # (layer, position) there
    running: list[Push] = field(default_factory=list)
    next_block: int = 1
    table: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        windows = {} if self.window is None else {0: self.window if self.is_fixed else None}
        self.prefill, self.send = PrefillBook([self.size], windows), SendBook(layout())
        self.passed = 0  # the position below which blocks were taken back
        self.orders = Orders()
        self.prompt = self.num_tokens + 1
        self.lost: list[int] = []
        self.computed = 0
        self.sent: list[str] = []
        self.is_open = True

    def allocate(self, upto: int) -> list[int]:
        new = []
        while len(self.table) < -(-upto // self.size):
            self.table.append(self.next_block)
            new.append(self.next_block)
            self.next_block += 1
        return new

    def move_window(self) -> None:
        """As an engine does whenever it schedules the request, and when the request ends."""
        passed = 0 if self.window is None else max(0, self.computed - self.window + 1) // self.size
        self.passed = max(self.passed, passed)
        self.lost += [block for block in self.table[:passed] if block != NULL_BLOCK]
        self.table[:passed] = [NULL_BLOCK] * len(self.table[:passed])

    def step(self) -> None:
        """One chunk, or one generated token, layer by layer; pushes run in between."""
        count = min(self.rng(1, 8), max(self.prompt - self.computed, 1))
        if not self.table:
            hit = self.rng(0, (self.prompt - 1) // self.size) * self.size
            self.computed = hit
            count = min(count, self.prompt - hit)
            self.allocate(hit)
            for layer in LAYERS:  # the prefix cache has them
                for position, block in enumerate(self.table):
                    self.memory[layer, block] = (f"{layer}{position}", self.size)
            self.move_window()
            self.allocate(hit + count)
            self.prefill.scheduled("r", [self.table], hit, count, self.orders)
        else:
            self.move_window()
            added = self.allocate(self.computed + count)
            self.prefill.continued("r", [added], self.computed, count, self.orders)
        self.follow()
        done = self.computed + count
        for layer in LAYERS:
            for position in range(self.computed // self.size, -(-done // self.size)):
                filled = min(done - position * self.size, self.size)
                self.memory[layer, self.table[position]] = (f"{layer}{position}", filled)
            self.send.saved(f"{layer}0", None, 0)
            self.push_some()
        self.send.end_step(None, 0)
        self.computed = done

    def follow(self) -> None:
        orders, self.orders = self.orders, Orders()
        for req_id in orders.drop:
            if self.send.drop(req_id):
                self.land_all()  # as the connector waits
        for gone in orders.gone:
            if self.send.lose(gone):
                self.land_all()
        for layer in LAYERS:
            for block in self.lost:
                self.memory[layer, block] = POISON
        self.lost = []
        for begin in orders.begin:
            self.send.begin(begin)
        for finish in orders.finish:
            self.send.finish(finish, 0)
        self.send.start_step(orders.parts)

    def preempt(self) -> None:
        self.lost += self.table
        self.table, self.computed = [], 0
        self.prefill.preempted("r", self.orders)
        self.follow()

    def push_some(self) -> None:
        most_nbytes = self.rng(1, 6) * FORM.block_nbytes if self.rng(0, 1) else None
        is_ready = self.send.is_ready
        if self.rng(0, 1) and (push := self.send.next_push(most_nbytes)) is not None:
            assert is_ready, "a push thread would not have been woken for it"
            self.running.append(push)
        if self.rng(0, 3) == 0:
            self.land_all()

    def land_all(self) -> None:
        for push in self.running:
            for layer in LAYERS[push.piece.first_layer : push.piece.stop_layer]:
                for index, block in enumerate(push.piece.blocks):
                    self.landed[layer, push.at + index + self.first_there] = self.memory[layer, block]
            self.send.ended(push, None)
        self.running.clear()
        self.collect()

    def collect(self) -> None:
        self.sent += self.send.take_sent()
        if self.sent and self.is_open:
            self.is_open = False
            for layer in LAYERS:  # the engine uses the blocks for something else
                for block in self.table:
                    self.memory[layer, block] = POISON


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**63))
def test_whatever_happens_a_delivered_prompt_is_whole_and_its_blocks_are_given_back_once(seed: int) -> None:
    rng = Random(seed).randint
    size = 4
    num_tokens = rng(1, 40)
    last = -(-num_tokens // size)
    window = rng(2, 20) if rng(0, 1) else None  # of 1 nothing may be left to ask for
    seen_there = 0 if window is None else max(0, num_tokens - window + 1) // size
    first_there = max(rng(0, last - 1), min(seen_there, last - 1))
    is_fixed = bool(rng(0, 3))
    engine = Engine(num_tokens, size, first_there, window, is_fixed, rng)
    granted = offer("t", num_tokens, [first_there], size)
    events = {"offer": rng(0, 12), "decline": rng(0, 60), "abort": rng(0, 40), "preempt": rng(1, 12)}
    num_generated = rng(0, 3)
    engine.prefill.arrived("r", Remote("t", "D"), engine.prompt, engine.orders)
    is_offered = is_declined = is_aborted = False
    clock = 0
    refusal = None
    while engine.computed < engine.prompt + num_generated:
        if clock == events["offer"]:
            refusal, is_offered = engine.send.offered(granted, 0), True
        if clock == events["decline"]:
            engine.send.declined("t")
            is_declined = True
        if clock == events["abort"]:
            is_aborted = True
            break
        if clock == events["preempt"] and engine.table:
            engine.preempt()
        engine.step()
        clock += 1
    engine.move_window()
    engine.prefill.finished("r", [engine.table], engine.orders)
    engine.follow()
    if not is_offered and not is_declined:
        refusal = engine.send.offered(granted, 0)
    for _ in range(40):
        if (push := engine.send.next_push()) is not None:
            engine.running.append(push)
        engine.land_all()
    assert engine.sent == ["r"], "its blocks are given back, once"
    assert engine.send.num_open == 0
    told = {failure.reason for failure in engine.send.take_failures()}
    assert not engine.send.is_ready
    if not is_aborted and not is_declined and (told or refusal is not None):
        assert told | {refusal} <= {LEFT, None}
        assert window is not None
        assert engine.passed > first_there or not is_fixed, "what it lost was granted"
    if not is_aborted and not is_declined and refusal is None and not told:
        for layer in LAYERS:
            for position in range(first_there, last):
                name, filled = engine.landed[layer, position]
                assert name == f"{layer}{position}"
                assert filled >= min(num_tokens - position * size, size)
    assert all(content != POISON for content in engine.landed.values())
