"""Very many pushes with faults, blocks that change hands meanwhile, and a shadow copy of every byte.

RUNS=n pushes in all (100,000 by default), SEED=n; what happened how often is printed (pytest -s).
"""

from __future__ import annotations

import os
import secrets

import pytest

from ray_kvfabric.testing.faults import Point
from tests.shadow.deaths import die_at
from tests.shadow.run import run
from tests.shadow.storm import storm

RUNS = int(os.environ.get("RUNS", "100000"))
SEED = int(os.environ.get("SEED", str(secrets.randbits(31))))
SHARES = {"loopback": 0.4, "shared_memory": 0.05, "process_vm": 0.05}  # of each, with digests and without


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no-digests"])
@pytest.mark.parametrize("transport", SHARES)
def test_no_receipt_is_for_wrong_bytes_and_no_byte_is_written_that_was_not_granted(
    transport: str, digests: bool
) -> None:
    counts = run(transport, SEED, int(RUNS * SHARES[transport]), digests=digests)
    print(f"\n{transport}, SEED={SEED}:", *(f"  {what:32} {count}" for what, count in sorted(counts.items())), sep="\n")
    assert counts["wait GrantReceipt"] > counts["pushes"] / 10


@pytest.mark.parametrize("transport", ["loopback", "shared_memory"])
def test_blocks_are_written_by_nobody_once_a_revoke_has_returned(transport: str) -> None:
    print(f"\nstorm over {transport}, SEED={SEED}: {storm(transport, SEED, RUNS // 200)} pushes")


@pytest.mark.parametrize("seals", [True, False], ids=["sealing", "not-sealing"])
@pytest.mark.parametrize("verify", ["crc32c", None])
@pytest.mark.parametrize("transport", ["shared_memory", "process_vm"])
@pytest.mark.parametrize("point", list(Point))
def test_a_writers_death_is_heard_at_once(point: Point, transport: str, verify: str | None, seals: bool) -> None:
    landed = point is Point.LANDED and seals
    outcome, text = die_at(point, transport, seals=seals, verify=verify)
    assert outcome == ("GrantReceipt" if landed else "PeerLost"), text
