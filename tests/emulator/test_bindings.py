"""The structures and numbers of our ctypes bindings are those of the headers inside the installed torch_npu."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path

import pytest

from ray_kvfabric.memory import acl
from ray_kvfabric.memory.device import Direction
from ray_kvfabric.transport import hccl_library

PROGRAM = """
#include <cstddef>
#include <cstdio>
#include "hccl/hccl.h"
#include "hccl/hccl_types.h"
#include "acl/acl.h"
#define FIELD(type, field) std::printf("\\"%s\\": %zu, ", #field, offsetof(type, field))
int main() {
    std::printf("{\\"config\\": {");
    FIELD(HcclCommConfig, hcclBufferSize); FIELD(HcclCommConfig, hcclDeterministic);
    FIELD(HcclCommConfig, hcclCommName);
    FIELD(HcclCommConfig, hcclUdi); FIELD(HcclCommConfig, hcclOpExpansionMode);
    FIELD(HcclCommConfig, hcclRdmaTrafficClass); FIELD(HcclCommConfig, hcclRdmaServiceLevel);
    FIELD(HcclCommConfig, hcclWorldRankID); FIELD(HcclCommConfig, hcclJobID);
    FIELD(HcclCommConfig, aclGraphZeroCopyEnable); FIELD(HcclCommConfig, hcclExecTimeOut);
    FIELD(HcclCommConfig, hcclAlgo); FIELD(HcclCommConfig, hcclRetryEnable); FIELD(HcclCommConfig, hcclRetryParams);
    FIELD(HcclCommConfig, hcclBufferName); FIELD(HcclCommConfig, hcclQos);
    FIELD(HcclCommConfig, hcclSymWinMaxMemSizePerRank);
    std::printf("\\"size\\": %zu}, \\"item\\": {", sizeof(HcclCommConfig));
    FIELD(HcclSendRecvItem, sendRecvType); FIELD(HcclSendRecvItem, buf); FIELD(HcclSendRecvItem, count);
    FIELD(HcclSendRecvItem, dataType); FIELD(HcclSendRecvItem, remoteRank);
    std::printf("\\"size\\": %zu}, ", sizeof(HcclSendRecvItem));
    std::printf("\\"numbers\\": [%zu, %u, %u, %d, %d, %d, %d, %d, %d, %d, %u, %u, %d]}",
        sizeof(HcclRootInfo), HCCL_COMM_CONFIG_MAGIC_WORD, HCCL_COMM_CONFIG_VERSION, HCCL_E_AGAIN, HCCL_SEND, HCCL_RECV,
        HCCL_DATA_TYPE_UINT8, ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_DEVICE_TO_DEVICE,
        ACL_STREAM_FAST_LAUNCH, ACL_STREAM_FAST_SYNC, ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
    return 0;
}
"""


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("headers")
    source, program = folder / "offsets.cpp", folder / "offsets"
    source.write_text(PROGRAM)
    include = Path(os.environ["KVFABRIC_TORCH_NPU"]) / "torch_npu" / "include"
    folders = [f"-isystem{include / part}" for part in ("", "third_party/acl/inc", "third_party/hccl/inc")]
    subprocess.run(["g++", "-std=c++17", "-w", *folders, "-c", source, "-o", f"{program}.o"], check=True, timeout=60)
    subprocess.run(["g++", f"{program}.o", "-o", program], check=True, timeout=60)
    found: dict[str, dict[str, int]] = json.loads(subprocess.check_output([program], text=True, timeout=60))
    return found


def test_the_configuration_of_a_communicator_has_its_fields_where_hccl_looks(
    headers: dict[str, dict[str, int]],
) -> None:
    config = hccl_library.CommConfig
    names = [name for name, _ in config._fields_][4:]  # after size, magic, version and reserved
    ours = [getattr(config, name).offset for name in names]
    assert [*ours, ctypes.sizeof(config)] == list(headers["config"].values())


def test_an_item_of_a_batch_has_its_fields_where_hccl_looks(headers: dict[str, dict[str, int]]) -> None:
    item = hccl_library.ITEM
    ours = [item.fields[name][1] for name in ("type", "buffer", "count", "data_type", "rank")]  # type: ignore[index]
    assert [*ours, item.itemsize] == list(headers["item"].values())


def test_numbers_are_those_of_the_headers(headers: dict[str, dict[str, int]]) -> None:
    config = hccl_library.comm_config(1)
    assert headers["numbers"] == [
        hccl_library.ROOT_INFO_NBYTES, config.magic, config.version, hccl_library.AGAIN, hccl_library.SEND,
        hccl_library.RECEIVE, hccl_library._UINT8, Direction.TO_DEVICE, Direction.TO_HOST, Direction.INSIDE,
        acl.FAST_LAUNCH, acl.FAST_SYNC, acl.STREAM_SYNC_TIMEOUT,
    ]  # fmt: skip
