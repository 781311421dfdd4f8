"""Two fabrics in one Ray cluster: same cluster_ids, two names, nothing shared."""

from __future__ import annotations

import numpy as np
import pytest

from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.errors import NotLinked
from ray_kvfabric.fabric import Fabric
from tests.integration.conftest import config, desc, read

pytestmark = pytest.mark.ray


def test_equal_cluster_ids_of_two_fabrics_never_meet(fabric) -> None:
    fabric.add_workers(1)
    with Fabric.connect(config=config()) as other:
        other.add_workers(1)
        here = fabric.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
        there = other.allocate_blocks_cache(1, desc(), BlocksCacheKey(1))
        with fabric.join(2) as one, other.join(2) as two:
            for manager, value in ((one, 1), (two, 2)):
                cache = manager.allocate_blocks_cache(desc())
                cache.numpy(0)[:] = value
                manager.push_blocks(BlocksCacheKey(1), cache, [0], [0])
        assert np.unique(read(fabric, here, [0])[0]) == 1
        assert np.unique(read(other, there, [0])[0]) == 2
        with pytest.raises(NotLinked):
            other.worker(2)
    # the end of one is not the end of the other
    assert [each.endpoint.cluster_id for each in fabric.members()] == [1]
    assert np.unique(read(fabric, here, [0])[0]) == 1
