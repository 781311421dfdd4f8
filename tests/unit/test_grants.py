"""Grants between two endpoints: what they let through, what they refuse, and what the receiver is told."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import EndpointSettings
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint import spread
from ray_kvfabric.errors import (
    CacheNotFound,
    CreditExhausted,
    DigestMismatch,
    EndpointDraining,
    FabricError,
    GrantExpired,
    GrantFailed,
    GrantForged,
    GrantIncomplete,
    GrantNeeded,
    GrantReplayed,
    GrantRevoked,
    LLMStatusCode,
    ParamInvalid,
    PeerLost,
    StaleIncarnation,
    TransferTimeout,
)
from ray_kvfabric.grant import Grant
from ray_kvfabric.testing.directory import DictDirectory
from ray_kvfabric.testing.peer import ChildPeer, LocalPeer
from ray_kvfabric.transport import host_link

TENSORS, BLOCKS, BLOCK_NBYTES = 6, 32, 600
SHAPE = (BLOCKS, BLOCK_NBYTES)
SETTINGS = {
    "transports": ("loopback", "shared_memory"),
    "sync_kv_timeout_ms": 20_000,
    "mem_pool": {"memory_size": "256MiB"},
}


@dataclass
class Two:
    """A writer with a source cache, a receiver with a target cache that every test begins to fill anew."""

    writer: CacheManager
    receiver: CacheManager
    source: Cache
    target: Cache
    directory: DictDirectory

    def sent(self, grant: object) -> Grant:
        """The grant as it reaches a writer elsewhere."""
        travelled = pickle.loads(pickle.dumps(grant))
        assert type(travelled) is Grant
        return travelled

    def expect(self, blocks: list[int], sources: list[int], tensors: range = range(TENSORS)) -> None:
        """These blocks of the target are those of the source, and every other byte is 0."""
        for tensor in range(TENSORS):
            wanted = np.zeros(SHAPE, np.int8)
            if tensor in tensors:
                wanted[blocks] = self.source.numpy(tensor)[sources]
            np.testing.assert_array_equal(self.target.numpy(tensor), wanted)


@pytest.fixture
def two() -> Iterator[Two]:
    directory = DictDirectory()
    settings = EndpointSettings.model_validate(SETTINGS)
    a, b = LocalPeer(1, directory, settings), LocalPeer(2, directory, settings)
    source = a.manager.cache(a.allocate(TENSORS, SHAPE, "DT_INT8", None))
    random = np.random.default_rng(5)
    for tensor in range(TENSORS):
        source.numpy(tensor)[:] = random.integers(1, 100, SHAPE)
    target = b.manager.cache(b.allocate(TENSORS, SHAPE, "DT_INT8", 0))
    yield Two(a.manager, b.manager, source, target, directory)
    for manager in (a.manager, b.manager):
        assert manager.status()["grants"]["blocks"] == 0 or not manager._is_closed  # type: ignore[index]
    a.close()
    b.close()
    assert b.manager._grants.describe()["blocks"] == 0


def held(two: Two) -> dict[str, object]:
    return two.receiver._grants.describe()


# ---- what is let through ---------------------------------------------------------------------------


def test_a_push_under_a_grant_fills_the_granted_blocks_and_nothing_else(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [7, 3, 30], request_id="r")
    sent = two.writer.push_granted(two.sent(grant), two.source, [1, 2, 9])
    receipt = grant.wait(5)
    two.expect([7, 3, 30], [1, 2, 9])
    assert (receipt.request_id, receipt.num_blocks, receipt.num_layers) == ("r", 3, TENSORS // 2)
    assert receipt.nbytes == sent.nbytes == 3 * TENSORS * BLOCK_NBYTES
    assert receipt.source_cluster_ids == (1,)
    assert grant.granted_ns < sent.started_ns <= receipt.landed_ns
    assert held(two)["blocks"] == 0


def test_chunks_and_layers_may_come_in_any_order_until_the_seal(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, list(range(10)))
    bearer = two.sent(grant)
    for layer in (2, 0, 1):
        one = range(layer, layer + 1)
        two.writer.push_granted(bearer, two.source, list(range(16, 20)), one, one, at=6, seal=False)
        assert not grant.done()
        two.writer.push_granted(bearer, two.source, list(range(10, 16)), one, one, at=0, seal=layer == 1)
        grant.wait_layer(layer, 1)
    assert grant.done()
    assert grant.wait(0).num_transfers == 6
    two.expect(list(range(10)), list(range(10, 20)))


def test_a_block_may_be_written_again_with_its_next_chunk(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [0, 1, 2], verify="crc32c")
    two.writer.push_granted(two.sent(grant), two.source, [20, 21], seal=False)
    two.writer.push_granted(two.sent(grant), two.source, [5, 6], at=1)
    grant.wait(5)
    two.expect([0, 1, 2], [20, 5, 6])


def test_some_layers_can_be_granted_alone(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [4, 5], layers=range(1, 2))
    two.writer.push_granted(two.sent(grant), two.source, [8, 9])
    assert grant.wait(5).num_layers == 1
    two.expect([4, 5], [8, 9], range(2, 4))


def test_the_receipt_waits_for_every_writer(two: Two) -> None:
    other = LocalPeer(3, two.directory, EndpointSettings.model_validate(SETTINGS))
    theirs = other.manager.cache(other.allocate(TENSORS, SHAPE, "DT_INT8", None))
    for tensor in range(TENSORS):
        theirs.numpy(tensor)[:] = two.source.numpy(tensor)
    grant = two.receiver.grant_blocks(two.target, [0, 1, 2, 3], sources=[3, 1])
    two.writer.push_granted(two.sent(grant), two.source, [10, 11])
    with pytest.raises(TransferTimeout, match="50%"):
        grant.wait(0.05)
    other.manager.push_granted(two.sent(grant), theirs, [12, 13], at=2)
    assert grant.wait(5).source_cluster_ids == (3, 1)
    two.expect([0, 1, 2, 3], [10, 11, 12, 13])
    other.close()


def test_who_waits_is_woken_by_the_last_seal(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1])
    threading.Timer(0.2, two.writer.push_granted, (two.sent(grant), two.source, [1])).start()
    started = time.monotonic()
    grant.wait(10)
    assert time.monotonic() - started < 5


def test_a_grant_can_be_awaited(two: Two) -> None:
    async def receive() -> list[int]:
        grants = [two.receiver.grant_blocks(two.target, [block]) for block in range(12)]
        for block, grant in enumerate(grants):
            two.writer.start_push_granted(two.sent(grant), two.source, [block])
        return [receipt.num_blocks for receipt in await asyncio.gather(*map(_awaited, grants))]

    async def _awaited(grant: object) -> object:
        return await grant  # type: ignore[misc]

    assert asyncio.run(receive()) == [1] * 12  # type: ignore[arg-type]


def test_a_cache_for_grants_only_refuses_plain_pushes(two: Two) -> None:
    guarded = two.receiver.allocate_blocks_cache(two.target.cache_desc, BlocksCacheKey(2, 9), grants_only=True)
    with pytest.raises(GrantNeeded, match=f"cache {guarded.cache_id} of endpoint 2"):
        two.writer.push_blocks(BlocksCacheKey(2, 9), two.source, [1], [1])
    assert not guarded.numpy(0).any()
    grant = two.receiver.grant_blocks(guarded, [1])
    two.writer.push_granted(two.sent(grant), two.source, [1])
    grant.wait(5)
    two.writer.pull_blocks(BlocksCacheKey(2, 9), two.source, [1], [0])  # reading needs no grant


# ---- what is refused, before a byte moves ------------------------------------------------------------

FORGERIES: dict[str, Callable[[Grant], Grant]] = {
    "other blocks": lambda grant: replace(grant, blocks=(9, 10)),
    "another secret": lambda grant: replace(grant, secret=bytes(16)),
    "more time": lambda grant: replace(grant, deadline_ns=grant.deadline_ns + 10**9),
    "other tensors": lambda grant: replace(grant, num_tensors=2),
    "more writers": lambda grant: replace(grant, writers=2),
    "another board": lambda grant: replace(grant, board=grant.board + 64),
    "a board outside the page": lambda grant: replace(grant, board=2**40),
    "a slot outside the page": lambda grant: replace(grant, slot=2**20),
    "no digest": lambda grant: replace(grant, verify="crc32c"),
    "the cache's own slot": lambda grant: replace(grant, slot=0, fence=1),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_changed_grant_is_forged(two: Two, forge: Callable[[Grant], Grant]) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    with pytest.raises(GrantForged):
        two.writer.push_granted(forge(two.sent(grant)), two.source, [1, 2])
    two.expect([], [])
    two.writer.push_granted(two.sent(grant), two.source, [1, 2])  # the true one is as good as before
    grant.wait(5)


def test_an_expired_grant_is_refused_and_its_blocks_are_free(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], ttl_s=0.05)
    time.sleep(0.06)
    with pytest.raises(GrantExpired):
        two.writer.push_granted(two.sent(grant), two.source, [1, 2])
    with pytest.raises(GrantExpired, match="writer 0 has not come"):
        grant.wait(5)
    two.expect([], [])
    assert (held(two)["blocks"], grant.state) == (0, "expired")


def test_a_sealed_writer_may_write_no_more(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], writers=2)
    two.writer.push_granted(two.sent(grant), two.source, [1, 2], writer=0)
    with pytest.raises(GrantReplayed):
        two.writer.push_granted(two.sent(grant), two.source, [8, 9], writer=0)
    two.expect([1, 2], [1, 2])
    grant.revoke()


def test_the_same_transfer_id_under_a_grant_is_the_same_push(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    name = "ab" * 16
    first = two.writer.start_push_granted(two.sent(grant), two.source, [1, 2], transfer_id=name).wait(5)
    again = two.writer.start_push_granted(two.sent(grant), two.source, [1, 2], transfer_id=name).wait(5)
    assert again == first
    assert grant.wait(5).num_transfers == 1


def test_another_endpoint_cannot_be_the_writer_that_has_begun(two: Two) -> None:
    other = LocalPeer(3, two.directory, EndpointSettings.model_validate(SETTINGS))
    theirs = other.manager.cache(other.allocate(TENSORS, SHAPE, "DT_INT8", None))
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    two.writer.push_granted(two.sent(grant), two.source, [1], seal=False)
    with pytest.raises(GrantReplayed):
        other.manager.push_granted(two.sent(grant), theirs, [1, 2])
    two.expect([1], [1])
    other.close()


def test_a_landed_grant_lets_nobody_in(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    two.writer.push_granted(two.sent(grant), two.source, [1, 2])
    grant.wait(5)
    with pytest.raises(GrantRevoked):
        two.writer.push_granted(two.sent(grant), two.source, [8, 9])
    two.expect([1, 2], [1, 2])


def test_a_grant_of_another_incarnation_names_both(two: Two) -> None:
    grant = replace(two.sent(two.receiver.grant_blocks(two.target, [1, 2])), incarnation=0xABC)
    present = f"{two.receiver.endpoint.incarnation:016x}"
    with pytest.raises(StaleIncarnation, match=f"0000000000000abc.*{present}"):
        two.writer.push_granted(grant, two.source, [1, 2])
    two.expect([], [])


@pytest.mark.parametrize(
    ("blocks", "at", "layers", "match"),
    [
        ([1, 2, 3], 0, None, "3 entries from position 0 on.*has 2 blocks"),
        ([1], 2, None, "1 entries from position 2 on"),
        ([1, 2], 1, None, "2 entries from position 1 on"),
        ([1], 0, range(2), r"tensors \[0, 4\) of the target.*covers \[2, 6\)"),
    ],
)
def test_a_push_beyond_the_grant_is_refused(
    two: Two, blocks: list[int], at: int, layers: range | None, match: str
) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], layers=range(1, 3))
    with pytest.raises(ParamInvalid, match=match):
        two.writer.push_granted(two.sent(grant), two.source, blocks, layers, layers, at=at)
    two.expect([], [])
    assert not grant.done()  # a refusal does not fail the writer


def test_an_endpoint_that_is_not_named_may_not_write(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1], sources=[8, 9])
    with pytest.raises(ParamInvalid, match=r"lets endpoints \[8, 9\] write, not 1"):
        two.writer.push_granted(two.sent(grant), two.source, [1])


WRONG: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "no blocks": ({"blocks": []}, ParamInvalid, "blocks is empty"),
    "a set of blocks": ({"blocks": {1}}, TypeError, "blocks must be a list or tuple"),
    "a block beyond the cache": ({"blocks": [32]}, ParamInvalid, r"blocks\[0\] is 32, the cache has blocks \[0, 32\)"),
    "a negative block": ({"blocks": [-1]}, (TypeError, ValueError), r"blocks\[0\]"),  # type: ignore[dict-item]
    "a block twice": ({"blocks": [1, 1]}, ParamInvalid, "a block twice"),
    "no writers": ({"writers": 0}, ParamInvalid, r"writers must be in \[1, "),
    "a source twice": ({"sources": [4, 4]}, ParamInvalid, "sources names an endpoint twice"),
    "an unknown digest": ({"verify": "md5"}, ParamInvalid, "verify must be None or one of crc32c, got 'md5'"),
    "no time": ({"ttl_s": 0}, ParamInvalid, "ttl_s must be above 0"),
    "layers beyond the cache": ({"layers": range(2, 4)}, ParamInvalid, "end beyond the 3 layers"),
    "no request": ({"request_id": 5}, TypeError, "request_id"),
}


@pytest.mark.parametrize(("wrong", "kind", "match"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_of_grant_blocks_is_named(
    two: Two, wrong: dict[str, object], kind: type[Exception], match: str
) -> None:
    with pytest.raises(kind, match=match):
        two.receiver.grant_blocks(two.target, **{"blocks": [1], **wrong})  # type: ignore[arg-type]
    assert held(two)["blocks"] == 0


def test_a_block_is_in_one_grant_only(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], request_id="first")
    with pytest.raises(ParamInvalid, match="request 'first'"):
        two.receiver.grant_blocks(two.target, [3, 2])
    grant.revoke()
    two.receiver.grant_blocks(two.target, [3, 2]).revoke()


def test_credit_is_bounded_and_comes_back() -> None:
    directory = DictDirectory()
    size = 10 * TENSORS * BLOCK_NBYTES
    limits = {"max_grants": 2, "max_granted_size": size}
    receiver = LocalPeer(2, directory, EndpointSettings.model_validate({**SETTINGS, "grants": limits}))
    target = receiver.manager.cache(receiver.allocate(TENSORS, SHAPE, "DT_INT8", 0))
    first = receiver.manager.grant_blocks(target, list(range(6)))
    with pytest.raises(CreditExhausted, match="max_granted_size") as caught:
        receiver.manager.grant_blocks(target, list(range(6, 12)))
    assert caught.value.status_code is LLMStatusCode.LLM_NO_FREE_BLOCK
    receiver.manager.grant_blocks(target, [6])
    with pytest.raises(CreditExhausted, match="max_grants"):
        receiver.manager.grant_blocks(target, [7])
    first.revoke()
    receiver.manager.grant_blocks(target, [7])
    receiver.close()


# ---- what the receiver is told -----------------------------------------------------------------------


def test_a_gap_is_an_error_that_names_it(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [4, 5, 6])
    two.writer.push_granted(two.sent(grant), two.source, [1, 2], range(2), range(2), seal=False)
    two.writer.push_granted(two.sent(grant), two.source, [3], at=2)
    with pytest.raises(GrantIncomplete, match=r"block 4 \(position 0\) of layer 2 was not written"):
        grant.wait(5)
    assert (held(two)["blocks"], grant.state) == (0, "failed")


def test_a_writer_that_gives_up_is_told_at_once(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], request_id="r")
    two.writer.push_granted(two.sent(grant), two.source, [1], seal=False)
    threading.Timer(0.2, two.writer.fail_granted, (two.sent(grant), "the request was aborted")).start()
    started = time.monotonic()
    with pytest.raises(GrantFailed, match=r"writer 0 failed: the request was aborted; here 50% has landed.*3600 bytes"):
        grant.wait(20)
    assert time.monotonic() - started < 5
    with pytest.raises(GrantRevoked):
        two.writer.push_granted(two.sent(grant), two.source, [2], at=1)


def test_a_push_that_times_out_inside_fails_its_writer(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    way = two.writer._links.way((2, BlocksCacheKey(2, 0).way[1]), "host", two.writer._control_deadline())
    monkeypatch.setattr(way.link, "_write", lambda *_: (1, 77, 0))  # COPY_TIMED_OUT
    with pytest.raises(TransferTimeout):
        two.writer.push_granted(two.sent(grant), two.source, [1, 2])
    with pytest.raises(GrantFailed, match=r"TransferTimeout.*after 77 bytes") as caught:
        grant.wait(5)
    assert caught.value.status_code is LLMStatusCode.LLM_TIMEOUT


def test_a_flipped_bit_is_found_and_located(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [4, 5], verify="crc32c")
    two.writer.push_granted(two.sent(grant), two.source, [1, 2])
    two.target.numpy(3)[5, 17] ^= 4
    with pytest.raises(DigestMismatch, match=r"block 5 of tensor 3 has crc32c [0-9a-f]{8}, its writer read"):
        grant.wait(5)
    assert grant.state == "failed"


def test_a_flipped_bit_is_found_in_its_layer(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [4, 5], verify="crc32c")
    two.writer.push_granted(two.sent(grant), two.source, [1, 2])
    two.target.numpy(3)[5, 17] ^= 4
    grant.wait_layer(0, 1)
    with pytest.raises(DigestMismatch):
        grant.wait_layer(1, 1)
    grant.revoke()


def test_the_peer_that_ray_says_has_ended_fails_what_it_was_writing(two: Two) -> None:
    begun = two.receiver.grant_blocks(two.target, [1, 2])
    named = two.receiver.grant_blocks(two.target, [3], sources=[1])
    other = two.receiver.grant_blocks(two.target, [4], sources=[5])
    two.writer.push_granted(two.sent(begun), two.source, [1], seal=False)
    two.receiver.peer_ended(1, two.writer.endpoint.incarnation, "died")
    for grant in (begun, named):
        with pytest.raises(PeerLost, match=r"endpoint 1 \(incarnation [0-9a-f]{16}\) died"):
            grant.wait(1)
    assert (other.state, held(two)["blocks"]) == ("standing", 1)
    other.revoke()


# ---- the fence -----------------------------------------------------------------------------------------


def test_revoking_stops_a_writer_and_frees_the_blocks(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    two.writer.push_granted(two.sent(grant), two.source, [1], seal=False)
    grant.revoke()
    with pytest.raises(GrantRevoked):
        two.writer.push_granted(two.sent(grant), two.source, [2], at=1)
    with pytest.raises(GrantRevoked):
        grant.wait(1)
    two.expect([1], [1])
    grant.revoke()  # again is no error
    assert held(two)["blocks"] == 0


def test_a_writer_inside_keeps_the_blocks_in_quarantine(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    way = two.writer._links.way((2, BlocksCacheKey(2, 0).way[1]), "host", two.writer._control_deadline())
    inside, go = threading.Event(), threading.Event()
    write = way.link._write  # type: ignore[attr-defined]

    def stopped(*arguments: object) -> object:
        inside.set()
        assert go.wait(20)
        return write(*arguments)

    monkeypatch.setattr(way.link, "_write", stopped)
    transfer = two.writer.start_push_granted(two.sent(grant), two.source, [1, 2])
    assert inside.wait(20)
    with pytest.raises(TransferTimeout, match="quarantine"):
        grant.revoke(0.1)
    assert held(two)["quarantined_grants"] == [grant.grant_id]
    assert grant.state == "quarantined"
    with pytest.raises(ParamInvalid, match="quarantined"):
        two.receiver.grant_blocks(two.target, [2])
    with pytest.raises(TransferTimeout):
        two.receiver._grants.revoke_cache(two.target.cache_id, two.receiver._control_deadline().after(0.1))
    go.set()
    with pytest.raises(GrantRevoked):
        transfer.wait(20)
    grant.revoke(20)
    two.expect([], [])  # the fence was looked at before the first byte
    assert held(two)["blocks"] == 0


def test_deallocating_a_cache_ends_its_grants(two: Two) -> None:
    doomed = two.receiver.allocate_blocks_cache(two.target.cache_desc)
    grant = two.receiver.grant_blocks(doomed, [1, 2])
    kept = two.receiver.grant_blocks(two.target, [1])
    two.receiver.deallocate_blocks_cache(doomed)
    with pytest.raises(GrantRevoked):
        grant.wait(1)
    assert (kept.state, held(two)["blocks"]) == ("standing", 1)
    kept.revoke()


def test_the_watch_frees_what_nobody_waits_for(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1, 2], ttl_s=0.1)
    patience = time.monotonic() + 10
    while held(two)["blocks"] and time.monotonic() < patience:
        time.sleep(0.05)
    assert held(two)["blocks"] == 0
    assert grant.state == "expired"


def test_a_grant_ends_with_its_block_of_code(two: Two) -> None:
    with two.receiver.grant_blocks(two.target, [1, 2]) as grant:
        assert held(two)["blocks"] == 2
    assert (held(two)["blocks"], grant.state) == (0, "revoked")


def test_the_secret_is_not_printed(two: Two) -> None:
    with two.receiver.grant_blocks(two.target, [1]) as grant:
        told = repr(grant) + repr(grant.grant) + str(grant.grant)
    assert repr(grant.grant.secret) not in told
    assert grant.grant.secret.hex() not in told


# ---- draining ------------------------------------------------------------------------------------------


def test_an_endpoint_that_drains_finishes_and_takes_nothing_new(two: Two) -> None:
    two.writer.push_blocks(BlocksCacheKey(2, 0), two.source, [20], [20])  # its way is open
    grant = two.receiver.grant_blocks(two.target, [1])
    with pytest.raises(TransferTimeout, match=grant.grant_id):
        two.receiver.drain(0.05)
    with pytest.raises(EndpointDraining):
        two.receiver.grant_blocks(two.target, [2])
    with pytest.raises(EndpointDraining):
        two.writer.push_blocks(BlocksCacheKey(2, 0), two.source, [3], [3])
    two.writer.pull_blocks(BlocksCacheKey(2, 0), two.source, [20], [20])  # handing off goes on
    two.writer.push_granted(two.sent(grant), two.source, [1])
    two.receiver.drain(10)
    assert grant.wait(0).num_blocks == 1
    two.expect([20, 1], [20, 1])
    assert two.receiver.status()["is_draining"] is True
    other = LocalPeer(4, two.directory, EndpointSettings.model_validate(SETTINGS))
    theirs = other.manager.cache(other.allocate(TENSORS, SHAPE, "DT_INT8", None))
    with pytest.raises(EndpointDraining):
        other.manager.push_blocks(BlocksCacheKey(2, 0), theirs, [3], [3])
    other.close()


# ---- one to many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_nbytes", [0, 1 << 30], ids=["one reading", "one by one"])
def test_one_push_reaches_many_and_a_dead_one_costs_the_others_nothing(
    two: Two, monkeypatch: pytest.MonkeyPatch, shared_nbytes: int
) -> None:
    monkeypatch.setattr(spread, "SHARED_NBYTES", shared_nbytes)
    settings = EndpointSettings.model_validate(SETTINGS)
    children = [ChildPeer(10 + index, two.directory, settings) for index in range(2)]
    held = [child.allocate(TENSORS, SHAPE, "DT_INT8", 0) for child in children]
    children[1].kill()
    grant = two.receiver.grant_blocks(two.target, [5, 6, 7], verify="crc32c")
    targets = [
        (BlocksCacheKey(10, 0), [1, 2, 3]),
        (BlocksCacheKey(11, 0), [1, 2, 3]),
        two.sent(grant),
        (BlocksCacheKey(99, 0), [1, 2, 3]),
    ]
    outcomes = two.writer.push_blocks_to(targets, two.source, [20, 21, 22])  # type: ignore[arg-type]
    assert [type(each).__name__ for each in outcomes] == ["Receipt", "PeerLost", "Receipt", "NotLinked"]
    grant.wait(5)
    two.expect([5, 6, 7], [20, 21, 22])
    landed = np.frombuffer(children[0].read(held[0])[4], np.int8).reshape(SHAPE)
    np.testing.assert_array_equal(landed[1:4], two.source.numpy(4)[20:23])
    assert not landed[4:].any()
    for child in children:
        child.close()


def test_the_same_target_twice_gets_both_pushes(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "SHARED_NBYTES", 0)
    key = BlocksCacheKey(2, 0)
    outcomes = two.writer.push_blocks_to([(key, [1]), (key, [2])], two.source, [9])
    assert all(not isinstance(each, FabricError) for each in outcomes)
    two.expect([1, 2], [9, 9])


def test_a_wrong_target_is_refused_before_a_byte_moves(two: Two) -> None:
    with pytest.raises(TypeError, match="a target must be a Grant"):
        two.writer.push_blocks_to([(BlocksCacheKey(2, 0), [1]), "nobody"], two.source, [1])  # type: ignore[list-item]
    two.expect([], [])


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_queued_push_that_never_moves_is_told_to_the_receiver(two: Two, how: str) -> None:
    """The gate lets one transfer move to a target; the granted one waits behind it."""
    settings = EndpointSettings.model_validate(
        {**SETTINGS, "admission": {"moving_per_target": 1, "moving_per_link": 1}}
    )
    writer = LocalPeer(5, two.directory, settings).manager
    source = writer.allocate_blocks_cache(two.source.cache_desc)
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    with writer._gate.turn(2, 2, 100, Priority.NORMAL, Deadline.after(20), None):
        waiting = writer.start_push_granted(two.sent(grant), source, [1, 2], timeout_s=0.3 if how == "late" else 20)
        if how == "cancelled":
            assert waiting.cancel()
        with pytest.raises(GrantFailed, match=r"Transfer(Cancelled|Timeout)"):
            grant.wait(10)
    two.expect([], [])
    writer.close()


def test_a_large_push_to_many_is_exact_and_gives_way_between_pieces(two: Two) -> None:
    """More than 4 MiB, so several pieces; an urgent push of another thread comes between them."""
    settings = EndpointSettings.model_validate(SETTINGS)
    shape = (40, 1 << 17)
    desc = CacheDesc(4, list(shape), DataType.DT_INT8, Placement.HOST)
    source = two.writer.allocate_blocks_cache(desc)
    random = np.random.default_rng(3)
    for tensor in range(4):
        source.numpy(tensor)[:] = random.integers(1, 100, shape)
    children = [ChildPeer(20 + index, two.directory, settings) for index in range(2)]
    held = [child.allocate(4, shape, "DT_INT8", 0) for child in children]
    order = [int(block) for block in random.permutation(40)]
    targets = [(BlocksCacheKey(20, 0), order), (BlocksCacheKey(21, 0), list(reversed(order)))]
    outcomes: list[object] = []
    bulk = threading.Thread(
        target=lambda: outcomes.extend(
            two.writer.push_blocks_to(targets, source, list(range(40)), priority=Priority.BULK)
        )
    )
    bulk.start()
    while bulk.is_alive():
        two.writer.start_push(BlocksCacheKey(20, 0), source, [0], [order[0]], priority=Priority.INTERACTIVE).wait(20)
    bulk.join()
    assert [type(each).__name__ for each in outcomes] == ["Receipt", "Receipt"]
    for child, cache_id, blocks in zip(children, held, (order, list(reversed(order))), strict=True):
        for tensor, data in enumerate(child.read(cache_id)):
            landed = np.frombuffer(data, np.int8).reshape(shape)
            np.testing.assert_array_equal(landed[blocks], source.numpy(tensor))
        child.close()


def test_a_grant_of_a_cache_that_is_freed_meanwhile_is_not_given(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The freeing thread ended the cache's grants just before this one was entered."""
    doomed = two.receiver.allocate_blocks_cache(two.target.cache_desc)
    issue = two.receiver._grants.issue

    def late(*arguments: object) -> object:
        two.receiver.deallocate_blocks_cache(doomed)
        return issue(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(two.receiver._grants, "issue", late)
    with pytest.raises(CacheNotFound):
        two.receiver.grant_blocks(doomed, [1])
    assert held(two)["blocks"] == 0


def test_one_grant_in_quarantine_does_not_keep_the_others(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = two.receiver.grant_blocks(two.target, [1])
    free = [two.receiver.grant_blocks(two.target, [block]) for block in (2, 3)]
    way = two.writer._links.way((2, BlocksCacheKey(2, 0).way[1]), "host", two.writer._control_deadline())
    inside, go = threading.Event(), threading.Event()
    write = way.link._write  # type: ignore[attr-defined]

    def stopped(*arguments: object) -> object:
        inside.set()
        assert go.wait(20)
        return write(*arguments)

    monkeypatch.setattr(way.link, "_write", stopped)
    transfer = two.writer.start_push_granted(two.sent(stuck), two.source, [1])
    assert inside.wait(20)
    with pytest.raises(TransferTimeout, match=stuck.grant_id):
        two.receiver._grants.close(Deadline.after(0.1))
    assert [each.state for each in (*free, stuck)] == ["revoked", "revoked", "quarantined"]
    go.set()
    with pytest.raises(GrantRevoked):
        transfer.wait(20)
    stuck.revoke()


# ---- what a reader found -----------------------------------------------------------------------------------


def stopped_inside(two: Two, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The writer's next copy says that it is inside, and waits until it may go on."""
    way = two.writer._links.way((2, BlocksCacheKey(2, 0).way[1]), "host", two.writer._control_deadline())
    inside, go = threading.Event(), threading.Event()
    write = way.link._write  # type: ignore[attr-defined]

    def stopped(*arguments: object) -> object:
        inside.set()
        assert go.wait(20)
        return write(*arguments)

    monkeypatch.setattr(way.link, "_write", stopped)
    return inside, go


def test_closing_a_link_does_not_hide_a_writer_that_is_still_inside(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_link, "CLOSE_PATIENCE_NS", 10**8)
    inside, go = stopped_inside(two, monkeypatch)
    grant = two.receiver.grant_blocks(two.target, [1])
    transfer = two.writer.start_push_granted(two.sent(grant), two.source, [1])
    assert inside.wait(20)
    (link,) = two.writer._links.links()
    link.close()
    with pytest.raises(TransferTimeout, match="quarantine"):
        grant.revoke(0.1)
    go.set()
    with pytest.raises(GrantRevoked):
        transfer.wait(20)
    grant.revoke(20)


def test_closing_an_endpoint_keeps_a_cache_whose_blocks_are_in_quarantine(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = LocalPeer(6, two.directory, EndpointSettings.model_validate({**SETTINGS, "control_timeout_s": 0.2}))
    cache_id = doomed.allocate(TENSORS, SHAPE, "DT_INT8", 0)
    grant = doomed.manager.grant_blocks(doomed.manager.cache(cache_id), [1])
    way = two.writer._links.way((6, BlocksCacheKey(6, 0).way[1]), "host", two.writer._control_deadline())
    inside, go = threading.Event(), threading.Event()
    monkeypatch.setattr(way.link, "_write", lambda *_: (inside.set(), go.wait(20), (0, 1, 0))[-1])
    transfer = two.writer.start_push_granted(two.sent(grant), two.source, [1])
    assert inside.wait(20)
    with pytest.raises(TransferTimeout, match="quarantine"):
        doomed.manager.close()
    assert doomed.manager._caches.all_ids() == [cache_id]
    go.set()
    with pytest.raises(FabricError):
        transfer.wait(20)


def test_of_two_pushes_of_a_writer_the_sealing_one_may_end_first(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = stopped_inside(two, monkeypatch)
    grant = two.receiver.grant_blocks(two.target, [1, 2])
    first = two.writer.start_push_granted(two.sent(grant), two.source, [1], seal=False)
    assert inside.wait(20)
    monkeypatch.undo()
    two.writer.push_granted(two.sent(grant), two.source, [2], at=1)
    waiting = threading.Timer(0.3, go.set)
    waiting.start()
    try:
        assert grant.wait(20).num_blocks == 2  # it was drained before it was judged
    except GrantIncomplete:  # the first met the fence
        with pytest.raises(GrantRevoked):
            first.wait(20)
    assert held(two)["blocks"] == 0


def test_a_queue_that_is_full_is_the_outcome_of_one_target_alone(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "SHARED_NBYTES", 0)
    settings = EndpointSettings.model_validate({**SETTINGS, "admission": {"max_queued": 0, "moving_per_target": 1}})
    writer = LocalPeer(7, two.directory, settings).manager
    source = writer.allocate_blocks_cache(two.source.cache_desc)
    first, second = (two.receiver.grant_blocks(two.target, [block]) for block in (1, 2))
    with writer._gate.turn(2, 2, 100, Priority.NORMAL, Deadline.after(20), None):
        outcomes = writer.push_blocks_to([first, second], source, [5], timeout_s=0.3)
    assert all(isinstance(each, FabricError) for each in outcomes)
    assert len(outcomes) == 2
    for grant in (first, second):
        grant.revoke()
    writer.close()


def test_a_grant_that_stands_can_be_used_for_the_first_time_while_its_endpoint_drains(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1])
    draining = threading.Thread(target=two.receiver.drain, args=(20.0,))
    draining.start()
    while not two.receiver.status()["is_draining"]:
        time.sleep(0.01)
    late = LocalPeer(8, two.directory, EndpointSettings.model_validate(SETTINGS))
    source = late.manager.cache(late.allocate(TENSORS, SHAPE, "DT_INT8", None))
    late.manager.push_granted(two.sent(grant), source, [1])
    draining.join(20)
    assert not draining.is_alive()
    assert grant.wait(0).num_blocks == 1
    late.close()


@pytest.mark.parametrize("ttl_s", [1e10, float("inf"), float("nan"), -1])
def test_a_time_that_nobody_can_mean_is_refused_and_costs_nothing(two: Two, ttl_s: float) -> None:
    free = two.receiver._grants._space.free_nbytes
    with pytest.raises(ParamInvalid, match="ttl_s"):
        two.receiver.grant_blocks(two.target, [1], ttl_s=ttl_s)
    assert two.receiver._grants._space.free_nbytes == free


def test_the_end_of_a_former_life_does_not_fail_what_its_successor_was_granted(two: Two) -> None:
    grant = two.receiver.grant_blocks(two.target, [1], sources=[1])
    two.receiver.peer_ended(1, two.writer.endpoint.incarnation + 1, "died")
    two.writer.push_granted(two.sent(grant), two.source, [1])
    assert grant.wait(1).num_blocks == 1


def test_writers_and_sources_agree(two: Two) -> None:
    with pytest.raises(ParamInvalid, match="writers is 3, sources names 1"):
        two.receiver.grant_blocks(two.target, [1], writers=3, sources=[1])
