"""However a request or an engine ends: the answers that come are right, and every block is given back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve.engine import EngineFailed
from tests.serve.trio import TOKENS, Setting, Trio, prompts

Start = Callable[[Setting], Trio]

# A prompt of 1,500 tokens takes 47 steps: there is time to do something in the middle of it.
SLOW = Setting(budget=32, transfer_timeout_s=8.0, grant_wait_s=6.0)


def begin(trio: Trio, name: str, prompt: list[int], tokens: int = TOKENS) -> None:
    trio.decode.add(f"d-{name}", prompt, tokens, consumer_params(name, "prefill"))
    trio.prefill.add(f"p-{name}", prompt, 1, producer_params(name, "decode"))


def right(trio: Trio, prompt: list[int], output: dict[str, Any]) -> None:
    assert output["token_ids"] == trio.ask_plain([prompt])[0]


def test_requests_aborted_at_any_moment_on_either_side_leave_nothing_and_harm_nobody(start_trio: Start) -> None:
    trio = start_trio(Setting(budget=64, transfer_timeout_s=8.0, grant_wait_s=6.0))
    rng = random.Random(21)
    asked = prompts([rng.randrange(40, 900) for _ in range(40)], seed=21)
    fates = [rng.choice(["none", "decode", "prefill", "both"]) for _ in asked]
    for index, (prompt, fate) in enumerate(zip(asked, fates, strict=True)):
        begin(trio, f"a{index}", prompt)
        time.sleep(rng.random() * 0.15)
        for side, engine in (("decode", trio.decode), ("prefill", trio.prefill)):
            if fate in (side, "both"):
                engine.abort(f"{side[0]}-a{index}")
    for index, (prompt, fate) in enumerate(zip(asked, fates, strict=True)):
        if fate not in ("decode", "both"):
            right(trio, prompt, trio.decode.wait(f"d-a{index}"))
    trio.settle()


def test_a_request_with_the_policy_fail_ends_with_an_error(start_trio: Start) -> None:
    trio = start_trio(Setting(budget=32, policy="fail", transfer_timeout_s=2.0))
    (prompt,) = prompts([100], seed=36)
    trio.decode.add("d-f", prompt, TOKENS, consumer_params("f", "nobody"))
    output = trio.decode.wait("d-f", timeout_s=20)
    assert output["finish_reason"] == "error"
    trio.settle()


def test_a_decode_whose_prefill_never_comes_computes_the_prompt_itself_after_its_deadline(start_trio: Start) -> None:
    trio = start_trio(SLOW)
    (prompt,) = prompts([100], seed=35)
    trio.decode.add("d-m1", prompt, TOKENS, consumer_params("m1", "prefill"))
    trio.decode.add("d-m2", prompt, TOKENS, consumer_params("m2", "nobody"))
    for name in ("m2", "m1"):
        right(trio, prompt, trio.decode.wait(f"d-{name}", timeout_s=20))
    trio.settle()


def test_a_prefill_nobody_asks_for_is_given_up(start_trio: Start) -> None:
    """Its consumer was rejected before it reached the decode engine, or is an engine that never was."""
    trio = start_trio(SLOW)
    for name, target in (("n1", "decode"), ("n2", "nobody"), ("n3", None)):
        (prompt,) = prompts([100], seed=34)
        trio.prefill.add(f"p-{name}", prompt, 1, producer_params(name, target))
        trio.prefill.wait(f"p-{name}")
    trio.settle()


def test_a_prefill_engine_that_is_killed_in_the_middle_costs_no_answer_and_its_successor_serves(
    start_trio: Start,
) -> None:
    trio = start_trio(SLOW)
    (prompt,) = prompts([1500], seed=31)
    begin(trio, "k", prompt)
    while not trio.decode.ask("connector")["landed"]:
        time.sleep(0.01)
    trio.prefill.kill()
    right(trio, prompt, trio.decode.wait("d-k", timeout_s=20))
    trio.restart_prefill()
    (other,) = prompts([700], seed=32)
    begin(trio, "k2", other)
    right(trio, other, trio.decode.wait("d-k2"))
    trio.settle()


def test_engines_that_cannot_share_kv_refuse_each_other_at_the_start_and_name_the_field(start_trio: Start) -> None:
    trio = start_trio(SLOW)
    with pytest.raises(EngineFailed, match="block_size is 64 here and 32 there"):
        trio.start_another("stranger", block_size=64).wait_up()
    with pytest.raises(EngineFailed, match=r"dtype is torch.bfloat16 here and torch.float32 there"):
        trio.start_another("stranger", dtype="bfloat16").wait_up()


def test_a_decode_engine_that_is_killed_while_it_waits_keeps_no_block_of_the_prefill_engine(start_trio: Start) -> None:
    trio = start_trio(SLOW)
    (prompt,) = prompts([1500], seed=33)
    begin(trio, "g", prompt)
    while not trio.decode.ask("connector")["landed"]:
        time.sleep(0.01)
    trio.decode.kill()
    trio.prefill.wait("p-g")
    trio.settle(side="prefill")
