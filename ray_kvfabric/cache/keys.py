"""The keys that name a cache: by blocks, by request, or by id (contract sections 8.2 to 8.4).

Keys have no equality and no hash, as in LLM-DataDist: two that look alike compare unequal. They pickle.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.errors import ParamInvalid

UNSET_ID = 2**64 - 1  # a req_id or prefix_id of this value means "not set"


class CacheName(NamedTuple):
    """What a directory is asked for: one cache of an endpoint.

    kind      number       model_id
    model     0            the blocks cache's
    id        cache_id     0
    request   req_id       the key's
    prefix    prefix_id    the key's
    address   any address inside one of its tensors, 0
    """

    kind: Literal["model", "id", "request", "prefix", "address"]
    number: int
    model_id: int = 0

    def __str__(self) -> str:
        if self.kind == "model":
            return f"blocks cache of model_id={self.model_id}"
        if self.kind == "id":
            return f"cache {self.number}"
        if self.kind == "address":
            return f"cache at address {self.number:#x}"
        return f"cache of {self.kind} id {self.number}, model_id={self.model_id}"


WayName = tuple[int, CacheName]  # cluster_id, and a cache there


def _bind(kind: str, names: tuple[str, ...], args: tuple[object, ...], kwargs: dict[str, object]) -> dict[str, object]:
    """Arguments by name; a positional wins over its keyword, cluster_id over prompt_cluster_id."""
    if len(args) + len(kwargs) > len(names):
        raise ParamInvalid(f"Unsupported arguments of {kind}: at most {len(names)}, {', '.join(names)}")
    unknown = sorted(set(kwargs) - set(names) - {"prompt_cluster_id"})
    if unknown:
        raise ParamInvalid(f"Unsupported arguments of {kind}: {', '.join(unknown)}")
    bound = {**kwargs, **dict(zip(names, args, strict=False))}
    if "prompt_cluster_id" in bound:
        bound.setdefault("cluster_id", bound.pop("prompt_cluster_id"))
    if "cluster_id" not in bound:
        raise ParamInvalid(f"cluster_id is required by {kind}")
    return bound


class BlocksCacheKey:
    """`BlocksCacheKey(cluster_id, model_id=0)`: the blocks cache of model `model_id` at endpoint `cluster_id`.

    `prompt_cluster_id` is another spelling of `cluster_id`. At registration only `model_id` counts.
    """

    __slots__ = ("_cluster_id", "_model_id", "_prompt_spelling", "_way")

    def __init__(self, *args: object, **kwargs: object) -> None:
        bound = _bind("BlocksCacheKey", ("cluster_id", "model_id"), args, kwargs)
        self._prompt_spelling = not args and "cluster_id" not in kwargs
        self._cluster_id = _checked_lenient(bound["cluster_id"], "cluster_id")
        self._model_id = _checked_lenient(bound.get("model_id", 0), "model_id")
        self._way = (self._cluster_id, CacheName("model", 0, self._model_id))

    @property
    def way(self) -> WayName:
        """What a push to this key asks for; made once, because pushes are many."""
        return self._way

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        return self._cluster_id

    @property
    def model_id(self) -> int:
        return self._model_id

    def __repr__(self) -> str:
        name = "prompt_cluster_id" if self._prompt_spelling else "cluster_id"
        return f"BlocksCacheKey({name}={self._cluster_id}, model_id={self._model_id})"


def _checked_lenient(value: object, field: str) -> int:
    """Any int, of any size: the width is only checked when the key is used (contract 3.2)."""
    if not isinstance(value, int):
        raise TypeError(f"{field} only support int, got {type(value).__name__}")
    return value


class CacheKey:
    """`CacheKey(cluster_id, req_id, model_id=0, prefix_id=2**64-1)`: one request's row of a continuous cache."""

    __slots__ = ("_cluster_id", "_model_id", "_prefix_id", "_req_id")

    def __init__(self, *args: object, **kwargs: object) -> None:
        bound = _bind("CacheKey", ("cluster_id", "req_id", "model_id", "prefix_id"), args, kwargs)
        if "req_id" not in bound:
            raise ParamInvalid("req_id is required by CacheKey")
        self._cluster_id = check_int(bound["cluster_id"], "uint64", "cluster_id")
        self._req_id = check_int(bound["req_id"], "uint64", "req_id")
        self._model_id = check_int(bound.get("model_id", 0), "uint64", "model_id")
        self._prefix_id = check_int(bound.get("prefix_id", UNSET_ID), "uint64", "prefix_id")

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        return self._cluster_id

    @property
    def req_id(self) -> int:
        return self._req_id

    @property
    def prefix_id(self) -> int:
        return self._prefix_id

    @property
    def model_id(self) -> int:
        return self._model_id

    def __repr__(self) -> str:
        return (
            f"CacheKey(cluster_id={self._cluster_id}, req_id={self._req_id}, "
            f"prefix_id={self._prefix_id}, model_id={self._model_id})"
        )


class CacheKeyByIdAndIndex:
    """`CacheKeyByIdAndIndex(cluster_id, cache_id, batch_index=0)`: one row of the cache with this id."""

    __slots__ = ("_batch_index", "_cache_id", "_cluster_id")

    def __init__(self, cluster_id: int, cache_id: int, batch_index: int = 0) -> None:
        self._cluster_id = check_int(cluster_id, "uint64", "cluster_id")
        self._cache_id = check_int(cache_id, "int64", "cache_id")
        self._batch_index = check_int(batch_index, "uint32", "batch_index")

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    @property
    def cache_id(self) -> int:
        return self._cache_id

    @property
    def batch_index(self) -> int:
        return self._batch_index

    def __repr__(self) -> str:
        return (
            f"CacheKeyByIdAndIndex(cluster_id={self._cluster_id}, cache_id={self._cache_id}, "
            f"batch_index={self._batch_index})"
        )
