"""The push that doctor tries each transport with: a few blocks, out of order, of two small tensors."""

from __future__ import annotations

from ray_kvfabric.bench.cases import KIB, Case

TRIAL = Case(name="trial", num_tensors=2, block_nbytes=4 * KIB, blocks_per_call=3, num_blocks=8)
LISTS = ([1, 4, 6], [7, 0, 3])
