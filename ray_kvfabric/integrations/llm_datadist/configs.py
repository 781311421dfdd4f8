"""LlmConfig, the options of an engine, and LLMClusterInfo, the other end of a link (contract sections 6 and 7)."""

from __future__ import annotations

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.types import LLMRole as LLMRole
from ray_kvfabric.integrations.llm_datadist import _settings as settings
from ray_kvfabric.integrations.llm_datadist._addresses import ip_number
from ray_kvfabric.integrations.llm_datadist._settings import Setting, if_set, if_truthy
from ray_kvfabric.integrations.llm_datadist.utils.utils import check_dict, check_isinstance


class LlmConfig:
    """Settings that become the str->str options of LLMDataDist.init. A setting is refused when it is assigned.

    `generate_options` gives the config's own dict, the same each time: a key that was once emitted stays in it.
    """

    device_id = Setting(settings.device_ids, None, settings.emit_device_ids)
    sync_kv_timeout = Setting(settings.timeout_ms, None, if_set("llm.SyncKvCacheWaitTime"))
    listen_ip_info = Setting(settings.text, "", if_truthy("llm.listenIpInfo"))
    enable_cache_manager = Setting(settings.flag, False, if_set("llm.EnableCacheManager"))
    enable_remote_cache_accessible = Setting(settings.flag, False, if_set("llm.EnableRemoteCacheAccessible"))
    mem_pool_cfg = Setting(settings.text, "", if_truthy("llm.MemPoolConfig"))
    host_mem_pool_cfg = Setting(settings.text, "", if_truthy("llm.HostMemPoolConfig"))
    rdma_traffic_class = Setting(settings.uint32, None, if_set("llm.RdmaTrafficClass"))
    rdma_service_level = Setting(settings.uint32, None, if_set("llm.RdmaServiceLevel"))
    local_comm_res = Setting(settings.text, "", if_set("llm.LocalCommRes"))
    link_total_time = Setting(settings.int_between(0, 2**32 - 1), 0, if_set("llm.LinkTotalTime"))
    link_retry_count = Setting(settings.int_between(1, 100), 1, if_set("llm.LinkRetryCount"))
    transfer_backend = Setting(settings.text, "", if_set("llm.TransferBackend"))
    global_resource_config = Setting(settings.text, "", if_set("llm.GlobalResourceConfig"))
    # Accepted and emitted for programs that set them; no engine reads them.
    enable_switch_role = Setting(settings.flag, False, if_truthy("llm.EnableSwitchRole"))
    deploy_res_path = Setting(settings.text, "", if_truthy("llm.deployResPath"))
    buf_pool_cfg = Setting(settings.text, "", if_truthy("llm.BufPoolCfg"))
    output_max_size = Setting(settings.any_int, None, if_set("llm.OutputMaxSize"))
    mem_utilization = Setting(settings.fraction, 0.95, if_set("llm.MemoryUtilization"))
    cluster_info = Setting(settings.cluster_info, "", if_truthy("llm.ClusterInfo"))

    def __init__(self) -> None:
        for setting in _SETTINGS:
            setattr(self, setting.slot, None)
        self._mem_utilization = 0.95  # the one that is emitted without having been set
        self._ge_options: dict[str, str] = {}
        self._options: dict[str, str] = {}

    @property
    def ge_options(self) -> dict[str, str]:
        """Further options by their own keys; the settings above override them."""
        return self._ge_options

    @ge_options.setter
    def ge_options(self, value: dict[str, str]) -> None:
        check_dict("ge_options", check_type(value, dict, "ge_options"), str, str)
        self._ge_options = value

    @property
    def options(self) -> dict[str, str]:
        """What was generated so far."""
        return self._options

    def generate_options(self) -> dict[str, str]:
        self._options.update(self._ge_options)
        for setting in _SETTINGS:
            self._options.update(setting.emit(getattr(self, setting.slot)))
        return self._options

    def gen_options(self) -> dict[str, str]:
        return self.generate_options()


_SETTINGS = tuple(each for each in vars(LlmConfig).values() if isinstance(each, Setting))

LLMConfig = LlmConfig


class LLMClusterInfo:
    """A cluster to link to or unlink from: its id and the addresses of both ends."""

    def __init__(self) -> None:
        self._remote_cluster_id: int | None = None
        self._remote_role_type: LLMRole | int | None = None
        self._local_ip_info_list: list[tuple[int, int]] = []
        self._remote_ip_info_list: list[tuple[int, int]] = []

    @property
    def remote_cluster_id(self) -> int | None:
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, value: int) -> None:
        self._remote_cluster_id = check_int(value, "uint64", "remote_cluster_id")

    @property
    def remote_role_type(self) -> LLMRole | int | None:
        """A label that nothing reads."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, value: LLMRole | int | None) -> None:
        check_isinstance("remote_role_type", value, int)
        self._remote_role_type = value

    @property
    def local_ip_info_list(self) -> list[tuple[int, int]]:
        """(ip, port) of this end; the live list."""
        return self._local_ip_info_list

    @property
    def remote_ip_info_list(self) -> list[tuple[int, int]]:
        """(ip, port) of the other end; the live list."""
        return self._remote_ip_info_list

    def append_local_ip_info(self, ip: str | int, port: int) -> None:
        self._local_ip_info_list.append(_address(ip, port))

    def append_remote_ip_info(self, ip: str | int, port: int) -> None:
        self._remote_ip_info_list.append(_address(ip, port))


def _address(ip: str | int, port: int) -> tuple[int, int]:
    """An int is taken as it is. TypeError, ValueError (the port's width) or RuntimeError (no address)."""
    check_isinstance("ip", ip, (str, int), allow_none=False)
    checked_port = check_int(port, "uint16", "port")
    return (ip_number(ip) if isinstance(ip, str) else ip), checked_port
