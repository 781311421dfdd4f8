"""LLMDataDist: the one instance of a process, its links and its cache manager (contract section 9)."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.types import LLMRole
from ray_kvfabric.errors import LLMException, LLMStatusCode, ParamInvalid
from ray_kvfabric.integrations.llm_datadist._engine import Engine
from ray_kvfabric.integrations.llm_datadist._engine_options import LISTEN, parse_options
from ray_kvfabric.integrations.llm_datadist.configs import LLMClusterInfo
from ray_kvfabric.integrations.llm_datadist.status import code_2_status
from ray_kvfabric.integrations.llm_datadist.utils import log
from ray_kvfabric.integrations.llm_datadist.utils.utils import check_dict, check_isinstance
from ray_kvfabric.integrations.llm_datadist.v2.cache_manager import CacheManager
from ray_kvfabric.integrations.llm_datadist.v2.config import EngineConfig
from ray_kvfabric.integrations.llm_datadist.v2.init_checks import adapt_options, check_memory_option
from ray_kvfabric.integrations.llm_datadist.v2.llm_types import RegisterMemStatus
from ray_kvfabric.integrations.llm_datadist.v2.llm_utils import parse_listen_ip_info

MAX_NAME = 127
MAX_MEMBERS = 4
_ROLES = {LLMRole.PROMPT: "Prompt", LLMRole.DECODER: "Decoder", LLMRole.MIX: "Mix"}
_life = threading.RLock()  # held by whoever begins or ends the process's instance
Statuses = tuple[LLMStatusCode, list[LLMStatusCode]]


class LLMDataDist:
    """`init` joins the fabric of the Ray cluster, starting both where none runs; `finalize` leaves it.

    Attributes with an underscore are those that programs and their tests reach for (contract section 18).
    """

    llm_engine_instance: ClassVar[LLMDataDist | None] = None

    def __init__(self, role: LLMRole, cluster_id: int) -> None:
        check_isinstance("role", role, LLMRole)
        self._role = role
        self._cluster_id = check_int(cluster_id, "uint64", "cluster_id")
        self._is_initialized = False
        self._enable_cache_mgr = False
        self._enable_local_comm_res = False
        self._engine_options: dict[str, str] = {}
        self._engine_config: EngineConfig | None = None
        self._llm_datadist: Any = None  # the Engine, or the v1 wrapper module
        self._cache_manager: CacheManager | None = None
        self._kv_cache_manager: Any = None

    @property
    def cluster_id(self) -> int:
        return self._cluster_id

    # ---- life --------------------------------------------------------------------------------------

    def init(self, options: dict[str, str]) -> None:
        """A second call does nothing; after a failure it may be called again. Checks in the order of 9.2."""
        with _life:
            if not self._is_initialized:
                self._init(options)

    def _init(self, options: dict[str, str]) -> None:
        if LLMDataDist.llm_engine_instance is not None:
            raise LLMException("Cannot init multiple LLMDataDists", status_code=LLMStatusCode.LLM_FAILED)
        check_memory_option(check_type(options, dict, "options"))
        self._engine_options = {**options, "llm.Role": self._role_to_str(self._role)}
        self._engine_config = None
        self._enable_local_comm_res = "llm.LocalCommRes" in options
        self._enable_cache_mgr = adapt_options(self._engine_options)
        if self._enable_cache_mgr:
            parsed = parse_options(self._engine_options)
            self._llm_datadist = Engine(self._cluster_id, self._role.name, parsed)
            self._cache_manager = CacheManager(self._llm_datadist)
        else:
            self._init_v1()
        LLMDataDist.llm_engine_instance = self
        self._is_initialized = True
        atexit.unregister(_shutdown_handler)
        atexit.register(_shutdown_handler)

    def _init_v1(self) -> None:
        """Whatever module stands under that name runs the deprecated engine; none does here."""
        v1 = import_module("llm_datadist_v1")
        wrapper = v1.llm_wrapper
        EngineConfig.gen_cluster_info_if_not_exist(self._cluster_id, self._role, self._engine_options)
        _check_v1(wrapper.initialize(self._cluster_id, self._engine_options), "init")
        self._llm_datadist = wrapper
        self._kv_cache_manager = v1.KvCacheManager(wrapper, self._role)

    def finalize(self) -> None:
        """Waits for the calls that are under way, unlinks everything and leaves. Nothing without an init."""
        with _life:
            if not self._is_initialized:
                return
            self._is_initialized = False
            if self._kv_cache_manager is not None:
                self._kv_cache_manager._initialized = False
            try:
                self._llm_datadist.finalize()
            finally:
                LLMDataDist.llm_engine_instance = None

    @property
    def cache_manager(self) -> CacheManager:
        self._check_is_inited()
        self._check_is_cache_mgr_mode("cache_manager")
        assert self._cache_manager is not None  # made by init in this mode
        return self._cache_manager

    @property
    def kv_cache_manager(self) -> Any:
        """The v1 engine's. Raises LLMException (LLM_PARAM_INVALID) in cache-manager mode."""
        self._check_is_inited()
        self._check_is_not_cache_mgr_mode("kv_cache_manager")
        return self._kv_cache_manager

    # ---- links by address --------------------------------------------------------------------------

    def link_clusters(self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000) -> Statuses:
        """(LLM_SUCCESS or the last failure, one status a cluster); `timeout` is in ms. Only arguments raise."""
        self._check_is_inited()
        _check_clusters(clusters, timeout)
        if self._enable_cache_mgr:
            for cluster in clusters:
                self._check_local_address(cluster)
                check_int(cluster.remote_cluster_id, "uint64", "remote_cluster_id")
            return self._engine.link_clusters(clusters, timeout)
        return _v1_statuses(self._llm_datadist.link_clusters([_v1_cluster(each) for each in clusters], timeout))

    def _check_local_address(self, cluster: LLMClusterInfo) -> None:
        if not self._engine_options.get("llm.LocalCommRes") and not cluster.local_ip_info_list:
            raise ParamInvalid(
                "local_ip_info_list is empty: call append_local_ip_info, or set local_comm_res to a resource"
            )

    def unlink_clusters(self, clusters: Sequence[LLMClusterInfo], timeout: int = 3000, force: bool = False) -> Statuses:
        """As `link_clusters`. `force` ends this end alone, without a word to the other."""
        self._check_is_inited()
        _check_clusters(clusters, timeout)
        check_isinstance("force", force, bool, allow_none=False)
        for cluster in clusters:
            check_int(cluster.remote_cluster_id, "uint64", "remote_cluster_id")
        if self._enable_cache_mgr:
            return self._engine.unlink_clusters(clusters, timeout, force)
        listed = [_v1_cluster(each) for each in clusters]
        return _v1_statuses(self._llm_datadist.unlink_clusters(listed, timeout, force))

    def check_link_status(self, remote_cluster_id: int) -> None:
        """Of the v1 engine. Raises LLMException (LLM_PARAM_INVALID) in cache-manager mode."""
        self._check_is_inited()
        self._check_is_not_cache_mgr_mode("check_link_status")
        check_int(remote_cluster_id, "uint64", "remote_cluster_id")
        _check_v1(self._llm_datadist.check_link_status(remote_cluster_id), "check_link_status")

    # ---- links by communicator ---------------------------------------------------------------------

    def link(self, comm_name: str, cluster_rank_info: dict[int, int], rank_table: str) -> int:
        """The comm id, 1 first, once every member of `cluster_rank_info` has called this with the same name.

        `rank_table` is not read: Ray knows where everybody is.
        """
        self._check_is_inited()
        self._check_is_cache_mgr_mode("link")
        check_isinstance("comm_name", comm_name, str, allow_none=False)
        if not 1 <= len(comm_name) <= MAX_NAME:
            raise ParamInvalid(f"comm_name must have 1 to {MAX_NAME} characters, got {len(comm_name)}")
        ranks = check_type(cluster_rank_info, dict, "cluster_rank_info")
        check_dict("cluster_rank_info", ranks, int, int)
        if len(ranks) > MAX_MEMBERS:
            raise ParamInvalid(f"cluster_rank_info must have at most {MAX_MEMBERS} members, got {len(ranks)}")
        for cluster_id, rank in ranks.items():
            check_int(cluster_id, "uint64", "cluster_rank_info key")
            check_int(rank, "uint32", "cluster_rank_info value")
        check_isinstance("rank_table", rank_table, str, allow_none=False)
        if len(ranks) < 2:
            raise ParamInvalid(f"cluster_rank_info must have at least 2 members, got {len(ranks)}")
        if list(ranks.values()) != sorted(ranks.values()):
            raise ParamInvalid(f"ranks in cluster_rank_info must not fall, got {list(ranks.values())}")
        return self._engine.link(comm_name, tuple(map(int, ranks)))

    def unlink(self, comm_id: int) -> None:
        """Raises LLMException (LLM_NOT_YET_LINK) for an unknown id."""
        self._check_is_inited()
        self._check_is_cache_mgr_mode("unlink")
        self._engine.unlink(check_int(comm_id, "uint64", "comm_id"))

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """Raises LLMException (LLM_NOT_YET_LINK) for an unknown id."""
        self._check_is_inited()
        self._check_is_cache_mgr_mode("query_register_mem_status")
        return self._engine.query_register_mem_status(check_int(comm_id, "uint64", "comm_id"))

    # ---- roles -------------------------------------------------------------------------------------

    def switch_role(self, role: LLMRole, switch_options: dict[str, str] | None = None) -> None:
        """Another label, and another listen address or none (contract 9.7)."""
        self._check_is_inited()
        check_isinstance("role", role, LLMRole)
        name = self._role_to_str(role)
        check_dict("switch_options", switch_options, str, str)
        options = dict(switch_options or {})
        if self._enable_cache_mgr:
            self._engine.switch_role(options)
        else:
            self._switch_role_v1(role, name, options)
        self._role = role

    def _switch_role_v1(self, role: LLMRole, name: str, options: dict[str, str]) -> None:
        if role is self._role:
            raise ParamInvalid(f"role is {role} already")
        if role is LLMRole.PROMPT and LISTEN not in options:
            raise ParamInvalid(f"switching to {role} needs {LISTEN}")
        if LISTEN in options:
            ip, port = parse_listen_ip_info(options[LISTEN])
            options |= {"llm.ListenIp": str(ip), "llm.ListenPort": str(port)}
        _check_v1(self._llm_datadist.switch_role(name, options), "switch_role")
        self._kv_cache_manager._switch_role(role)

    # ---- inside ------------------------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        engine: Engine = self._llm_datadist
        return engine

    @staticmethod
    def _role_to_str(role: LLMRole) -> str:
        return _ROLES[role] if role is not None else _no_role()

    def _cluster_config(self) -> Any:
        if self._engine_config is None:
            is_prompt = self._role is LLMRole.PROMPT
            self._engine_config = EngineConfig.from_engine_options(is_prompt, self._engine_options)
        return self._engine_config.cluster_config

    def _check_is_inited(self) -> None:
        if not self._is_initialized:
            raise RuntimeError("llm datadist is not initialized")

    def _check_is_cache_mgr_mode(self, name: str) -> None:
        if not self._enable_cache_mgr:
            raise ParamInvalid(f"{name} is not supported when llm.EnableCacheManager is not configured")

    def _check_is_not_cache_mgr_mode(self, name: str) -> None:
        if self._enable_cache_mgr:
            raise ParamInvalid(f"{name} is not supported when llm.EnableCacheManager is configured")


class _NoRole(TypeError, KeyError):
    """A role of None: LLM-DataDist fails with a KeyError; a TypeError is what it is."""


def _no_role() -> str:
    raise _NoRole("role must be an LLMRole, got None")


def _check_clusters(clusters: object, timeout: object) -> None:
    if check_int(timeout, "int32", "timeout") <= 0:
        raise ParamInvalid(f"timeout must be greater than 0, got {timeout}")
    check_isinstance("clusters", clusters, (list, tuple), LLMClusterInfo, allow_none=False)


def _v1_cluster(cluster: LLMClusterInfo) -> tuple[Any, ...]:
    return cluster.remote_cluster_id, 0, cluster.local_ip_info_list, cluster.remote_ip_info_list


def _v1_statuses(answer: tuple[int, list[int]]) -> Statuses:
    return code_2_status(answer[0]), [code_2_status(each) for each in answer[1]]


def _check_v1(code: int, name: str) -> None:
    status = code_2_status(code)
    if status is not LLMStatusCode.LLM_SUCCESS:
        raise LLMException(f"[{name}] failed with {status}", status_code=status)


def _finalize_quietly(finalize: Callable[[], None]) -> None:
    try:
        finalize()
    except LLMException as error:
        log.warning("finalize at exit failed: %s", error)


def _shutdown_handler() -> None:
    """At exit: finalizes the process's instance, if it has one."""
    instance = LLMDataDist.llm_engine_instance
    if instance is not None:
        _finalize_quietly(instance.finalize)
        LLMDataDist.llm_engine_instance = None
