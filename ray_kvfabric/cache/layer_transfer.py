"""What a layer-wise transfer is asked with, and MemInfo (contract sections 8.7 to 8.11): values, no transfer.

A config says where the layers of one destination go. As with keys there is no equality and no hash; all pickle.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum

from ray_kvfabric.cache.checks import check_int, check_layer_range, check_type
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.errors import ParamInvalid

DestinationKey = BlocksCacheKey | CacheKeyByIdAndIndex


class LayerSynchronizer(ABC):
    """Implemented by the caller: tells a layer-wise transfer when a layer has been computed (contract 8.8)."""

    @abstractmethod
    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        """Blocks until the layer may be read; False ends the transfer. The timeout given is always None."""


def check_uint64s(values: object, field: str) -> Sequence[int]:
    """`values`, the caller's own list or tuple. TypeError for other types, ValueError for a wrong width."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{field} must be a list or tuple, got {type(values).__name__}")
    for position, value in enumerate(values):
        check_int(value, "uint64", f"{field}[{position}]")
    return values


class TransferConfig:
    """Layers go to bare addresses of cluster `dst_cluster_id`, two a layer: K's, then V's (contract 8.9).

    A `src_layer_range` of None means every layer, and is filled in when the transfer starts.
    """

    def __init__(
        self,
        dst_cluster_id: int,
        dst_addrs: Sequence[int],
        src_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.dst_cluster_id = dst_cluster_id
        self.dst_addrs = dst_addrs
        self.src_layer_range = src_layer_range
        self.src_batch_index = src_batch_index
        self.dst_layer_range: range | None = None  # for programs that read it of either config; nothing uses it

    @property
    def dst_cluster_id(self) -> int:
        return self._dst_cluster_id

    @dst_cluster_id.setter
    def dst_cluster_id(self, value: int) -> None:
        self._dst_cluster_id = check_int(value, "uint64", "dst_cluster_id")

    @property
    def dst_addrs(self) -> Sequence[int]:
        return self._dst_addrs

    @dst_addrs.setter
    def dst_addrs(self, value: Sequence[int]) -> None:
        self._dst_addrs = check_uint64s(value, "dst_addrs")

    @property
    def src_layer_range(self) -> range | None:
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range | None) -> None:
        self._src_layer_range = None if value is None else check_layer_range(value, "src_layer_range")

    @property
    def src_batch_index(self) -> int:
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        self._src_batch_index = check_int(value, "uint32", "src_batch_index")

    def __repr__(self) -> str:
        return (
            f"TransferConfig(dst_cluster_id={self._dst_cluster_id}, dst_addrs={self._dst_addrs}, "
            f"src_layer_range={self._src_layer_range}, src_batch_index={self._src_batch_index})"
        )


class TransferWithCacheKeyConfig:
    """Layers go to layers of the cache that `cache_key` names; both ranges are mandatory (contract 8.10).

    The constructor refuses ranges of unequal length. The setters cannot, or neither range could be changed
    first: the transfer checks it again.
    """

    def __init__(
        self,
        cache_key: DestinationKey,
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        src_batch_index: int = 0,
    ) -> None:
        self.cache_key = cache_key
        self._src_layer_range = check_layer_range(src_layer_range, "src_layer_range")
        self._dst_layer_range = check_layer_range(dst_layer_range, "dst_layer_range")
        check_equal_lengths(self)
        self.src_batch_index = src_batch_index
        self.dst_cluster_id = cache_key.cluster_id  # of the first key for good, as in LLM-DataDist

    @property
    def cache_key(self) -> DestinationKey:
        return self._cache_key

    @cache_key.setter
    def cache_key(self, value: DestinationKey) -> None:
        if not isinstance(value, BlocksCacheKey | CacheKeyByIdAndIndex):
            raise TypeError(f"cache_key must be a BlocksCacheKey or a CacheKeyByIdAndIndex, got {type(value).__name__}")
        self._cache_key = value

    @property
    def src_layer_range(self) -> range:
        return self._src_layer_range

    @src_layer_range.setter
    def src_layer_range(self, value: range) -> None:
        self._src_layer_range = check_layer_range(value, "src_layer_range")

    @property
    def dst_layer_range(self) -> range:
        return self._dst_layer_range

    @dst_layer_range.setter
    def dst_layer_range(self, value: range) -> None:
        self._dst_layer_range = check_layer_range(value, "dst_layer_range")

    @property
    def src_batch_index(self) -> int:
        return self._src_batch_index

    @src_batch_index.setter
    def src_batch_index(self, value: int) -> None:
        index = check_int(value, "uint32", "src_batch_index")
        if index and isinstance(self._cache_key, BlocksCacheKey):
            raise ParamInvalid(f"src_batch_index must be 0 when cache_key is a BlocksCacheKey, got {index}")
        self._src_batch_index = index

    def __repr__(self) -> str:
        return (
            f"TransferWithCacheKeyConfig(cache_key={self._cache_key}, src_layer_range={self._src_layer_range}, "
            f"dst_layer_range={self._dst_layer_range}, src_batch_index={self._src_batch_index})"
        )


LayerConfig = TransferConfig | TransferWithCacheKeyConfig


def check_equal_lengths(config: TransferWithCacheKeyConfig, prefix: str = "") -> None:
    """Each source layer has its destination layer, and none is left over. `prefix` says whose ranges they are."""
    source, target = config.src_layer_range, config.dst_layer_range
    if len(source) != len(target):
        raise ParamInvalid(
            f"{prefix}src_layer_range has {len(source)} layers ({source!r}), dst_layer_range has {len(target)} "
            f"({target!r})"
        )


class Memtype(Enum):
    """Where registered memory lies. The numbers are the reverse of Placement's."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1


class MemInfo:
    """`MemInfo(mem_type, addr, size)`: a piece of registered memory, `size` in bytes (contract 8.7).

    Only types are checked here, and None passes for each field: the verb that takes it checks the values.
    """

    def __init__(self, mem_type: Memtype | None, addr: int | None, size: int | None) -> None:
        self._mem_type = None if mem_type is None else check_type(mem_type, Memtype, "mem_type")
        self._addr = None if addr is None else check_type(addr, int, "addr")
        self._size = None if size is None else check_type(size, int, "size")

    @property
    def mem_type(self) -> Memtype | None:
        return self._mem_type

    @property
    def addr(self) -> int | None:
        return self._addr

    @property
    def size(self) -> int | None:
        return self._size

    def __repr__(self) -> str:
        return f"MemInfo(mem_type={self._mem_type}, addr={self._addr}, size={self._size})"
