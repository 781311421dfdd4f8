"""DataType and its numpy tables (contract section 4.3)."""

from __future__ import annotations

import numpy as np

from ray_kvfabric.cache.types import DataType as DataType
from ray_kvfabric.integrations.llm_datadist._lazy import no_attribute

# These are LLM-DataDist's tables, not what a view of a cache has: bfloat16 is shown as float16 here.
_NUMPY_NAMES = {
    DataType.DT_FLOAT: "float32",
    DataType.DT_FLOAT16: "float16",
    DataType.DT_BF16: "float16",
    DataType.DT_INT8: "int8",
    DataType.DT_INT16: "int16",
    DataType.DT_UINT16: "uint16",
    DataType.DT_UINT8: "uint8",
    DataType.DT_INT32: "int32",
    DataType.DT_INT64: "int64",
    DataType.DT_UINT32: "uint32",
    DataType.DT_UINT64: "uint64",
    DataType.DT_BOOL: "bool_",
    DataType.DT_DOUBLE: "double",
    DataType.DT_STRING: "bytes_",
}


def __getattr__(name: str) -> object:
    tables = _tables()
    if name not in tables:
        raise no_attribute(__name__, name)
    globals().update(tables)
    return tables[name]


def _tables() -> dict[str, object]:
    by_kind = {kind: getattr(np, numpy_name) for kind, numpy_name in _NUMPY_NAMES.items()}
    by_numpy = {np.dtype(numpy_type): kind for kind, numpy_type in by_kind.items() if kind is not DataType.DT_BF16}
    return {
        "dtype_to_np_dtype": by_kind,
        "valid_np_dtypes": list(by_kind.values()),
        "np_dtype_to_dtype": by_numpy,
    }
