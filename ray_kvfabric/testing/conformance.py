"""The contract of a transport as tests. A transport's own test file inherits them:

    class TestLoopback(TransportConformance):
        @pytest.fixture
        def pair(self) -> Iterator[Pair]:
            yield from local_pair("loopback")

Every test compares the target's whole memory with a model in plain numpy, so a byte too many is seen as well as
a byte too few.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import pytest

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer, TransferConfig
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.errors import (
    CacheNotFound,
    LLMException,
    LLMStatusCode,
    ParamInvalid,
    PeerLost,
    TransferCancelled,
    TransferTimeout,
)
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import Receipt
from ray_kvfabric.testing.contents import read_tensor, write_tensor
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.grant_conformance import GrantConformance
from ray_kvfabric.testing.peer import ChildPeer, Endpoint, LocalPeer

SOURCE_ID, TARGET_ID = 11, 22
SHAPE = (24, 3, 50)  # blocks of 150 bytes: no power of two, no multiple of a word. Times the pair's grain
TENSORS = 6
PATIENCE_S = 30.0


class Counting(Protocol):
    """A directory that counts what it is asked."""

    calls: Counter[str]


class Target(Protocol):
    """What a test does at the other end: `testing.peer.Endpoint`, wherever it lives."""

    dies_alone: bool

    def allocate(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int: ...
    def register(self, num_tensors: int, shape: tuple[int, ...], data_type: str, model_id: int | None) -> int: ...
    def rows(
        self, num_tensors: int, shape: tuple[int, ...], data_type: str, req_ids: list[int], allocates: bool
    ) -> int: ...
    def num_blocks(self, cache_id: int) -> int: ...
    def addresses(self, cache_id: int) -> list[int]: ...
    def deallocate(self, cache_id: int) -> None: ...
    def fill(self, cache_id: int, value: int) -> None: ...
    def read(self, cache_id: int) -> list[bytes]: ...
    def wait_received(self, transfer_id: str, timeout_s: float) -> Receipt: ...
    def grant(self, cache_id: int, blocks: list[int], options: dict[str, Any]) -> Grant: ...
    def wait_granted(self, grant_id: str, timeout_s: float) -> GrantReceipt: ...
    def revoke_grant(self, grant_id: str) -> None: ...
    def close(self) -> None: ...


@dataclass
class Pair:
    """A source endpoint here and a target endpoint, made to use one transport.

    `grain` multiplies the last dimension of odd shapes, for transports whose blocks must be multiples of something.
    """

    transport: str
    source: Endpoint
    target: Target
    directory: Counting
    allocates: bool = True  # whether the target's caches lie in fabric memory
    grain: int = 1
    refused_rows: frozenset[str] = frozenset()  # "push", "pull": the way from HOST to DEVICE, which only blocks go

    def moves_rows(self, way: str, move: Callable[[], None]) -> bool:
        """Whether the rows have moved; where they are not to, the refusal says why."""
        if way not in self.refused_rows:
            move()
            return True
        with pytest.raises(ParamInvalid, match="blocks caches"):
            move()
        return False

    @property
    def manager(self) -> CacheManager:
        return self.source.manager

    def target_cache(self, shape: tuple[int, ...] = SHAPE, tensors: int = TENSORS, model_id: int = 0) -> int:
        """A new target cache, every byte 0xEE."""
        make = self.target.allocate if self.allocates else self.target.register
        cache_id = make(tensors, self.grained(shape), "DT_INT8", model_id)
        self.target.fill(cache_id, 0xEE)
        return cache_id

    def source_cache(self, shape: tuple[int, ...] = SHAPE, tensors: int = TENSORS) -> Cache:
        """A new source cache of random bytes."""
        return self._scrambled(self.source.allocate(tensors, self.grained(shape), "DT_INT8", None))

    def target_rows(self, req_ids: list[int]) -> int:
        """A new continuous cache at the target, every byte 0xEE; `req_ids[i]` names row i."""
        cache_id = self.target.rows(TENSORS, self.grained(SHAPE), "DT_INT8", req_ids, self.allocates)
        self.target.fill(cache_id, 0xEE)
        return cache_id

    def source_rows(self) -> Cache:
        """A new continuous cache of random bytes."""
        return self._scrambled(self.source.rows(TENSORS, self.grained(SHAPE), "DT_INT8", [], True))

    def _scrambled(self, cache_id: int) -> Cache:
        cache = self.manager.cache(cache_id)
        for tensor in range(cache.cache_desc.num_tensors):
            write_tensor(cache, tensor, np.frombuffer(secrets.token_bytes(cache.cache_desc.size), np.uint8).copy())
        return cache

    def grained(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Its last dimension a multiple of the grain."""
        return shape if shape[-1] % self.grain == 0 else (*shape[:-1], shape[-1] * self.grain)

    @property
    def block_nbytes(self) -> int:
        return prod(SHAPE[1:]) * self.grain

    def source_bytes(self, cache: Cache) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[tensor, block, byte]"""
        return source_bytes(cache)

    def target_bytes(self, cache_id: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """[tensor, block, byte]"""
        tensors = [np.frombuffer(each, np.uint8) for each in self.target.read(cache_id)]
        return np.stack(tensors).reshape(len(tensors), self.target.num_blocks(cache_id), -1)


def local_pair(transport: str, **settings: object) -> Iterator[Pair]:
    """Both endpoints in this process."""
    yield from _pair(transport, LocalPeer, settings)


def child_pair(transport: str, *, allocates: bool = True, **settings: object) -> Iterator[Pair]:
    """The target in a child process."""
    yield from _pair(transport, ChildPeer, settings, allocates=allocates)


def _pair(transport: str, kind: Any, settings: dict[str, object], allocates: bool = True) -> Iterator[Pair]:
    directory = DictDirectory()
    chosen = EndpointSettings.model_validate(
        {
            "transports": (transport,),
            "sync_kv_timeout_ms": 30_000,
            "mem_pool": {"memory_size": "512MiB"},
            **settings,
        }
    )
    source = LocalPeer(SOURCE_ID, directory, chosen)
    target = kind(TARGET_ID, directory, chosen)
    try:
        yield Pair(transport, source, target, directory, allocates)
    finally:
        source.close()
        target.close()


def source_bytes(cache: Cache) -> np.ndarray[Any, np.dtype[np.uint8]]:
    tensors = [read_tensor(cache, tensor) for tensor in range(cache.cache_desc.num_tensors)]
    return np.stack(tensors).reshape(len(tensors), cache.cache_desc.shape[0], -1)


class _Computed(LayerSynchronizer):
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        return True


KEY = BlocksCacheKey(TARGET_ID, 0)


class TransportConformance(GrantConformance):
    """Inherit it and give a `pair` fixture."""

    def test_a_push_lands_every_listed_block_and_touches_no_other_byte(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        expected = pair.target_bytes(target_id)
        sources, targets = [3, 4, 5, 20, 0], [7, 8, 9, 0, 23]
        expected[:, targets] = source_bytes(source)[:, sources]
        pair.manager.push_blocks(KEY, source, sources, targets)
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)

    def test_random_pushes_agree_with_a_numpy_model(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        expected, held = pair.target_bytes(target_id), source_bytes(source)
        random = np.random.default_rng(7)
        for _ in range(40):
            count = int(random.integers(1, SHAPE[0] + 1))
            sources = [int(block) for block in random.integers(0, SHAPE[0], count)]
            targets = [int(block) for block in random.permutation(SHAPE[0])[:count]]
            first, other = (int(layer) for layer in random.integers(0, 2, 2))
            pair.manager.push_blocks(KEY, source, sources, targets, range(first, first + 2), range(other, other + 2))
            for tensor in range(4):
                expected[other * 2 + tensor, targets] = held[first * 2 + tensor, sources]
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)

    def test_of_two_writes_to_one_block_the_later_in_the_list_stays(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, source, [1, 2, 3], [5, 5, 5])
        np.testing.assert_array_equal(pair.target_bytes(target_id)[:, 5], source_bytes(source)[:, 3])

    def test_a_large_push_is_exact(self, pair: Pair) -> None:
        shape = (64, 256 * 1024)  # 4 tensors of 16 MiB: past the caches, several threads, streaming stores
        source, target_id = pair.source_cache(shape, 4), pair.target_cache(shape, 4)
        order = [int(block) for block in np.random.default_rng(3).permutation(64)]
        pair.manager.push_blocks(KEY, source, list(range(64)), order)
        landed, held = pair.target_bytes(target_id), source_bytes(source)
        np.testing.assert_array_equal(landed[:, order], held)

    def test_a_pull_brings_the_peers_blocks(self, pair: Pair) -> None:
        local, target_id = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, local, [1, 2], [8, 9])
        expected = source_bytes(local)
        expected[:, [20, 21, 3]] = pair.target_bytes(target_id)[:, [8, 9, 0]]
        pair.manager.pull_blocks(KEY, local, [8, 9, 0], [20, 21, 3])
        np.testing.assert_array_equal(source_bytes(local), expected)

    def test_a_row_lands_in_the_row_of_its_key(self, pair: Pair) -> None:
        source, target_id = pair.source_rows(), pair.target_rows([])
        expected = pair.target_bytes(target_id)
        key = CacheKeyByIdAndIndex(TARGET_ID, target_id, 5)
        if pair.moves_rows("push", lambda: pair.manager.push_cache(key, source, 23, range(2, 3), range(1, 2))):
            expected[2:4, 5] = source_bytes(source)[4:6, 23]
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)

    def test_a_row_is_pulled_by_its_request(self, pair: Pair) -> None:
        source, target_id = pair.source_rows(), pair.target_rows([70, 71])
        key = CacheKeyByIdAndIndex(TARGET_ID, target_id, 1)
        pair.moves_rows("push", lambda: pair.manager.push_cache(key, source, 3))
        expected, held = source_bytes(source), pair.target_bytes(target_id)
        size = 100 * pair.grain
        if pair.moves_rows("pull", lambda: pair.manager.pull_cache(CacheKey(TARGET_ID, 71), source, 7, size)):
            expected[:, 7, :size] = held[:, 1, :size]
        np.testing.assert_array_equal(source_bytes(source), expected)

    def test_a_row_is_cut_into_blocks(self, pair: Pair) -> None:
        source, target_id = pair.source_rows(), pair.target_rows([70])
        pair.moves_rows("push", lambda: pair.manager.push_cache(CacheKeyByIdAndIndex(TARGET_ID, target_id), source, 9))
        local = pair.source_cache((10, 40))
        row, expected, blocks = pair.target_bytes(target_id)[:, 0], source_bytes(local), [8, 1, 3, 0]
        if pair.moves_rows("pull", lambda: pair.manager.pull_blocks(CacheKey(TARGET_ID, 70), local, [], blocks)):
            for piece, block in enumerate(blocks):  # 150 bytes: the last piece has 30
                part = row[:, 40 * pair.grain * piece : 40 * pair.grain * (piece + 1)]
                expected[:, block, : part.shape[1]] = part
        np.testing.assert_array_equal(source_bytes(local), expected)

    def test_layers_go_to_addresses_of_the_peer(self, pair: Pair) -> None:
        source, target_id = pair.source_rows(), pair.target_rows([])
        expected = pair.target_bytes(target_id)
        addresses = [each + 6 * pair.block_nbytes for each in pair.target.addresses(target_id)[:4]]
        config = TransferConfig(TARGET_ID, addresses, range(1, 3), 2)
        task = pair.manager.transfer_cache_async(source, _Computed(), [config])
        status = task.synchronize(int(PATIENCE_S * 1000))
        if "push" in pair.refused_rows:
            assert status is LLMStatusCode.LLM_PARAM_INVALID
        else:
            assert status is LLMStatusCode.LLM_SUCCESS
            expected[:4, 6] = source_bytes(source)[2:, 2]
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)

    def test_both_ends_hold_the_same_receipt(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        transfer = pair.manager.start_push(KEY, source, [1, 2, 3], [4, 5, 6], range(1, 3), range(2))
        sent = transfer.wait(PATIENCE_S)
        assert pair.target.wait_received(transfer.transfer_id, PATIENCE_S) == sent
        assert (sent.source_cluster_id, sent.target_cluster_id) == (SOURCE_ID, TARGET_ID)
        assert (sent.cache_id, sent.first_layer, sent.num_layers) == (target_id, 0, 2)
        assert (sent.num_blocks, sent.nbytes, sent.transport) == (3, 3 * pair.block_nbytes * 4, pair.transport)
        assert 0 < sent.started_ns <= sent.landed_ns

    def test_a_receiver_that_waits_first_is_woken(self, pair: Pair) -> None:
        source, _ = pair.source_cache(), pair.target_cache()
        transfer_id = secrets.token_hex(16)
        timer = threading.Timer(0.3, lambda: pair.manager.start_push(KEY, source, [1], [1], transfer_id=transfer_id))
        timer.start()
        assert pair.target.wait_received(transfer_id, PATIENCE_S).num_blocks == 1
        timer.join()

    def test_a_receiver_of_nothing_times_out(self, pair: Pair) -> None:
        with pytest.raises(TransferTimeout):
            pair.target.wait_received("00" * 16, 0.05)

    def test_after_the_first_push_nobody_is_asked(self, pair: Pair) -> None:
        source, _ = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, source, [0], [0])
        before = pair.directory.calls.total()
        for block in range(20):
            pair.manager.push_blocks(KEY, source, [block], [block])
        assert pair.directory.calls.total() == before

    def test_a_push_whose_time_is_over_moves_nothing(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, source, [0], [0])
        before = pair.target_bytes(target_id)
        with pytest.raises(TransferTimeout):
            pair.manager.start_push(KEY, source, [1], [1], timeout_s=-1.0).wait(PATIENCE_S)
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_a_cancelled_push_says_so(self, pair: Pair) -> None:
        shape = (32, 1 << 20)
        source, _ = pair.source_cache(shape, 4), pair.target_cache(shape, 4)
        blocks = list(range(32))
        transfers = [pair.manager.start_push(KEY, source, blocks, blocks) for _ in range(20)]
        assert transfers[-1].cancel()
        with pytest.raises(TransferCancelled):
            transfers[-1].wait(PATIENCE_S)
        assert transfers[-1].state == "cancelled"
        for transfer in transfers[:-1]:
            transfer.wait(PATIENCE_S)

    def test_one_id_moves_once(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        transfer_id = secrets.token_hex(16)
        first = pair.manager.start_push(KEY, source, [1], [1], transfer_id=transfer_id)
        again = pair.manager.start_push(KEY, source, [1], [2], transfer_id=transfer_id)
        assert again is first
        first.wait(PATIENCE_S)
        assert (pair.target_bytes(target_id)[:, 2] == 0xEE).all()
        assert pair.manager.result(transfer_id, 1.0).num_blocks == 1

    def test_threads_may_share_a_link(self, pair: Pair) -> None:
        shape = (64, 4096)
        source, target_id = pair.source_cache(shape, 4), pair.target_cache(shape, 4)
        errors: list[BaseException] = []

        def push(blocks: list[int]) -> None:
            try:
                for _ in range(30):
                    pair.manager.push_blocks(KEY, source, blocks, blocks)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=push, args=([*range(start, 64, 12)],)) for start in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        np.testing.assert_array_equal(pair.target_bytes(target_id), source_bytes(source))

    def test_a_freed_target_is_not_written(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, source, [0], [0])
        pair.target.deallocate(target_id)
        with pytest.raises(CacheNotFound):
            pair.manager.push_blocks(KEY, source, [0], [0])

    def test_a_cache_that_came_under_the_same_key_gets_the_next_push(self, pair: Pair) -> None:
        source, old = pair.source_cache(), pair.target_cache()
        pair.manager.push_blocks(KEY, source, [0], [0])
        pair.target.deallocate(old)
        new = pair.target_cache()
        pair.manager.push_blocks(KEY, source, [4], [2])
        np.testing.assert_array_equal(pair.target_bytes(new)[:, 2], source_bytes(source)[:, 4])
        assert (pair.target_bytes(new)[:, 0] == 0xEE).all()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"shape": (24, 3, 51)}, "block sizes differ"),
            ({"tensors": 4}, "num_tensors differ"),
        ],
    )
    def test_a_target_of_another_form_is_refused_and_untouched(
        self, pair: Pair, change: dict[str, Any], words: str
    ) -> None:
        source, target_id = pair.source_cache(), pair.target_cache(**change)
        before = pair.target_bytes(target_id)
        with pytest.raises(ParamInvalid, match=words) as caught:
            pair.manager.push_blocks(KEY, source, [0], [0])
        assert str(SOURCE_ID) in str(caught.value) or "source" in str(caught.value)
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_indices_beyond_either_side_are_refused_and_nothing_moves(self, pair: Pair) -> None:
        source, target_id = pair.source_cache((30, 3, 50)), pair.target_cache()
        before = pair.target_bytes(target_id)
        for sources, targets, field in (([0, 30], [0, 1], "src_blocks"), ([0, 1], [0, 24], "dst_blocks")):
            with pytest.raises(ParamInvalid, match=field):
                pair.manager.push_blocks(KEY, source, sources, targets)
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_a_dead_target_raises_and_the_source_goes_on(self, pair: Pair) -> None:
        if not pair.target.dies_alone:
            pair.target.close()
        source = pair.source_cache()
        if pair.target.dies_alone:
            pair.target_cache()
            pair.manager.push_blocks(KEY, source, [0], [0])
            pair.target.kill()  # type: ignore[attr-defined]
        with pytest.raises((PeerLost, LLMException)) as caught:
            pair.manager.push_blocks(KEY, source, [0], [0])
        if pair.target.dies_alone:
            assert isinstance(caught.value, PeerLost)
        assert [link for link in pair.manager.status()["links"] if not link["alive"]] == []  # type: ignore[attr-defined]
