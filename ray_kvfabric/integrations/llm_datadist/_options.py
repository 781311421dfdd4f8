"""What the caller of install() chose. The engine reads it when an LLMDataDist is initialised."""

from __future__ import annotations

from dataclasses import dataclass

from ray_kvfabric.actors.names import checked
from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.llm_datadist._lazy import NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The fabric that all programs of a Ray cluster share by default, and testing aids, off by default.

    fabric                   programs of other fabrics do not meet, and may use the same cluster_ids
    absent_peers="loopback"  a cluster that does not exist is a mirror of oneself (contract section 18)
    emulated_device="host"   DEVICE caches lie in host memory
    """

    fabric: str = NAME
    absent_peers: str | None = None
    emulated_device: str | None = None

    def __post_init__(self) -> None:
        checked(self.fabric)
        _check_choice("absent_peers", self.absent_peers, "loopback")
        _check_choice("emulated_device", self.emulated_device, "host")


def _check_choice(name: str, value: object, choice: str) -> None:
    if value is not None and value != choice:
        raise ConfigError(f"{name} must be {choice!r} or None, got {value!r}")


_chosen = Options()


def current() -> Options:
    return _chosen


def choose(options: Options) -> None:
    global _chosen
    _chosen = options
