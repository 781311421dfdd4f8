"""ConnectorSettings: `kv_connector_extra_config`, checked. Unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ray_kvfabric.errors import ConfigError


class ConnectorSettings(BaseModel):
    """One engine's. Both sides of a split should have the same, but for what names this engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fabric: str = Field(default="default", min_length=1, description="the fabric to join; made if none runs")
    address: str | None = Field(
        default=None, description="the Ray cluster of the fabric; None: the one this process is in, or runs on its host"
    )
    group: str = Field(
        default="default", description="engines of one group must agree in everything that their KV depends on"
    )
    transfer_timeout_s: float = Field(
        default=120.0, gt=0, description="from the grant until all KV of a request has landed; then it counts as failed"
    )
    grant_wait_s: float = Field(
        default=60.0, gt=0, description="how long a prefill's blocks are kept for a consumer that grants nothing"
    )
    push_timeout_s: float = Field(default=10.0, gt=0, description="bounds one push")
    ask_timeout_s: float = Field(default=10.0, gt=0, description="bounds a question to the other engine")
    push_threads: int = Field(default=2, ge=1, le=16, description="pushes that run at once, of different requests")
    verify: Literal["crc32c"] | None = Field(default=None, description="compares digests of what was sent and landed")
    timeline: Path | None = Field(
        default=None, description="a directory; each producer writes there when its layers were computed and pushed"
    )

    @classmethod
    def of(cls, extra_config: Mapping[str, Any] | None) -> ConnectorSettings:
        """Raises ConfigError that names each bad key."""
        try:
            return cls.model_validate(dict(extra_config or {}))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in each['loc']) or 'it'}: {each['msg']}" for each in error.errors()
            )
            raise ConfigError(f"kv_connector_extra_config: {problems}") from None
