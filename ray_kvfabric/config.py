"""Frozen settings; unknown keys are refused. The only reader of YAML and of the environment.

    FabricConfig            one fabric: name, lifetime, scheduler, groups of workers
      EndpointSettings      one endpoint: memory budget, time limits, copy kernel, transports
        AdmissionSettings   how many transfers of it move at once, and who waits

Sizes are bytes, or text such as "512MiB"; times say their unit in their name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ray_kvfabric.errors import ConfigError

NAMESPACE = "kvfabric"

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def _parse_nbytes(value: object) -> object:
    """An int as it is; text as a number and a binary unit."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write a number of bytes, or one with KiB, MiB, GiB or TiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


Nbytes = Annotated[int, BeforeValidator(_parse_nbytes)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolSettings(_Settings):
    """The budget of memory of one kind that an endpoint may allocate caches from."""

    memory_size: Nbytes = Field(default=1 << 30, gt=0, description="bytes that all allocated caches may use")
    page_shift: int = Field(default=16, ge=10, lt=31, description="a tensor takes whole pages of 2**page_shift bytes")
    huge_pages: Literal["auto", "never"] = Field(
        default="auto", description="auto: ask for them where the host allows them for shared memory"
    )


class GrantSettings(_Settings):
    """What a receiver lets writers bring at a time, and for how long."""

    max_grants: int = Field(default=4096, ge=1, description="grants that are not released at a time")
    max_granted_size: Nbytes | None = Field(default=None, gt=0, description="bytes of all of them; None: no limit")
    ttl_s: float = Field(default=60.0, gt=0, description="the life of a grant that names no other")
    watch_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="how often an endpoint looks for writers that died and grants that expired; a look was measured at "
        "0.3 ms with 16 links, and 4 us more a grant",
    )


class AdmissionSettings(_Settings):
    """How much of an endpoint moves at once; what is more waits, the most urgent first."""

    moving_per_target: int = Field(default=16, ge=1, description="transfers that move to or from one endpoint")
    moving_per_link: int = Field(
        default=8, ge=1, le=8, description="transfers that move on one link, whose page has 8 cells"
    )
    moving_bytes_per_target: Nbytes = Field(
        default=256 << 20,
        ge=4 << 20,
        description="bytes of the transfers that move to or from one endpoint, about 25 ms of work of a memory bus: "
        "more at once end no sooner; a larger transfer moves alone",
    )
    max_queued: int = Field(default=1024, ge=0, description="transfers of an endpoint that wait for their first turn")
    ageing_s: float = Field(
        default=0.1,
        gt=0,
        description="after so long a wait behind more urgent transfers on its link a transfer moves one piece of at "
        "most 4 MiB, which takes about 0.4 ms from them; a tenth of the default sync_kv_timeout_ms",
    )


class EndpointSettings(_Settings):
    """One endpoint: a CacheManager and what it may use."""

    mem_pool: PoolSettings | None = Field(default=PoolSettings(), description="what HOST caches are allocated from")
    device_pool: PoolSettings | None = Field(default=None, description="what DEVICE caches are allocated from")
    transfer_mode: Literal["one_sided", "request"] = Field(
        default="one_sided",
        description="request: pulls keep to LLM-DataDist's request mode: keys are used up, placements are checked",
    )
    sync_kv_timeout_ms: int = Field(default=1000, gt=0, le=2**31 - 1, description="bounds a whole transfer call")
    control_timeout_s: float = Field(default=20.0, gt=0, description="bounds a question to the scheduler or a peer")
    device: Annotated[str, Field(pattern=r"^(npu|cuda)(:\d+)?$")] | None = Field(
        default=None,
        description='"npu" or "cuda", with an index ("npu:1") if not torch\'s current one; None: what torch has',
    )
    staging_size: Nbytes = Field(
        default=32 << 20,
        ge=4 << 20,
        description="of device_pool: two buffers between HOST caches and DEVICE ones of peers",
    )
    hccl_buffer_size: Nbytes = Field(
        default=8 << 20, ge=1 << 20, description="of each communicator, whole MiB; it takes twice that of device memory"
    )
    copy_kernel: Literal["native", "python"] = "native"
    copy_threads: int | None = Field(default=None, ge=1, le=64, description="None: one a usable CPU, at most 4")
    transports: tuple[str, ...] | None = Field(default=None, description="None: all that are installed")
    emulated_device: Literal["host"] | None = Field(
        default=None,
        description="host: DEVICE caches lie in host memory, for machines without an accelerator",
    )
    result_ttl_s: float = Field(default=600.0, gt=0, description="how long a finished transfer can be asked for")
    grants: GrantSettings = GrantSettings()
    admission: AdmissionSettings = AdmissionSettings()


class SchedulerSettings(_Settings):
    """The scheduler actor and the liveness of endpoints."""

    lease_s: float = Field(default=15.0, gt=0, description="an endpoint that is silent for so long is forgotten")
    poll_s: float = Field(default=5.0, gt=0, description="length of an endpoint's parked call to the scheduler")
    rebuild_s: float = Field(
        default=3.0,
        ge=0,
        description="how long a restarted scheduler waits for endpoints before it says unknown",
    )
    confirm_s: float = Field(
        default=5.0,
        gt=0,
        description="how long an endpoint whose actor became unavailable is looked for before its lease decides; after "
        "a SIGKILL that was known in 0.03 s of a process and in 2.2 to 2.8 s of one on a Ray node whose raylet was "
        "killed, while Ray counted the node itself as dead after 14 s",
    )
    result_ttl_s: float = Field(default=600.0, gt=0, description="how long it keeps outcomes told by endpoints")


class CacheSettings(_Settings):
    """A blocks cache that each worker of a group allocates at its start."""

    model_id: int = Field(default=0, ge=0, lt=2**64)
    num_tensors: int = Field(gt=0)
    shape: tuple[int, ...] = Field(min_length=1)
    data_type: str = "DT_FLOAT16"
    placement: Literal["HOST", "DEVICE"] = "HOST"


class WorkerGroup(_Settings):
    """`count` equal workers with consecutive cluster_ids from `first_cluster_id`."""

    name: str
    count: int = Field(default=1, ge=1)
    first_cluster_id: int = Field(ge=0, lt=2**64)
    role: Literal["PROMPT", "DECODER", "MIX"] = "MIX"
    num_cpus: float = Field(default=1.0, ge=0)
    resources: dict[str, float] = Field(default_factory=dict, description='{"NPU": 1} or {"GPU": 1} pins a worker')
    label_selector: dict[str, str] = Field(default_factory=dict)
    endpoint: EndpointSettings = EndpointSettings()
    caches: tuple[CacheSettings, ...] = ()


class FabricConfig(_Settings):
    """A whole fabric, as `kvfabric up FILE` starts it."""

    name: str = Field(default="default", min_length=1)
    lifetime: Literal["job", "detached"] = "job"
    placement: Literal["any", "pack", "spread"] = Field(
        default="any", description="pack: all workers on one node; spread: on as many as there are"
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    groups: tuple[WorkerGroup, ...] = ()

    @model_validator(mode="after")
    def _cluster_ids_are_unique(self) -> FabricConfig:
        taken: dict[int, str] = {}
        for group in self.groups:
            for cluster_id in range(group.first_cluster_id, group.first_cluster_id + group.count):
                if cluster_id in taken:
                    raise ValueError(
                        f"groups {taken[cluster_id]!r} and {group.name!r} both have cluster_id {cluster_id}"
                    )
                taken[cluster_id] = group.name
        return self

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> FabricConfig:
        """The fabric of a YAML file. Raises ConfigError that names the file and each bad field."""
        try:
            raw = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls.from_mapping(raw or {}, origin=str(path))

    @classmethod
    def from_mapping(cls, raw: dict[str, Any], origin: str = "configuration") -> FabricConfig:
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(f"{origin}: {_readable(error)}") from None


def _readable(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'top level'}: {problem['msg']}"
        for problem in error.errors()
    )


def endpoint_settings(**overrides: Any) -> EndpointSettings:
    """EndpointSettings with KVFABRIC_COPY (native or python) from the environment, where it is set."""
    kernel = os.environ.get("KVFABRIC_COPY")
    given = {"copy_kernel": kernel, **overrides} if kernel else overrides
    try:
        return EndpointSettings.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"endpoint settings: {_readable(error)}") from None


def ascend_log_level() -> str | None:
    """ASCEND_GLOBAL_LOG_LEVEL, by which programs for LLM-DataDist choose what it logs: "0" debug to "3" error."""
    return os.environ.get("ASCEND_GLOBAL_LOG_LEVEL")


def visible_devices(variable: str) -> list[str] | None:
    """The ids in ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES; None where it is not set."""
    value = os.environ.get(variable)
    return None if value is None else [each.strip() for each in value.split(",") if each.strip()]


def set_environment_default(name: str, value: str) -> None:
    """Sets an environment variable that nobody has set."""
    os.environ.setdefault(name, value)
