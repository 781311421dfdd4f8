"""Whether granted blocks hold what their writers read from the source: digest by digest."""

from __future__ import annotations

import numpy as np

from ray_kvfabric.errors import DigestMismatch
from ray_kvfabric.grant import Grant, Share
from ray_kvfabric.memory.copy import Copier, RegionTable
from ray_kvfabric.transport import _shared_page as shared_page


def check_digests(copier: Copier, page: shared_page.SharedPage, grant: Grant, table: RegionTable, share: Share) -> None:
    """Raises DigestMismatch naming the first block that differs. `share` is whole tensors of the grant."""
    first, tensors, _, blocks = share
    found = np.zeros(tensors * blocks, np.uint32)
    listed = copier.BlockList(grant.blocks, "blocks")
    copier.block_digests(table, grant.first_tensor + first, tensors, listed, found)
    told = np.frombuffer(page.digests(grant.board, first, tensors * blocks), np.uint32)
    differing = np.flatnonzero(found != told)
    if len(differing):
        tensor, at = divmod(int(differing[0]), blocks)
        raise DigestMismatch(
            f"{grant}: block {grant.blocks[at]} of tensor {grant.first_tensor + first + tensor} has {grant.verify} "
            f"{found[differing[0]]:08x}, its writer read {told[differing[0]]:08x} from the source; "
            f"{len(differing)} of {len(found)} blocks differ"
        )
