"""Long runs: many pushes against a model in numpy, and deaths at every moment of a push. `make stress` runs them."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from ray_kvfabric import LLMException
from ray_kvfabric.errors import PeerLost
from ray_kvfabric.testing.conformance import KEY, Pair, child_pair, source_bytes

NUM_PUSHES = 100_000
DEATHS = 40


@pytest.fixture(params=["shared_memory", "process_vm"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from child_pair(request.param, allocates=request.param == "shared_memory")


def test_no_push_of_very_many_differs_from_the_model(pair: Pair) -> None:
    seed = secrets.randbits(32)
    rng = random.Random(seed)
    source, target_id = pair.source_cache(), pair.target_cache()
    held, expected = source_bytes(source), pair.target_bytes(target_id)
    for number in range(NUM_PUSHES):
        count = rng.randint(1, 24)
        sources = [rng.randrange(24) for _ in range(count)]
        targets = [rng.randrange(24) for _ in range(count)]
        layer = rng.randrange(3)
        pair.manager.push_blocks(KEY, source, sources, targets, range(layer, layer + 1), range(layer, layer + 1))
        for block, other in zip(sources, targets, strict=True):
            expected[2 * layer : 2 * layer + 2, other] = held[2 * layer : 2 * layer + 2, block]
        if number % 5000 == 4999:
            np.testing.assert_array_equal(pair.target_bytes(target_id), expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize("death", range(DEATHS))
def test_a_target_killed_at_any_moment_is_reported_and_forgotten(death: int) -> None:
    files = set(os.listdir("/dev/shm"))
    for pair in child_pair("shared_memory"):
        shape = (32, 1 << 18)
        source, _ = pair.source_cache(shape, 4), pair.target_cache(shape, 4)
        pair.manager.push_blocks(KEY, source, [0], [0])
        timer = threading.Timer(random.random() * 0.1, pair.target.kill)  # type: ignore[union-attr]
        timer.start()
        deadline = time.monotonic() + 30
        with pytest.raises(LLMException) as caught:
            while time.monotonic() < deadline:
                pair.manager.push_blocks(KEY, source, list(range(32)), list(range(32)))
        timer.join()
        assert isinstance(caught.value, PeerLost)
        assert pair.manager.status()["links"] == []
    assert set(os.listdir("/dev/shm")) == files
