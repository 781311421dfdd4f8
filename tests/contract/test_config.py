"""Section 6: every property of LlmConfig: what is read, refused, emitted, and when."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from tests.contract.conftest import invalid, refused, wrong_ints

FRESH = {"llm.MemoryUtilization": "0.95"}

READ_WHEN_UNSET = {
    "device_id": None,
    "sync_kv_timeout": None,
    "ge_options": {},
    "listen_ip_info": "",
    "enable_cache_manager": False,
    "enable_remote_cache_accessible": False,
    "mem_pool_cfg": "",
    "host_mem_pool_cfg": "",
    "rdma_traffic_class": None,
    "rdma_service_level": None,
    "local_comm_res": "",
    "link_total_time": 0,
    "link_retry_count": 1,
    "transfer_backend": "",
    "global_resource_config": "",
    "enable_switch_role": False,
    "deploy_res_path": "",
    "buf_pool_cfg": "",
    "output_max_size": None,
    "mem_utilization": 0.95,
    "cluster_info": "",
    "options": {},
}
EMITTED = [
    ("device_id", 3, {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
    ("device_id", 0, {"ge.exec.deviceId": "0", "ge.session_device_id": "0"}),
    ("device_id", [2, 5], {"ge.exec.deviceId": "2;5", "ge.session_device_id": "2"}),
    ("device_id", (7,), {"ge.exec.deviceId": "7", "ge.session_device_id": "7"}),
    ("device_id", 2**31 - 1, {"ge.exec.deviceId": "2147483647", "ge.session_device_id": "2147483647"}),
    ("sync_kv_timeout", 500, {"llm.SyncKvCacheWaitTime": "500"}),
    ("sync_kv_timeout", "500", {"llm.SyncKvCacheWaitTime": "500"}),
    ("ge_options", {"a.b": "c"}, {"a.b": "c"}),
    ("listen_ip_info", "anything", {"llm.listenIpInfo": "anything"}),
    ("listen_ip_info", "", {}),
    ("enable_cache_manager", True, {"llm.EnableCacheManager": "1"}),
    ("enable_cache_manager", False, {"llm.EnableCacheManager": "0"}),
    ("enable_cache_manager", None, {}),
    ("enable_remote_cache_accessible", True, {"llm.EnableRemoteCacheAccessible": "1"}),
    ("enable_remote_cache_accessible", False, {"llm.EnableRemoteCacheAccessible": "0"}),
    ("enable_remote_cache_accessible", None, {}),
    ("mem_pool_cfg", "no json", {"llm.MemPoolConfig": "no json"}),
    ("mem_pool_cfg", "", {}),
    ("host_mem_pool_cfg", "no json", {"llm.HostMemPoolConfig": "no json"}),
    ("host_mem_pool_cfg", "", {}),
    ("rdma_traffic_class", 0, {"llm.RdmaTrafficClass": "0"}),
    ("rdma_traffic_class", 133, {"llm.RdmaTrafficClass": "133"}),
    ("rdma_service_level", 100, {"llm.RdmaServiceLevel": "100"}),
    ("local_comm_res", "{}", {"llm.LocalCommRes": "{}"}),
    ("local_comm_res", "", {"llm.LocalCommRes": ""}),
    ("link_total_time", 0, {"llm.LinkTotalTime": "0"}),
    ("link_total_time", 2**32 - 1, {"llm.LinkTotalTime": "4294967295"}),
    ("link_retry_count", 1, {"llm.LinkRetryCount": "1"}),
    ("link_retry_count", 100, {"llm.LinkRetryCount": "100"}),
    ("transfer_backend", "hixl", {"llm.TransferBackend": "hixl"}),
    ("transfer_backend", "", {"llm.TransferBackend": ""}),
    ("global_resource_config", "x", {"llm.GlobalResourceConfig": "x"}),
    ("global_resource_config", "", {"llm.GlobalResourceConfig": ""}),
    ("enable_switch_role", True, {"llm.EnableSwitchRole": "1"}),
    ("enable_switch_role", False, {}),
    ("enable_switch_role", None, {}),
    ("deploy_res_path", "/x", {"llm.deployResPath": "/x"}),
    ("deploy_res_path", "", {}),
    ("buf_pool_cfg", "x", {"llm.BufPoolCfg": "x"}),
    ("buf_pool_cfg", "", {}),
    ("output_max_size", 9, {"llm.OutputMaxSize": "9"}),
    ("mem_utilization", 0.5, {"llm.MemoryUtilization": "0.5"}),
    ("mem_utilization", 0.0, {"llm.MemoryUtilization": "0.0"}),
    ("mem_utilization", 1.0, {"llm.MemoryUtilization": "1.0"}),
    ("cluster_info", '{"a": 1}', {"llm.ClusterInfo": '{"a": 1}'}),
]
TEXTS = [name for name, value in READ_WHEN_UNSET.items() if value == "" and name != "cluster_info"]
FLAGS = [name for name, value in READ_WHEN_UNSET.items() if value is False]
TYPE_ERRORS = [
    *((name, value) for name in TEXTS for value in (1, b"x", ["x"], {})),
    *((name, value) for name in FLAGS for value in (1, 0, "1", np.bool_(True))),
    *(("device_id", value) for value in (None, "0", 1.0, range(2), {0}, np.int64(0), [0, "1"], [None])),
    *(("sync_kv_timeout", value) for value in (1.0, [1], None, np.int64(1))),
    *(("ge_options", value) for value in (1, "a", [("a", "b")], {"a": 1}, {1: "a"}, {"a": None}, None)),
    *(("link_total_time", value) for value in (1.0, "1", None, np.int64(1))),
    *(("link_retry_count", value) for value in (1.0, "1", None, np.int64(1))),
    *(("output_max_size", value) for value in (1.0, "1", np.int64(1))),
    *(("mem_utilization", value) for value in (1, 0, True, "0.5", None)),
    *(("cluster_info", value) for value in (1, None, {})),
]
INVALID = [
    ("device_id", -1),
    ("device_id", -(2**31) - 1),
    ("device_id", [0, -1]),
    ("device_id", []),
    *(("sync_kv_timeout", value) for value in (0, -1, "0", "-1", "1.5", "", " 1", "1s", "\u0661")),
    *(("link_total_time", value) for value in (-1, 2**32)),
    *(("link_retry_count", value) for value in (0, 101, -1)),
    *(("mem_utilization", value) for value in (-0.1, 1.1, float("nan"))),
]
VALUE_ERRORS = [
    ("device_id", 2**31),
    ("device_id", [0, 2**31]),
    ("sync_kv_timeout", 2**31),
    ("sync_kv_timeout", str(2**31)),
]


@pytest.fixture
def config(llm_datadist: Any) -> Any:
    return llm_datadist.LlmConfig()


class TestReading:
    @pytest.mark.parametrize("name", READ_WHEN_UNSET)
    def test_while_unset(self, config: Any, name: str) -> None:
        assert getattr(config, name) == READ_WHEN_UNSET[name]
        assert type(getattr(config, name)) is type(READ_WHEN_UNSET[name])

    @pytest.mark.parametrize(("name", "value", "_"), EMITTED)
    def test_what_was_set_is_read_as_it_was_given(self, config: Any, name: str, value: Any, _: Any) -> None:
        setattr(config, name, value)
        assert getattr(config, name) == (READ_WHEN_UNSET[name] if value is None else value)

    def test_options_cannot_be_set(self, config: Any) -> None:
        with pytest.raises(AttributeError):
            config.options = {}

    def test_two_configs_do_not_share_settings(self, llm_datadist: Any, config: Any) -> None:
        config.device_id, config.ge_options["a"] = 1, "b"
        assert llm_datadist.LlmConfig().generate_options() == FRESH


class TestEmission:
    @pytest.mark.parametrize(("name", "value", "keys"), EMITTED)
    def test_keys(self, config: Any, name: str, value: Any, keys: dict[str, str]) -> None:
        setattr(config, name, value)
        assert config.generate_options() == FRESH | keys

    def test_a_fresh_config(self, config: Any) -> None:
        assert config.generate_options() == FRESH

    def test_the_two_names_and_the_property_agree(self, config: Any) -> None:
        config.device_id = 1
        assert config.generate_options() is config.gen_options() is config.options

    def test_keys_accumulate(self, config: Any) -> None:
        config.listen_ip_info = "1.1.1.1:1"
        config.generate_options()["mine"] = "stays"
        config.listen_ip_info = ""
        assert config.generate_options() == FRESH | {"llm.listenIpInfo": "1.1.1.1:1", "mine": "stays"}

    def test_properties_override_ge_options(self, config: Any) -> None:
        config.device_id = 1
        config.ge_options = {"ge.exec.deviceId": "9", "llm.MemoryUtilization": "0.1", "other": "x"}
        expected = {"ge.exec.deviceId": "1", "ge.session_device_id": "1", "other": "x"}
        assert config.generate_options() == FRESH | expected

    def test_a_bool_given_for_an_int_counts_as_one(self, config: Any) -> None:
        config.sync_kv_timeout = config.link_retry_count = config.rdma_service_level = True
        options = config.generate_options()
        assert options["llm.SyncKvCacheWaitTime"] == options["llm.LinkRetryCount"] == "1"
        assert options["llm.RdmaServiceLevel"] == "1"

    def test_the_private_attribute_that_programs_write(self, config: Any) -> None:
        """Section 18."""
        assert config._enable_remote_cache_accessible is None
        config._enable_remote_cache_accessible = True
        assert config.enable_remote_cache_accessible is True
        assert config.generate_options() == FRESH | {"llm.EnableRemoteCacheAccessible": "1"}


class TestRefusals:
    @pytest.mark.parametrize(("name", "value"), TYPE_ERRORS)
    def test_wrong_types(self, config: Any, name: str, value: Any) -> None:
        with refused(TypeError, name):
            setattr(config, name, value)

    @pytest.mark.parametrize(("name", "value"), INVALID)
    def test_wrong_values(self, config: Any, name: str, value: Any) -> None:
        with invalid(name):
            setattr(config, name, value)

    @pytest.mark.parametrize(("name", "value"), VALUE_ERRORS)
    def test_wrong_widths(self, config: Any, name: str, value: Any) -> None:
        with refused(ValueError, name):
            setattr(config, name, value)

    @pytest.mark.parametrize("name", ["rdma_traffic_class", "rdma_service_level"])
    @pytest.mark.parametrize(("value", "kind"), wrong_ints("uint32"))
    def test_rdma_settings_are_uint32(self, config: Any, name: str, value: Any, kind: type[Exception]) -> None:
        with refused(kind, name):
            setattr(config, name, value)

    @pytest.mark.parametrize("name", [*TEXTS, "output_max_size"])
    def test_none_leaves_a_setting_unset(self, config: Any, name: str) -> None:
        """Section 3.1: the type check lets None pass."""
        setattr(config, name, None)
        assert getattr(config, name) == READ_WHEN_UNSET[name]
        assert config.generate_options() == FRESH

    def test_a_refused_value_is_not_kept(self, config: Any) -> None:
        config.link_retry_count = 5
        with invalid():
            config.link_retry_count = 101
        assert config.link_retry_count == 5


class TestClusterInfo:
    def test_ips_become_numbers(self, config: Any) -> None:
        config.cluster_info = json.dumps(
            {"cluster_id": 1, "listen_ip_info": [{"ip": "1.2.3.4", "port": 1}, {"ip": 5, "port": 2}]}
        )
        stored = json.loads(config.generate_options()["llm.ClusterInfo"])
        assert stored == {"cluster_id": 1, "listen_ip_info": [{"ip": 67305985, "port": 1}, {"ip": 5, "port": 2}]}
        assert json.loads(config.cluster_info) == stored

    @pytest.mark.parametrize("text", ["", "{", "not json"])
    def test_other_text_is_a_json_error(self, config: Any, text: str) -> None:
        with pytest.raises(json.JSONDecodeError):
            config.cluster_info = text

    def test_an_ip_that_is_none(self, config: Any) -> None:
        with refused(RuntimeError, "ip 'x'"):
            config.cluster_info = '{"listen_ip_info": [{"ip": "x"}]}'


def test_it_pickles(config: Any) -> None:
    config.device_id, config.enable_cache_manager, config.ge_options = [1, 2], True, {"a": "b"}
    again = pickle.loads(pickle.dumps(config))
    assert again.generate_options() == config.generate_options()
    assert again.device_id == [1, 2]
