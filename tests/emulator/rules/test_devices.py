"""Which devices a process sees."""

from __future__ import annotations

import ctypes

import pytest

from tests.emulator.rules.cann import Cann


def _seen() -> list[int]:
    cann = Cann(device=None)
    count = ctypes.c_uint32()
    cann.ok("aclrtGetDeviceCount", ctypes.byref(count))
    physical = []
    for index in range(count.value):
        logic, phy = ctypes.c_int32(-1), ctypes.c_int32(-1)
        cann.ok("aclrtGetLogicDevIdByUserDevId", index, ctypes.byref(logic))
        cann.ok("aclrtGetPhyDevIdByLogicDevId", logic, ctypes.byref(phy))
        physical.append(phy.value)
    return physical


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("0,1,2,3", [0, 1, 2, 3]),
        ("2", [2]),
        ("1,3", [1, 3]),
        ("3,1", [3]),  # not ascending
        ("1,1", [1]),
        ("1, 3", [1]),  # a blank ends it
        ("1,9,3", [1]),  # no such device
        ("1,x", [1]),
        ("-1,1", []),
        ("", []),
    ],
)
def test_visible_devices_ascend_and_end_at_the_first_bad_entry(child, visible, seen):
    environment = {"ASCEND_RT_VISIBLE_DEVICES": visible, "KVFABRIC_EMULATED_NPUS": "4"}
    assert child(_seen, **environment).result() == seen


def _out_of_range() -> None:
    cann = Cann(device=None)
    assert cann.call("aclrtSetDevice", 1) == 107001
    assert cann.call("aclrtSetDevice", -1) == 107001
    cann.ok("aclrtSetDevice", 0)
    assert cann.call("aclrtDeviceEnablePeerAccess", 1, 0) == 107001
    can = ctypes.c_int32()
    assert cann.call("aclrtDeviceCanAccessPeer", ctypes.byref(can), 0, 1) == 107001


def test_a_device_that_is_not_visible_cannot_be_used_even_as_a_peer(child):
    child(_out_of_range, ASCEND_RT_VISIBLE_DEVICES="3", KVFABRIC_EMULATED_NPUS="4").result()


def _soc() -> str:
    cann = Cann(device=None)
    cann.acl.aclrtGetSocName.restype = ctypes.c_char_p
    return cann.acl.aclrtGetSocName().decode()


def test_the_name_of_the_chip_is_what_the_environment_says(child):
    assert child(_soc).result() == "Ascend910B3"
    assert child(_soc, KVFABRIC_EMULATED_SOC="Ascend910_9391").result() == "Ascend910_9391"
