"""Section 7: LLMClusterInfo, and an address as a number."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from ray_kvfabric.integrations.llm_datadist._addresses import ip_number, ip_text
from tests.contract.conftest import deviates, refused, wrong_ints


@pytest.fixture
def info(llm_datadist: Any) -> Any:
    return llm_datadist.LLMClusterInfo()


@pytest.fixture(params=["local", "remote"])
def side(request: pytest.FixtureRequest, info: Any) -> Any:
    """append(ip, port) and the list it appends to."""
    return getattr(info, f"append_{request.param}_ip_info"), getattr(info, f"{request.param}_ip_info_list")


class TestCluster:
    def test_a_fresh_one_is_empty(self, info: Any) -> None:
        assert info.remote_cluster_id is None
        assert info.remote_role_type is None
        assert info.local_ip_info_list == info.remote_ip_info_list == []

    @pytest.mark.parametrize("value", [0, 2**64 - 1])
    def test_cluster_id(self, info: Any, value: int) -> None:
        info.remote_cluster_id = value
        assert info.remote_cluster_id == value

    @pytest.mark.parametrize(("value", "kind"), wrong_ints("uint64"))
    def test_cluster_id_is_a_uint64(self, info: Any, value: object, kind: type[Exception]) -> None:
        with refused(kind, "remote_cluster_id"):
            info.remote_cluster_id = value

    @pytest.mark.parametrize("value", [1, -5, 2**70, None])
    def test_role_is_a_role_or_any_int_or_none(self, llm_datadist: Any, info: Any, value: object) -> None:
        info.remote_role_type = llm_datadist.LLMRole.PROMPT
        assert info.remote_role_type is llm_datadist.LLMRole.PROMPT
        info.remote_role_type = value
        assert info.remote_role_type == value

    @pytest.mark.parametrize("value", ["PROMPT", 1.0])
    def test_other_roles_are_type_errors(self, info: Any, value: object) -> None:
        with refused(TypeError, "remote_role_type"):
            info.remote_role_type = value

    def test_it_pickles(self, info: Any) -> None:
        info.remote_cluster_id = 7
        info.append_local_ip_info("1.2.3.4", 5)
        again = pickle.loads(pickle.dumps(info))
        assert again.remote_cluster_id == 7
        assert again.local_ip_info_list == [(67305985, 5)]


class TestAddresses:
    @pytest.mark.parametrize(
        ("ip", "number"),
        [("1.2.3.4", 67305985), ("127.1", 0x0100007F), ("255.255.255.255", 2**32 - 1), ("0x7f.1", 0x0100007F)],
    )
    def test_the_lowest_byte_is_the_first_octet(self, side: Any, ip: str, number: int) -> None:
        append, listed = side
        append(ip, 26000)
        assert listed == [(number, 26000)]

    @pytest.mark.parametrize("ip", [0, -1, 2**40])
    def test_an_int_is_stored_unchanged(self, side: Any, ip: int) -> None:
        append, listed = side
        append(ip, 0)
        append(ip, 65535)
        assert listed == [(ip, 0), (ip, 65535)]

    def test_the_lists_are_live_and_cannot_be_replaced(self, info: Any) -> None:
        listed = info.remote_ip_info_list
        info.append_remote_ip_info("1.2.3.4", 1)
        assert listed is info.remote_ip_info_list
        assert len(listed) == 1
        assert info.local_ip_info_list == []
        for name in ("local_ip_info_list", "remote_ip_info_list"):
            with pytest.raises(AttributeError):
                setattr(info, name, [])

    @pytest.mark.parametrize("ip", ["", "host", "1.2.3.256", "::1", "1\0", "\u0661.1.1.1"])
    def test_text_that_is_no_address(self, side: Any, ip: str) -> None:
        append, listed = side
        with refused(RuntimeError, "ip "):
            append(ip, 1)
        assert listed == []

    @pytest.mark.parametrize("ip", [1.0, b"1.2.3.4", ("1.2.3.4",)])
    def test_other_types(self, side: Any, ip: object) -> None:
        with refused(TypeError, "ip "):
            side[0](ip, 1)

    def test_no_ip(self, side: Any) -> None:
        assert deviates("none_ip")
        with refused(TypeError, "ip "):
            side[0](None, 1)

    @pytest.mark.parametrize(("port", "kind"), wrong_ints("uint16"))
    def test_port_is_a_uint16(self, side: Any, port: object, kind: type[Exception]) -> None:
        with refused(kind, "port"):
            side[0]("1.2.3.4", port)


class TestText:
    @pytest.mark.parametrize("text", ["1.2.3.4", "0.0.0.0", "255.255.255.255"])
    def test_there_and_back(self, text: str) -> None:
        assert ip_text(ip_number(text)) == text

    @pytest.mark.parametrize("number", [-1, 2**32])
    def test_what_no_uint32_holds(self, number: int) -> None:
        with refused(TypeError, "uint32"):
            ip_text(number)
