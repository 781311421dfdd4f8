"""How much of a push hides behind the prefill, from the timeline of real engines."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from ray_kvfabric.integrations.vllm.params import consumer_params, producer_params
from ray_kvfabric.integrations.vllm.picture import hidden_share, read_events
from tests.serve.trio import Setting, Trio, prompts

Start = Callable[[Setting], Trio]
LAYERS = 4
BUDGET = 256
PROMPT = 2000


def test_all_but_the_last_layer_of_the_last_chunk_has_left_before_the_prefill_ends(
    start_trio: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("timeline")
    trio = start_trio(Setting(budget=BUDGET, prefix_caching=False, timeline=str(folder)))
    shares = []
    for index, prompt in enumerate(prompts([PROMPT] * 9, seed=41)):
        trio.decode.add(f"d{index}", prompt, 2, consumer_params(f"t{index}", "prefill"))
        trio.prefill.add(f"p{index}", prompt, 1, producer_params(f"t{index}", "decode"))
        trio.prefill.wait(f"p{index}")
        trio.decode.wait(f"d{index}")
        shares.append(hidden_share(read_events(folder / "prefill-0.jsonl"), f"t{index}"))
    chunks = -(-PROMPT // BUDGET)
    print(f"left before the last layer ended: {sorted(shares)}")
    assert statistics.median(shares) >= 1 - 1.2 / (LAYERS * chunks)
