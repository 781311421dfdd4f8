"""Where K and V of both workers lie and how they travel: what the demo asks of Ray, and of each endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ray_kvfabric.config import EndpointSettings, PoolSettings
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.transport.registry import create

RESOURCES = {"npu": "NPU", "cuda": "GPU"}  # Ray's names of what a worker is pinned to
_LIMIT = PoolSettings(memory_size=64 * 2**30)  # nothing is reserved


@dataclass(frozen=True, slots=True)
class Place:
    """`device` is cpu, npu or cuda. `transport`: the only one that may be used; None leaves the choice to the fabric.

    Raises UnknownTransport, and ConfigError for a transport that cannot serve there, before anything starts.
    """

    device: str = "cpu"
    transport: str | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", *RESOURCES):
            raise ConfigError(f"device must be cpu, npu or cuda, got {self.device!r}")
        if self.transport is not None:
            self._check_transport(self.transport)

    def _check_transport(self, name: str) -> None:
        transport = create(name)
        memory = "device" if self.resource else "host"
        if (memory, memory) not in transport.capabilities.memories:
            raise ConfigError(
                f"{name} does not move {memory} to {memory} memory, where --device {self.device} needs it"
            )
        reason = transport.missing()
        if reason is not None:
            raise ConfigError(f"{name} is not available: {reason}")

    @property
    def resource(self) -> str | None:
        """Ray's name of the accelerator that each worker gets one of."""
        return RESOURCES.get(self.device)

    def settings(self, timeout_s: float) -> EndpointSettings:
        return EndpointSettings(
            mem_pool=_LIMIT,
            device_pool=_LIMIT if self.resource else None,
            device=self.device if self.resource else None,
            transports=None if self.transport is None else (self.transport,),
            sync_kv_timeout_ms=int(timeout_s * 1000),
        )
