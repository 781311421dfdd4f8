"""Section 4: members, numbers, order, text."""

from __future__ import annotations

import pickle
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest

BASE = 0x5010B000
STATUS_CODES = {
    "LLM_SUCCESS": 0,
    "LLM_FAILED": 4294967295,
    "LLM_WAIT_PROCESS_TIMEOUT": BASE + 0x01,
    "LLM_KV_CACHE_NOT_EXIST": BASE + 0x02,
    "LLM_REPEAT_REQUEST": BASE + 0x03,
    "LLM_REQUEST_ALREADY_COMPLETED": BASE + 0x04,
    "LLM_PARAM_INVALID": BASE + 0x05,
    "LLM_ENGINE_FINALIZED": BASE + 0x06,
    "LLM_NOT_YET_LINK": BASE + 0x07,
    "LLM_ALREADY_LINK": BASE + 0x08,
    "LLM_LINK_FAILED": BASE + 0x09,
    "LLM_UNLINK_FAILED": BASE + 0x0A,
    "LLM_NOTIFY_PROMPT_UNLINK_FAILED": BASE + 0x0B,
    "LLM_CLUSTER_NUM_EXCEED_LIMIT": BASE + 0x0C,
    "LLM_PROCESSING_LINK": BASE + 0x0D,
    "LLM_DEVICE_OUT_OF_MEMORY": BASE + 0x0E,
    "LLM_PREFIX_ALREADY_EXIST": BASE + 0x0F,
    "LLM_PREFIX_NOT_EXIST": BASE + 0x10,
    "LLM_SEQ_LENOVERLIMIT": BASE + 0x11,
    "LLM_NO_FREE_BLOCK": BASE + 0x12,
    "LLM_BLOCKS_OUT_OF_MEMORY": BASE + 0x13,
    "LLM_EXIST_LINK": BASE + 0x18,
    "LLM_FEATURE_NOT_ENABLED": BASE + 0x19,
    "LLM_TIMEOUT": BASE + 0x1A,
    "LLM_LINK_BUSY": BASE + 0x1B,
    "LLM_OUT_OF_MEMORY": BASE + 0x1C,
    "LLM_DEVICE_MEM_ERROR": 507053,
    "LLM_SUSPECT_REMOTE_ERROR": 507057,
    "LLM_UNKNOWN_ERROR": -1,
}
# name: number, bytes an element, numpy name in LLM-DataDist's table; in the order of declaration
DATA_TYPES = {
    "DT_FLOAT": (0, 4, "float32"),
    "DT_FLOAT16": (1, 2, "float16"),
    "DT_BF16": (27, 2, "float16"),
    "DT_INT8": (2, 1, "int8"),
    "DT_INT16": (6, 2, "int16"),
    "DT_UINT16": (7, 2, "uint16"),
    "DT_UINT8": (4, 1, "uint8"),
    "DT_INT32": (3, 4, "int32"),
    "DT_INT64": (9, 8, "int64"),
    "DT_UINT32": (8, 4, "uint32"),
    "DT_UINT64": (10, 8, "uint64"),
    "DT_BOOL": (12, 1, "bool_"),
    "DT_DOUBLE": (11, 8, "double"),
    "DT_STRING": (13, 16, "bytes_"),
}


def numbers(kind: type[Enum]) -> dict[str, int]:
    return {member.name: member.value for member in kind}


class TestStatusCodes:
    def test_members_and_numbers(self, api: Any) -> None:
        assert numbers(api.LLMStatusCode) == STATUS_CODES

    def test_it_is_an_int(self, api: Any) -> None:
        assert issubclass(api.LLMStatusCode, IntEnum)
        assert api.LLMStatusCode.LLM_TIMEOUT == BASE + 0x1A

    def test_text(self, api: Any) -> None:
        assert str(api.LLMStatusCode.LLM_TIMEOUT) == f"{api.LLMStatusCode.LLM_TIMEOUT}" == "LLMStatusCode.LLM_TIMEOUT"

    def test_unknown_error_is_not_failed(self, api: Any) -> None:
        assert api.LLMStatusCode.LLM_UNKNOWN_ERROR != api.LLMStatusCode.LLM_FAILED


class TestSmallEnums:
    def test_role(self, api: Any) -> None:
        assert issubclass(api.LLMRole, IntEnum)
        assert numbers(api.LLMRole) == {"PROMPT": 1, "DECODER": 2, "MIX": 3}
        assert str(api.LLMRole.PROMPT) == f"{api.LLMRole.PROMPT}" == "LLMRole.PROMPT"

    def test_placement(self, api: Any) -> None:
        assert issubclass(api.Placement, IntEnum)
        assert numbers(api.Placement) == {"HOST": 0, "DEVICE": 1}
        assert str(api.Placement.HOST) == f"{api.Placement.HOST}" == "Placement.HOST"

    def test_memtype_counts_the_other_way_and_is_no_int(self, api: Any) -> None:
        assert not issubclass(api.Memtype, int)
        assert numbers(api.Memtype) == {"MEM_TYPE_DEVICE": 0, "MEM_TYPE_HOST": 1}
        assert str(api.Memtype.MEM_TYPE_HOST) == "Memtype.MEM_TYPE_HOST"

    def test_register_mem_status(self, llm_datadist: Any) -> None:
        assert not issubclass(llm_datadist.RegisterMemStatus, int)
        assert numbers(llm_datadist.RegisterMemStatus) == {"OK": 0, "PREPARING": 1, "FAILED": 2}
        assert str(llm_datadist.RegisterMemStatus.OK) == "RegisterMemStatus.OK"

    @pytest.mark.parametrize(
        ("number", "name"), [(0, "OK"), (1, "PREPARING"), (2, "FAILED"), (3, "FAILED"), (-1, "FAILED")]
    )
    def test_an_unknown_mem_status_is_failed(self, llm_datadist: Any, number: int, name: str) -> None:
        assert llm_datadist.v2.llm_types.int_to_mem_status(number).name == name

    def test_push_type(self, llm_datadist: Any) -> None:
        expected = {"NO_CACHE_KEY": 0, "BLOCKS_CACHE_KEY": 1, "CACHE_KEY_BY_ID": 2}
        assert numbers(llm_datadist.v2.llm_types.PushType) == expected
        assert str(llm_datadist.v2.llm_types.PushType.NO_CACHE_KEY) == "PushType.NO_CACHE_KEY"


class TestDataType:
    def test_members_in_order_of_declaration(self, api: Any) -> None:
        assert list(numbers(api.DataType).items()) == [(name, row[0]) for name, row in DATA_TYPES.items()]

    def test_it_is_no_int(self, api: Any) -> None:
        assert not issubclass(api.DataType, int)
        assert str(api.DataType.DT_BF16) == "DataType.DT_BF16"

    @pytest.mark.parametrize("name", DATA_TYPES)
    def test_element_size(self, api: Any, name: str) -> None:
        assert api.CacheDesc(1, [1], api.DataType[name]).size == DATA_TYPES[name][1]

    def test_numpy_of_each(self, llm_datadist: Any) -> None:
        table = llm_datadist.data_type.dtype_to_np_dtype
        assert table == {llm_datadist.DataType[name]: getattr(np, row[2]) for name, row in DATA_TYPES.items()}
        assert len(table) == 14

    def test_valid_numpy_types_are_a_list(self, llm_datadist: Any) -> None:
        data_type = llm_datadist.data_type
        assert data_type.valid_np_dtypes == list(data_type.dtype_to_np_dtype.values())
        assert np.dtype("int8") in data_type.valid_np_dtypes

    def test_back_from_numpy(self, llm_datadist: Any) -> None:
        """By dtype objects, and bfloat16's stand-in stays float16's."""
        table = llm_datadist.data_type.np_dtype_to_dtype
        expected = {np.dtype(row[2]): name for name, row in DATA_TYPES.items() if name != "DT_BF16"}
        assert {key: kind.name for key, kind in table.items()} == expected
        assert len(table) == 13
        assert all(isinstance(key, np.dtype) for key in table)

    def test_the_tables_are_made_once(self, llm_datadist: Any) -> None:
        assert llm_datadist.data_type.valid_np_dtypes is llm_datadist.data_type.valid_np_dtypes


@pytest.mark.parametrize("name", ["LLMStatusCode", "LLMRole", "Placement", "DataType", "Memtype"])
def test_members_pickle(api: Any, name: str) -> None:
    for member in getattr(api, name):
        assert pickle.loads(pickle.dumps(member)) is member
