"""The prototypes are those of the real headers, in a wheel: KVFABRIC_TORCH_NPU names the folder around torch_npu."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulator.rules.cann import REPOSITORY

EMULATOR = REPOSITORY / "native_ext" / "cann_emulator"


def _compile(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    wheel = os.environ.get("KVFABRIC_TORCH_NPU")
    assert wheel, "KVFABRIC_TORCH_NPU must name the folder that holds torch_npu"
    command = ["make", "-C", str(source), "abi", f"HEADERS={wheel}/torch_npu/include", f"OUT={out}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prototypes_layouts_and_numbers_are_those_of_the_wheel(tmp_path):
    done = _compile(EMULATOR, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("hccl.h", "uint32_t rank, const HcclCommConfig *config", "uint32_t rank, HcclCommConfig *config"),
        ("hccl.h", "  char udi[128];", "  char udi[120];"),
        ("hccl.h", "kUint8 = 7", "kUint8 = 8"),
        (
            "acl.h",
            "aclrtSynchronizeStreamWithTimeout, (aclrtStream stream, int32_t",
            "aclrtSynchronizeStreamWithTimeout, (aclrtStream stream, uint32_t",
        ),
        ("acl.h", "(void **address, const char *key, uint64_t flags)", "(void **address, char *key, uint64_t flags)"),
        ("acl_types.h", "stream_sync_timeout = 507046", "stream_sync_timeout = 507047"),
        ("acl_types.h", "uint32_t reserved[4];", "uint32_t reserved[5];"),
        ("refused.inc", "(aclrtProcessReport, (int32_t))", "(aclrtProcessReport, (int64_t))"),
    ],
)
def test_a_mistake_in_a_header_does_not_compile(tmp_path, file, right, wrong):
    copy = tmp_path / "emulator"
    shutil.copytree(EMULATOR, copy)
    header = copy / "api" / file
    text = header.read_text()
    assert right in text
    header.write_text(text.replace(right, wrong))
    done = _compile(copy, tmp_path / "out")
    assert done.returncode != 0
    assert "static assertion failed" in done.stderr
