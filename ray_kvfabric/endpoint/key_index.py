"""Which request or prefix names which row: the key rules of registered and allocated caches (contract 10.2). Pure.

key i of a list names row i. A req_id that is not set is a placeholder: it takes its row and names nothing.
registered   the first holder keeps a key; a later cache's same key names nothing
allocated    a key that is bound, or listed twice, is refused; so is a second placeholder of a model_id
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_kvfabric.cache.keys import UNSET_ID, CacheKey
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.route import CacheInfo, RowKey

Bound = set[tuple[str, int, int]]  # kind, number, model_id


def bound_keys(caches: Iterable[CacheInfo]) -> Bound:
    """Every key in use; a blocks cache takes the place of its model's placeholder."""
    bound: Bound = set()
    for cache in caches:
        bound.update(key[:3] for key in cache.keys)
        if cache.model_id is not None:
            bound.add(("request", UNSET_ID, cache.model_id))
    return bound


def keys_to_register(keys: Sequence[CacheKey], num_rows: int, bound: Bound) -> tuple[RowKey, ...]:
    """Row keys that the new cache gets: those that are free. A key beyond the last row names nothing."""
    taken = set(bound)
    named = []
    for row_key in _row_keys(keys):
        if row_key.number != UNSET_ID and row_key.row < num_rows and row_key[:3] not in taken:
            taken.add(row_key[:3])
            named.append(row_key)
    return tuple(named)


def keys_to_allocate(keys: Sequence[CacheKey], num_rows: int, bound: Bound) -> tuple[RowKey, ...]:
    """Raises LLMException (LLM_PARAM_INVALID) for too many keys, or one that is bound or listed twice."""
    if len(keys) > num_rows:
        raise ParamInvalid(f"cache_keys has {len(keys)} entries, cache_desc.shape[0] is {num_rows}")
    taken = set(bound)
    for row_key in _row_keys(keys):
        if row_key[:3] in taken:
            raise ParamInvalid(
                f"cache_keys[{row_key.row}] has {_words(row_key)}, which is bound already or listed before"
            )
        taken.add(row_key[:3])
    return tuple(row_key for row_key in _row_keys(keys) if row_key.number != UNSET_ID)


def _row_keys(keys: Sequence[CacheKey]) -> Iterable[RowKey]:
    """A key with a prefix_id alone is no placeholder."""
    for row, key in enumerate(keys):
        if key.req_id != UNSET_ID or key.prefix_id == UNSET_ID:
            yield RowKey("request", key.req_id, key.model_id, row)
        if key.prefix_id != UNSET_ID:
            yield RowKey("prefix", key.prefix_id, key.model_id, row)


def _words(key: RowKey) -> str:
    if key.number == UNSET_ID:
        return f"no req_id for model_id {key.model_id}"
    return f"{'req_id' if key.kind == 'request' else 'prefix_id'} {key.number} for model_id {key.model_id}"
