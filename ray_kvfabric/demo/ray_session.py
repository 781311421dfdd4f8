"""The Ray that a demo runs in: one that is there, or one of its own, and whether it has the accelerators needed."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray

from ray_kvfabric.config import NAMESPACE
from ray_kvfabric.demo.place import Place
from ray_kvfabric.errors import ConfigError, FabricError

WORKERS = 2
_OBJECT_STORE_NBYTES = 100 * 2**20


@contextmanager
def ray_session(address: str | None, place: Place, start: AbstractContextManager[None]) -> Iterator[None]:
    """The Ray of this process, else the one at `address` or on this host, else a new one that ends with it.

    `start` is entered while one is looked for. Raises FabricError where none starts, and ConfigError where it has
    fewer accelerators than workers need.
    """
    if ray.is_initialized():
        _check_accelerators(place)
        yield
        return
    try:
        with start:
            _init_ray(address, place)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FabricError(f"Ray does not start: {error}") from error
    try:
        _check_accelerators(place)
        yield
    finally:
        ray.shutdown()


def _init_ray(address: str | None, place: Place) -> None:
    quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
            return
        except ConnectionError:
            if address is not None:
                raise
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_NBYTES}
    npus = count_npus() if place.device == "npu" else 0
    if npus:  # told of them, Ray still looks for the chip's type, and complains where that Python module is missing
        own |= {"resources": {"NPU": npus}, "logging_level": logging.CRITICAL}
    ray.init(address="local", **quiet | own)


def count_npus() -> int:
    """The NPUs that CANN lets this process see; 0 where CANN is not installed. Opens none.

    Ray asks the Python module of CANN, which need not be installed, and then counts device files.
    """
    found = ctypes.c_uint32()
    try:
        code: int = ctypes.CDLL("libascendcl.so").aclrtGetDeviceCount(ctypes.byref(found))
    except (OSError, AttributeError):
        return 0
    return 0 if code else found.value


def _check_accelerators(place: Place) -> None:
    if place.resource is None:
        return
    has: float = ray.cluster_resources().get(place.resource, 0)  # type: ignore[no-untyped-call]
    if has < WORKERS:
        raise ConfigError(
            f"--device {place.device} needs {WORKERS} {place.resource}s, one for each worker, and this Ray cluster has "
            f"{has:g}; `ray start` can be told of more by --resources or --num-gpus"
        )
