"""DataType, Placement, LLMRole and CacheDesc, as in LLM-DataDist (contract sections 4 and 8.1)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum
from math import prod

import numpy as np

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.errors import LLMException, ParamInvalid


class LLMRole(IntEnum):
    """A label; it does not restrict what an endpoint may do."""

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return f"LLMRole.{self.name}"


class Placement(IntEnum):
    """Where a cache's tensors lie."""

    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"Placement.{self.name}"


class DataType(Enum):
    """Element types with the reference's numbers, in its order of declaration."""

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_BF16 = 27
    DT_INT8 = 2
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT8 = 4
    DT_INT32 = 3
    DT_INT64 = 9
    DT_UINT32 = 8
    DT_UINT64 = 10
    DT_BOOL = 12
    DT_DOUBLE = 11
    DT_STRING = 13

    @property
    def element_nbytes(self) -> int:
        return _ELEMENT_NBYTES[self]

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The numpy type of a view; bfloat16 has none and is shown as uint16 bit patterns."""
        return np.dtype(_NUMPY_NAMES[self])


_NUMPY_NAMES = {
    DataType.DT_FLOAT: "float32",
    DataType.DT_FLOAT16: "float16",
    DataType.DT_BF16: "uint16",
    DataType.DT_INT8: "int8",
    DataType.DT_INT16: "int16",
    DataType.DT_UINT16: "uint16",
    DataType.DT_UINT8: "uint8",
    DataType.DT_INT32: "int32",
    DataType.DT_INT64: "int64",
    DataType.DT_UINT32: "uint32",
    DataType.DT_UINT64: "uint64",
    DataType.DT_BOOL: "bool",
    DataType.DT_DOUBLE: "float64",
    DataType.DT_STRING: "V16",
}
_ELEMENT_NBYTES = {kind: np.dtype(name).itemsize for kind, name in _NUMPY_NAMES.items()}
_INT64_MAX = 2**63 - 1


class CacheDesc:
    """The form of a cache: `num_tensors` equal tensors of `shape`, dim 0 counting blocks (or batch rows).

    Raises TypeError and ValueError for wrong types and widths, LLMException (LLM_PARAM_INVALID) for indices
    outside the shape. A shape that cannot be sized is refused when `size` is read.
    """

    def __init__(
        self,
        num_tensors: int,
        shape: Sequence[int],
        data_type: DataType,
        placement: Placement = Placement.DEVICE,
        batch_dim_index: int = 0,
        seq_len_dim_index: int = -1,
        kv_tensor_format: str | None = None,
    ) -> None:
        self._num_tensors = check_int(num_tensors, "uint32", "num_tensors")
        self._shape = _checked_shape(shape)
        self._data_type = check_type(data_type, DataType, "data_type")
        self._placement = check_type(placement, Placement, "placement")
        self._batch_dim_index = _checked_dim(batch_dim_index, "batch_dim_index", len(shape))
        self._batch_size = shape[self._batch_dim_index]
        self._seq_len_dim_index = check_int(seq_len_dim_index, "int32", "seq_len_dim_index")
        if self._seq_len_dim_index != -1:
            _checked_dim(seq_len_dim_index, "seq_len_dim_index", len(shape))
        if kv_tensor_format is not None:
            check_type(kv_tensor_format, str, "kv_tensor_format")
        self._kv_tensor_format = kv_tensor_format
        self._size: int | None = None

    @property
    def num_tensors(self) -> int:
        return self._num_tensors

    @property
    def shape(self) -> Sequence[int]:
        return self._shape

    @property
    def data_type(self) -> DataType:
        return self._data_type

    @property
    def placement(self) -> Placement:
        return self._placement

    @property
    def batch_dim(self) -> int:
        return self._batch_dim_index

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def seq_len_dim_index(self) -> int:
        return self._seq_len_dim_index

    @property
    def kv_tensor_format(self) -> str | None:
        return self._kv_tensor_format

    @property
    def size(self) -> int:
        """Bytes of one tensor, as of its first use or the last `update_dim`.

        Raises LLMException (LLM_SUCCESS, as in LLM-DataDist) for a dimension below 1, or more than an int64 holds.
        """
        if self._size is None:
            self._size = self._computed_size()
        return self._size

    def _computed_size(self) -> int:
        if min(self._shape) <= 0:
            raise LLMException(f"shape {list(self._shape)} has a dimension below 1")
        nbytes = prod(self._shape) * self._data_type.element_nbytes
        if nbytes > _INT64_MAX:
            raise LLMException(f"shape {list(self._shape)} needs {nbytes} bytes, more than an int64 holds")
        return nbytes

    def update_dim(self, dim_index: int, dim_value: int) -> None:
        """Changes one dimension in the caller's own shape; `batch_size` keeps its first value."""
        if not isinstance(self._shape, list):
            raise TypeError("shape must be a list to be updated, got a tuple")
        self._shape[_checked_dim(dim_index, "dim_index", len(self._shape))] = check_int(dim_value, "int64", "dim_value")
        self._size = None

    def __repr__(self) -> str:
        return (
            f"CacheDesc(num_tensors={self._num_tensors}, shape={self._shape}, data_type={self._data_type}, "
            f"placement={self._placement}, batch_dim_index={self._batch_dim_index}, "
            f"seq_len_dim_index={self._seq_len_dim_index},kv_tensor_format={self._kv_tensor_format})"
        )


def _checked_shape(shape: Sequence[int]) -> Sequence[int]:
    if not isinstance(shape, list | tuple):
        raise TypeError(f"shape must be a list or tuple, got {type(shape).__name__}")
    for position, dim in enumerate(shape):
        check_int(dim, "int64", f"shape[{position}]")
    return shape


def _checked_dim(index: int, field: str, rank: int) -> int:
    if not isinstance(index, int):
        raise TypeError(f"{field} must be an int, got {type(index).__name__}")
    if not 0 <= index < rank:
        raise ParamInvalid(f"{field} must be in [0, {rank}) for a shape of {rank} dimensions, got {index}")
    return int(index)
