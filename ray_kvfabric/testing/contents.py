"""Bytes of a cache, read and set whether they lie in host memory or on a device."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.errors import ParamInvalid

Bytes = NDArray[np.uint8]


def read_tensor(cache: Cache, tensor: int) -> Bytes:
    """A copy of one tensor, flat."""
    try:
        flat: Bytes = cache.numpy(tensor).reshape(-1).view(np.uint8).copy()
    except ParamInvalid:
        flat = _on_device(cache, tensor).cpu().numpy()
    return flat


def write_tensor(cache: Cache, tensor: int, flat: Bytes) -> None:
    """Sets one tensor."""
    try:
        cache.numpy(tensor).reshape(-1).view(np.uint8)[:] = flat
    except ParamInvalid:
        torch = import_module("torch")
        _on_device(cache, tensor).copy_(torch.from_numpy(flat))


def _on_device(cache: Cache, tensor: int) -> Any:
    return cache.torch(tensor).reshape(-1).view(import_module("torch").uint8)
