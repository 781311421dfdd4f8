"""What grants have to be over any transport; `TransportConformance` has these tests too."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ray_kvfabric.errors import (
    FeatureNotEnabled,
    GrantExpired,
    GrantFailed,
    GrantForged,
    GrantIncomplete,
    GrantRefused,
    GrantReplayed,
    NotLinked,
    ParamInvalid,
    PeerLost,
    StaleIncarnation,
    TransferTimeout,
)

if TYPE_CHECKING:
    from ray_kvfabric.testing.conformance import Pair

PATIENCE_S = 30.0


class GrantConformance:
    """Needs the `pair` fixture; the target of the pair is the receiver."""

    def test_a_granted_push_fills_the_granted_blocks_and_nothing_else(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        expected = pair.target_bytes(target_id)
        expected[:, [7, 3, 20]] = pair.source_bytes(source)[:, [1, 2, 9]]
        grant = pair.target.grant(target_id, [7, 3, 20], {"request_id": "r"})
        receipt = pair.manager.push_granted(grant, source, [1, 2, 9])
        landed = pair.target.wait_granted(grant.grant_id, PATIENCE_S)
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)
        assert (landed.request_id, landed.num_blocks, landed.nbytes) == ("r", 3, receipt.nbytes)
        assert receipt.transport == pair.transport

    def test_layers_and_chunks_under_a_grant_come_in_any_order(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        expected, held = pair.target_bytes(target_id), pair.source_bytes(source)
        grant = pair.target.grant(target_id, [5, 6, 9], {})
        for number, (layer, at) in enumerate([(2, 1), (0, 0), (1, 1), (0, 1), (2, 0), (1, 0)]):
            blocks = [11, 12] if at else [10]
            one = range(layer, layer + 1)
            pair.manager.push_granted(grant, source, blocks, one, one, at=at, seal=number == 5)
        pair.target.wait_granted(grant.grant_id, PATIENCE_S)
        expected[:, [5, 6, 9]] = held[:, [10, 11, 12]]
        np.testing.assert_array_equal(pair.target_bytes(target_id), expected)

    def test_a_receiver_that_waits_for_a_grant_is_woken(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1], {})
        timer = threading.Timer(0.3, pair.manager.push_granted, (grant, source, [1]))
        timer.start()
        assert pair.target.wait_granted(grant.grant_id, PATIENCE_S).num_blocks == 1
        timer.join()

    @pytest.mark.parametrize("field", ["blocks", "secret", "deadline_ns", "verify"])
    def test_a_forged_grant_moves_nothing(self, pair: Pair, field: str) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        before = pair.target_bytes(target_id)
        grant = pair.target.grant(target_id, [1, 2], {})
        other: dict[str, Any] = {"blocks": (4, 5), "secret": bytes(16), "deadline_ns": grant.deadline_ns + 1}
        forged = replace(grant, **{field: other.get(field, "")})
        with pytest.raises((GrantForged, FeatureNotEnabled)):  # the latter where no digest is computed
            pair.manager.push_granted(forged, source, [1, 2])
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)
        pair.target.revoke_grant(grant.grant_id)

    def test_a_sealed_or_landed_grant_is_not_written_again(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        pair.manager.push_granted(grant, source, [1, 2])
        before = pair.target_bytes(target_id)
        with pytest.raises(GrantReplayed):
            pair.manager.push_granted(grant, source, [8, 9])
        pair.target.wait_granted(grant.grant_id, PATIENCE_S)
        with pytest.raises(GrantRefused):
            pair.manager.push_granted(grant, source, [8, 9])
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_a_revoked_grant_is_not_written(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        pair.manager.push_granted(grant, source, [1], seal=False)
        pair.target.revoke_grant(grant.grant_id)
        before = pair.target_bytes(target_id)
        with pytest.raises(GrantRefused):
            pair.manager.push_granted(grant, source, [2], at=1)
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_an_expired_grant_is_not_written(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        pair.manager.push_granted(pair.target.grant(target_id, [0], {}), source, [0])  # the way is open
        grant = pair.target.grant(target_id, [1, 2], {"ttl_s": 0.02})
        with pytest.raises(GrantExpired):
            pair.target.wait_granted(grant.grant_id, PATIENCE_S)
        before = pair.target_bytes(target_id)
        with pytest.raises((GrantRefused, TransferTimeout)):
            pair.manager.push_granted(grant, source, [1, 2])
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)

    def test_a_grant_of_another_incarnation_is_stale(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        with pytest.raises(StaleIncarnation, match="incarnation"):
            pair.manager.push_granted(replace(grant, incarnation=5), source, [1, 2])
        pair.target.revoke_grant(grant.grant_id)

    def test_a_push_beyond_the_grant_is_refused(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        before = pair.target_bytes(target_id)
        grant = pair.target.grant(target_id, [1, 2], {"layers": range(1, 2)})
        with pytest.raises(ParamInvalid):
            pair.manager.push_granted(grant, source, [1, 2, 3])
        with pytest.raises(ParamInvalid):
            pair.manager.push_granted(grant, source, [1, 2], range(2), range(2))
        np.testing.assert_array_equal(pair.target_bytes(target_id), before)
        pair.target.revoke_grant(grant.grant_id)

    def test_a_writer_that_gives_up_reaches_who_waits(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        pair.manager.push_granted(grant, source, [1], seal=False)
        timer = threading.Timer(0.2, pair.manager.fail_granted, (grant, "the request was aborted"))
        timer.start()
        with pytest.raises(GrantFailed, match="the request was aborted"):
            pair.target.wait_granted(grant.grant_id, PATIENCE_S)
        timer.join()

    def test_a_gap_is_no_receipt(self, pair: Pair) -> None:
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        pair.manager.push_granted(grant, source, [1])
        with pytest.raises(GrantIncomplete, match="block 2"):
            pair.target.wait_granted(grant.grant_id, PATIENCE_S)

    def test_a_dead_receiver_of_a_grant_is_lost(self, pair: Pair) -> None:
        if not pair.target.dies_alone:
            return
        source, target_id = pair.source_cache(), pair.target_cache()
        grant = pair.target.grant(target_id, [1, 2], {})
        pair.manager.push_granted(grant, source, [1], seal=False)
        pair.target.kill()  # type: ignore[attr-defined]
        with pytest.raises((PeerLost, NotLinked)):  # NotLinked where the directory was first to know
            pair.manager.push_granted(grant, source, [2], at=1)
