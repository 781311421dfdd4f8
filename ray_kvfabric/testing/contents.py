"""Bytes of a cache, read and set whether they lie in host memory or on a device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.cache.handle import Cache

Bytes = NDArray[np.uint8]


def read_tensor(cache: Cache, tensor: int) -> Bytes:
    """A copy of one tensor, flat."""
    return cache.read(tensor).reshape(-1).view(np.uint8)


def write_tensor(cache: Cache, tensor: int, flat: Bytes) -> None:
    """Sets one tensor."""
    desc = cache.cache_desc
    cache.write(tensor, flat.view(desc.data_type.numpy_dtype).reshape(tuple(desc.shape)))
