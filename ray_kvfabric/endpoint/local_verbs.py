"""The verbs that copy inside one endpoint (contract 11.8 to 11.10)."""

from __future__ import annotations

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.endpoint.local import check_pairs_of_lists, copy_inside, copy_rows, swap
from ray_kvfabric.errors import ParamInvalid


class LocalVerbs(EndpointCore):
    """No peer is asked, and no time limit applies."""

    def copy_blocks(self, cache: Cache, copy_block_info: dict[int, list[int]]) -> None:
        """Copies each source block to each listed block of the same cache, all tensors, in the dict's order."""
        self._check_open()
        check_type(cache, Cache, "cache")
        sources, targets = check_pairs_of_lists(copy_block_info)
        if not cache.is_blocks_cache:
            raise ParamInvalid(f"cache {cache.cache_id} is not a blocks cache")
        copy_inside(self._local_copier, self._caches, cache.cache_id, sources, targets)

    def copy_cache(
        self,
        dst: Cache,
        src: Cache,
        dst_batch_index: int = 0,
        src_batch_index: int = 0,
        offset: int = 0,
        size: int = -1,
        req_id: int | None = None,
    ) -> None:
        """Copies bytes [offset, offset + size) of a source row into a target row, all tensors; -1: to its end.

        Raises TypeError, ValueError, LLMException (LLM_PARAM_INVALID, LLM_KV_CACHE_NOT_EXIST). `req_id` is for
        the caller's records only.
        """
        self._check_open()
        check_type(dst, Cache, "dst")
        check_type(src, Cache, "src")
        for field, value, width in (
            ("dst_batch_index", dst_batch_index, "uint32"),
            ("src_batch_index", src_batch_index, "uint32"),
            ("offset", offset, "uint64"),
            ("size", size, "int64"),
        ):
            check_int(value, width, field)
        if req_id is not None:
            check_int(req_id, "uint64", "req_id")
        for field, cache in (("dst", dst), ("src", src)):
            if cache.is_blocks_cache:
                raise ParamInvalid(f"{field} {cache.cache_id} is a blocks cache")
        if size != -1 and size <= 0:
            raise ParamInvalid(f"size must be -1 or positive, got {size}")
        source, target = self._caches.find_here(src.cache_id), self._caches.find_here(dst.cache_id)
        copy_rows(self._local_copier, source, target, (src_batch_index, dst_batch_index), offset, size)

    def swap_blocks(self, src_cache: Cache, dst_cache: Cache, src_to_dst: dict[int, int]) -> None:
        """Copies blocks from a host cache to a device cache or back, one way, as LLM-DataDist's verb of this name.

        Raises LLMException: LLM_PARAM_INVALID for a pair that does not fit, or without a device and without
        `emulated_device`.
        """
        self._check_open()
        swap(self._local_copier, self._caches, src_cache, dst_cache, src_to_dst, emulates_device=self._emulates_device)
