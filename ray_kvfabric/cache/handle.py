"""Cache: what a manager hands out for a registered or allocated cache (contract section 8.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.html_table import html_table, mebibytes
from ray_kvfabric.cache.types import CacheDesc, Placement
from ray_kvfabric.errors import CacheNotFound, ParamInvalid

if TYPE_CHECKING:
    import torch

CPU_CACHE_ID = -1  # of a Cache made by create_cpu_cache, which no manager knows

# Tensor index -> its bytes, writable: a memoryview, or a uint8 tensor on the device. Raises CacheNotFound when freed.
Opener = Callable[[int], Any]


class Cache:
    """A handle; the memory belongs to the manager (allocated) or to its owner (registered)."""

    __slots__ = ("_cache_desc", "_cache_id", "_is_blocks_cache", "_open", "_tensor_addrs")

    def __init__(
        self,
        cache_id: int,
        cache_desc: CacheDesc,
        tensor_addrs: list[int],
        is_blocks_cache: bool,
        open_tensor: Opener | None = None,
    ) -> None:
        self._cache_id = cache_id
        self._cache_desc = cache_desc
        self._tensor_addrs = tensor_addrs
        self._is_blocks_cache = is_blocks_cache
        self._open = open_tensor

    @classmethod
    def create_cpu_cache(cls, cache_desc: CacheDesc, addrs: list[int]) -> Cache:
        """A blocks cache in host memory that no manager knows; usable in swap_blocks only.

        TypeError for wrong types and for an address that no uint64 holds, LLMException (LLM_PARAM_INVALID) else.
        """
        check_type(cache_desc, CacheDesc, "cache_desc")
        for position, address in enumerate(check_type(addrs, list, "addrs")):
            _check_address(address, f"addrs[{position}]")
        if cache_desc.placement is not Placement.HOST:
            raise ParamInvalid(f"cache_desc.placement must be HOST, got {cache_desc.placement}")
        if len(addrs) != cache_desc.num_tensors:
            raise ParamInvalid(f"addrs has {len(addrs)} entries, cache_desc.num_tensors is {cache_desc.num_tensors}")
        return cls(CPU_CACHE_ID, cache_desc, addrs, is_blocks_cache=True)

    @property
    def cache_id(self) -> int:
        return self._cache_id

    @property
    def cache_desc(self) -> CacheDesc:
        return self._cache_desc

    @property
    def tensor_addrs(self) -> list[int]:
        """Addresses of the tensors; empty once the cache was deallocated."""
        return self._tensor_addrs

    @property
    def is_blocks_cache(self) -> bool:
        return self._is_blocks_cache

    def forget_addresses(self) -> None:
        """Called by the manager when the memory is gone."""
        self._tensor_addrs = []
        self.forget_memory()

    def forget_memory(self) -> None:
        """Called by the manager when it no longer knows the memory; the addresses stay their owner's."""
        self._open = None

    def numpy(self, tensor_index: int) -> NDArray[np.generic]:
        """Tensor `tensor_index` as an array of `cache_desc.shape` over the cache's own memory, no copy.

        bfloat16 is shown as uint16. The view keeps the memory mapped, also after deallocation.
        Raises LLMException: LLM_KV_CACHE_NOT_EXIST when the cache was deallocated or has no memory here,
        LLM_PARAM_INVALID when it lies on a device.
        """
        found = self._bytes(tensor_index)
        if not isinstance(found, memoryview):
            raise ParamInvalid(f"cache {self._cache_id} lies on {found.device}: numpy shows host memory; see torch()")
        return (
            np.frombuffer(found, dtype=np.uint8)
            .view(self._cache_desc.data_type.numpy_dtype)
            .reshape(tuple(self._cache_desc.shape))
        )

    def torch(self, tensor_index: int) -> torch.Tensor:
        """Tensor `tensor_index` as a torch tensor over the cache's own memory, host or device, no copy."""
        import torch

        found = self._bytes(tensor_index)
        flat = torch.frombuffer(found, dtype=torch.uint8) if isinstance(found, memoryview) else found
        kind = getattr(torch, _TORCH_NAMES[self._cache_desc.data_type.name])
        return flat.view(kind).view(*self._cache_desc.shape)

    def read(self, tensor_index: int, blocks: Sequence[int] | None = None) -> NDArray[np.generic]:
        """A copy of tensor `tensor_index`, or of these blocks of it, in host memory, wherever the cache lies."""
        if isinstance(self._bytes(tensor_index), memoryview):
            tensor = self.numpy(tensor_index)
            host: NDArray[np.generic] = tensor.copy() if blocks is None else tensor[list(blocks)]
            return host
        rows = self._rows(tensor_index)
        found = [rows[block].cpu().numpy() for block in self._chosen(blocks)]
        shape = (len(found), *tuple(self._cache_desc.shape)[1:])
        copied: NDArray[np.generic] = np.stack(found).view(self._cache_desc.data_type.numpy_dtype).reshape(shape)
        return copied

    def write(self, tensor_index: int, values: NDArray[np.generic], blocks: Sequence[int] | None = None) -> None:
        """Sets tensor `tensor_index`, or these blocks of it, wherever the cache lies. `values` as `read` gives them.

        Raises LLMException (LLM_PARAM_INVALID) for values of another type or shape.
        """
        desc = self._cache_desc
        shape = (len(self._chosen(blocks)), *tuple(desc.shape)[1:])
        if (values.dtype, values.shape) != (desc.data_type.numpy_dtype, shape):
            raise ParamInvalid(
                f"values are {values.dtype} {values.shape}, cache {self._cache_id} is shown as "
                f"{desc.data_type.numpy_dtype} and {shape} is to be set"
            )
        if isinstance(self._bytes(tensor_index), memoryview):
            self.numpy(tensor_index)[self._chosen(blocks)] = values
            return
        import torch

        rows, flat = self._rows(tensor_index), np.array(values).reshape(shape[0], -1).view(np.uint8)
        for row, block in zip(torch.from_numpy(flat), self._chosen(blocks), strict=True):
            rows[block].copy_(row)

    def _chosen(self, blocks: Sequence[int] | None) -> list[int]:
        return list(range(self._cache_desc.shape[0]) if blocks is None else blocks)

    def _rows(self, tensor_index: int) -> Any:
        """uint8 [blocks, bytes of a block] on the device."""
        return self._bytes(tensor_index).view(self._cache_desc.shape[0], -1)

    def _bytes(self, tensor_index: int) -> Any:
        if self._open is None:
            raise CacheNotFound(f"cache {self._cache_id} has no memory here: deallocated, or not a manager's")
        if not 0 <= tensor_index < self._cache_desc.num_tensors:
            raise ParamInvalid(
                f"tensor_index must be in [0, {self._cache_desc.num_tensors}) for cache {self._cache_id}, "
                f"got {tensor_index}"
            )
        return self._open(tensor_index)

    def __reduce__(self) -> tuple[object, ...]:
        """A pickled handle keeps its numbers; the memory stays with the manager."""
        return type(self), (self._cache_id, self._cache_desc, self._tensor_addrs, self._is_blocks_cache)

    def __repr__(self) -> str:
        return (
            f"Cache(cache_id = {self._cache_id}, device_tensor_addrs = {len(self._tensor_addrs)}, "
            f"is_blocks_cache = {self._is_blocks_cache})"
        )

    def _repr_html_(self) -> str:
        desc, kind = self._cache_desc, "blocks" if self._is_blocks_cache else "rows"
        caption = f"cache {self._cache_id}" if self._tensor_addrs else f"cache {self._cache_id}: deallocated"
        form = desc.num_tensors, str(list(desc.shape)), desc.data_type.name, desc.placement.name
        headings = ("dim 0 counts", "tensors", "shape", "type", "placement", "MiB")
        return html_table(caption, headings, [(kind, *form, mebibytes(desc.num_tensors * desc.size))])


def _check_address(address: object, field: str) -> None:
    try:
        check_int(address, "uint64", field)
    except ValueError as error:
        raise TypeError(str(error)) from None  # the binding's answer to what no native field holds (contract 3.2)


_TORCH_NAMES = {
    "DT_FLOAT": "float32",
    "DT_FLOAT16": "float16",
    "DT_BF16": "bfloat16",
    "DT_INT8": "int8",
    "DT_INT16": "int16",
    "DT_UINT16": "uint16",
    "DT_UINT8": "uint8",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_UINT32": "uint32",
    "DT_UINT64": "uint64",
    "DT_BOOL": "bool",
    "DT_DOUBLE": "float64",
}
