"""Init options, all texts, to settings of an endpoint: the native half of `init`'s checks (contract 6 and 9.2.9)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ray_kvfabric.config import EndpointSettings, PoolSettings, endpoint_settings
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.integrations.llm_datadist import _options
from ray_kvfabric.integrations.llm_datadist._addresses import ip_text
from ray_kvfabric.integrations.llm_datadist.v2.llm_utils import parse_listen_ip_info

INT32_MAX = 2**31 - 1
LISTEN = "llm.listenIpInfo"
_DEFAULT_TIMEOUT_MS = 1000
_RENDEZVOUS_S = 120


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`local_comm_res` None: not given. `link_s` bounds `link`, which waits for the other members."""

    one_sided: bool
    backend: str  # "comm" or "hixl"
    listen: str  # "ip:port", or ""
    local_comm_res: str | None
    link_s: float
    settings: EndpointSettings


def parse_options(options: dict[str, str]) -> EngineOptions:
    """Raises LLMException (LLM_PARAM_INVALID) naming the option; TypeError for one that is not text."""
    for key, value in options.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"options must map str to str, got {key!r}: {value!r}")
    one_sided = _flag(options, "llm.EnableRemoteCacheAccessible")
    _check_device(options.get("ge.exec.deviceId", "0"))
    timeout_ms = _digits(options, "llm.SyncKvCacheWaitTime", _DEFAULT_TIMEOUT_MS, 1, INT32_MAX)
    link_s = _digits(options, "llm.LinkTotalTime", 0, 0, INT32_MAX)
    _digits(options, "llm.LinkRetryCount", 1, 1, 100)
    backend = _backend(options, one_sided)
    emulated = _options.current().emulated_device
    settings = endpoint_settings(
        mem_pool=_pool(options, "llm.HostMemPoolConfig"),
        device_pool=_pool(options, "llm.MemPoolConfig"),
        sync_kv_timeout_ms=timeout_ms,
        transfer_mode="one_sided" if one_sided else "request",
        **({"emulated_device": emulated} if emulated else {}),
    )
    return EngineOptions(
        one_sided, backend, listen_alias(options), options.get("llm.LocalCommRes"), link_s or _RENDEZVOUS_S, settings
    )


def listen_alias(options: dict[str, str]) -> str:
    """The option's address in dotted form; "" without one."""
    if LISTEN not in options:
        return ""
    ip, port = parse_listen_ip_info(options[LISTEN])
    return alias_of(ip, port)


def alias_of(ip: int, port: int) -> str:
    """An LLMClusterInfo's address as the directory knows it."""
    return f"{ip_text(ip)}:{port}"


def _flag(options: dict[str, str], key: str) -> bool:
    value = options.get(key, "0")
    if value not in ("0", "1"):
        raise ParamInvalid(f'{key} must be "0" or "1", got {value!r}')
    return value == "1"


def _digits(options: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    value = options.get(key)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        raise ParamInvalid(f"{key} must be a number in [{low}, {high}], got {value!r}")
    return int(value)


def _check_device(value: str) -> None:
    """One device only; a list is for the v1 engine."""
    if not (value.isascii() and value.isdigit() and int(value) <= INT32_MAX):
        raise ParamInvalid(f"ge.exec.deviceId must be one device's number, got {value!r}")


def _backend(options: dict[str, str], one_sided: bool) -> str:
    backend = options.get("llm.TransferBackend")
    if backend is None:
        return "comm"
    if backend != "hixl":
        raise ParamInvalid(f'llm.TransferBackend must be "hixl" where it is given, got {backend!r}')
    if not one_sided or LISTEN not in options:
        raise ParamInvalid(f"llm.TransferBackend hixl needs llm.EnableRemoteCacheAccessible and {LISTEN}")
    return backend


def _pool(options: dict[str, str], key: str) -> PoolSettings | None:
    text = options.get(key)
    if text is None:
        return None
    try:
        pool = json.loads(text)
    except json.JSONDecodeError as error:
        raise ParamInvalid(f"{key} is not JSON: {error}") from None
    if not isinstance(pool, dict):
        raise ParamInvalid(f"{key} must be a JSON object, got {text!r}")
    size = _unsigned(pool, key, "memory_size")
    shift = _unsigned(pool, key, "page_shift") if "page_shift" in pool else 16
    if not 10 <= shift < 31:
        raise ParamInvalid(f"{key}.page_shift must be in [10, 31), got {shift}")
    if not 1 <= size >> shift < 2**32 - 1:
        raise ParamInvalid(f"{key}.memory_size must be 1 to 2**32 - 2 pages of {1 << shift} bytes, got {size}")
    return PoolSettings(memory_size=size, page_shift=shift)


def _unsigned(pool: dict[str, Any], key: str, field: str) -> int:
    value = pool.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ParamInvalid(f"{key}.{field} must be an unsigned integer, got {value!r}")
    return value
