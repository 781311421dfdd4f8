"""Where the demo's K and V lie: copies between host arrays and a cache, and the refusals of what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.demo.home import InPlace, Mirrored, home_of
from ray_kvfabric.demo.place import Place
from ray_kvfabric.errors import ConfigError, UnknownTransport

SHAPE = [4, 3, 2, 2]  # blocks, tokens, heads, head_dim
LAYERS = 2


@pytest.fixture
def memory() -> list[torch.Tensor]:
    """The bytes of K and V of two layers; tensor t is full of t + 1."""
    return [torch.full(SHAPE, float(tensor + 1)).reshape(-1).view(torch.uint8) for tensor in range(2 * LAYERS)]


def cache_over(memory: list[torch.Tensor], placement: Placement) -> Cache:
    """A manager's handle; the test's device is torch's CPU."""
    desc = CacheDesc(len(memory), SHAPE, DataType.DT_FLOAT, placement)

    def opened(index: int) -> object:
        return memory[index] if placement is Placement.DEVICE else memoryview(memory[index].numpy())

    return Cache(1, desc, [each.data_ptr() for each in memory], True, opened)


def held(memory: list[torch.Tensor], tensor: int) -> list[float]:
    """The first number of each block."""
    return memory[tensor].view(torch.float32).reshape(SHAPE[0], -1)[:, 0].tolist()


def test_in_place_the_arrays_are_the_cache(memory: list[torch.Tensor]) -> None:
    home = home_of(cache_over(memory, Placement.HOST), [2, 0])
    assert isinstance(home, InPlace)
    home.kv.values[1][2] = 9
    home.store(1, [2])
    home.load(1, [2])
    assert held(memory, 3) == [4, 4, 9, 4]


def test_a_mirror_starts_as_zeros_and_gets_what_is_loaded_only(memory: list[torch.Tensor]) -> None:
    home = home_of(cache_over(memory, Placement.DEVICE), [2, 0])
    assert isinstance(home, Mirrored)
    assert not np.any([*home.kv.keys, *home.kv.values])
    home.load(1, [2, 0])
    assert [block[0, 0, 0] for block in home.kv.keys[1]] == [3, 0, 3, 0]
    assert [block[0, 0, 0] for block in home.kv.values[1]] == [4, 0, 4, 0]
    assert not np.any([home.kv.keys[0], home.kv.values[0]])
    assert home.kv.keys[1][2].min() == 3  # whole blocks


def test_a_mirror_stores_the_named_blocks_of_one_layer(memory: list[torch.Tensor]) -> None:
    home = home_of(cache_over(memory, Placement.DEVICE), [2, 0])
    for array in (*home.kv.keys, *home.kv.values):
        array[...] = 7
    assert held(memory, 0) == [1, 1, 1, 1]
    home.store(0, [2])
    assert [held(memory, tensor) for tensor in range(4)] == [[1, 1, 7, 1], [2, 2, 7, 2], [3] * 4, [4] * 4]


@pytest.mark.parametrize(
    ("device", "transport", "text"),
    [
        ("cpu", "hccl", "hccl does not move host to host memory"),
        ("npu", "shared_memory", "shared_memory does not move device to device memory"),
        ("tpu", None, "device must be cpu, npu or cuda"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(device: str, transport: str | None, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Place(device, transport)


def test_a_transport_that_is_not_there_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownTransport, match="installed are loopback"):
        Place("cpu", "pigeon")
    monkeypatch.setattr("ray_kvfabric.transport.hccl.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="hccl is not available: torch_npu is not installed"):
        Place("npu", "hccl")


def test_an_endpoint_is_told_of_its_device_and_of_the_one_transport() -> None:
    settings = Place("cuda", "device_ipc").settings(3.0)
    assert (settings.device, settings.transports, settings.sync_kv_timeout_ms) == ("cuda", ("device_ipc",), 3000)
    assert settings.device_pool is not None
    settings = Place().settings(3.0)
    assert (settings.device, settings.transports, settings.device_pool) == (None, None, None)
