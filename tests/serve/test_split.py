"""A real vLLM split in two, engines in processes of their own: the tokens are those of an undivided engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from tests.serve.trio import TOKENS, VERSION, Setting, Trio, prompts

LENGTHS = (3, 20, 32, 64, 200, 300, 777, 1500)
Start = Callable[[Setting], Trio]

# Pairs of values: each two of different columns stand in one row. Each version runs its own rows.
ROWS = (
    Setting("0.32", 32, 128, True, "float32"),
    Setting("0.32", 64, 2560, False, "bfloat16"),
    Setting("0.29", 128, 256, False, "float32"),
    Setting("0.29", 64, 256, True, "float32"),
    Setting("0.29", 32, 2560, True, "bfloat16"),
    Setting("0.32", 128, 2560, True, "bfloat16"),
)
PAIRWISE = [row for row in ROWS if row.version == VERSION]


@pytest.mark.parametrize("setting", PAIRWISE, ids=str)
def test_the_split_gives_the_undivided_engines_tokens(start_trio: Start, setting: Setting) -> None:
    trio = start_trio(setting)
    shared = prompts([160], seed=7)[0]
    rounds = [
        prompts(LENGTHS, seed=1),
        prompts(LENGTHS, seed=1),  # both sides have cached prefixes now
        prompts([each for each in LENGTHS if each > 160], seed=2, prefix=shared),
    ]
    trio.prefill.add("warm", shared, 1)  # one side alone has
    trio.prefill.wait("warm")
    for number, asked in enumerate(rounds):
        expected = trio.ask_plain(asked)
        got = trio.ask_split(asked, decode_first=number != 1)
        assert [each["token_ids"] for each in got] == expected, f"round {number}"
    assert trio.decode.ask("connector")["is_in_fabric_memory"]
    trio.settle()


def test_a_prefix_that_only_the_decode_side_has_is_not_sent_again(start_trio: Start) -> None:
    trio = start_trio(PAIRWISE[0])
    (shared,) = prompts([192], seed=11)
    trio.decode.add("warm", shared, 1)
    trio.decode.wait("warm")
    asked = prompts([400, 500], seed=12, prefix=shared)
    assert [each["token_ids"] for each in trio.ask_split(asked)] == trio.ask_plain(asked)
    trio.settle()


def test_sixteen_requests_at_once_on_caches_that_are_too_small_for_them(start_trio: Start) -> None:
    """Preemption on the decode side, whose requests grow; the prefill side computes them in turn."""
    trio = start_trio(replace(PAIRWISE[0], blocks=56, prefix_caching=False, max_model_len=1024))
    asked = prompts([90 + 13 * each for each in range(16)], seed=3)
    expected = trio.ask_plain(asked, tokens=120)
    assert [each["token_ids"] for each in trio.ask_split(asked, tokens=120)] == expected
    assert trio.decode.ask("preemptions") > 0
    trio.settle()


def test_prefills_that_are_preempted_in_the_middle_are_sent_again(start_trio: Start) -> None:
    """The prefill engine generates for others as well, which take its blocks away as they grow."""
    small = replace(PAIRWISE[0], blocks=56, prefix_caching=False, max_model_len=1024, budget=32, reserves_prompts=False)
    trio = start_trio(small)
    fillers = prompts([120] * 6, seed=71)
    for index, prompt in enumerate(fillers):
        trio.prefill.add(f"filler-{index}", prompt, 300)
    asked = prompts([700, 500, 400], seed=72)
    expected = trio.ask_plain(asked)
    before = trio.prefill.ask("preemptions")
    for _ in range(3):
        assert [each["token_ids"] for each in trio.ask_split(asked)] == expected
    for index in range(len(fillers)):
        trio.prefill.wait(f"filler-{index}")
    assert trio.prefill.ask("preemptions") > before
    assert trio.prefill.ask("preempted_promises") > 0, "one whose KV was promised is among them"
    trio.settle()


def test_prompts_that_share_a_transfer_id_get_each_its_own_kv(start_trio: Start) -> None:
    """As those of one call do, and the answers to one prompt; an unlucky user's requests may as well."""
    trio = start_trio(PAIRWISE[0])
    (first, second, longer) = prompts([300, 300, 500], seed=73)
    asked = [first, second, longer, first, second]
    for index, prompt in enumerate(asked):
        trio.decode.add(f"d{index}", prompt, TOKENS, consumer_params("shared", "prefill"))
    for index, prompt in enumerate(reversed(asked[:3])):
        trio.prefill.add(f"p{index}", prompt, 1, producer_params("shared", "decode"))
    got = [trio.decode.wait(f"d{index}", timeout_s=20)["token_ids"] for index in range(len(asked))]
    assert got == trio.ask_plain(asked)
    trio.settle()


def test_a_prefill_that_writes_nothing_gives_other_tokens(start_trio: Start) -> None:
    """The negative control: were these equal, the tests above would prove nothing."""
    trio = start_trio(Setting(prefill_module="tests.serve.broken"))
    asked = prompts([64, 200, 300], seed=5)
    expected = trio.ask_plain(asked)
    got = [each["token_ids"] for each in trio.ask_split(asked)]
    assert all(mine != theirs for mine, theirs in zip(got, expected, strict=True))
