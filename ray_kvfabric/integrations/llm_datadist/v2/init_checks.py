"""The Python half of init's option checks (contract 9.2, steps 4 to 7)."""

from __future__ import annotations

from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.integrations.llm_datadist._engine_options import LISTEN
from ray_kvfabric.integrations.llm_datadist.utils.utils import check_isinstance
from ray_kvfabric.integrations.llm_datadist.v2.llm_utils import parse_listen_ip_info

_MANAGER, _ACCESSIBLE, _BACKEND = "llm.EnableCacheManager", "llm.EnableRemoteCacheAccessible", "llm.TransferBackend"
_MEMORY = "ge.flowGraphMemMaxSize"


def check_memory_option(options: dict[str, str]) -> None:
    """One pool's size in digits."""
    value = options.get(_MEMORY)
    if value is None:
        return
    check_isinstance(_MEMORY, value, str)
    if not (value.isascii() and value.isdigit()):
        raise ParamInvalid(f"{_MEMORY} must be one number in digits, got {value!r}")


def adapt_options(options: dict[str, str]) -> bool:
    """Fills in what other options imply; whether the cache manager runs. Raises LLMException (LLM_PARAM_INVALID)."""
    if "llm.LocalCommRes" in options:
        options.setdefault(_MANAGER, "1")
        options.setdefault(_ACCESSIBLE, "1")
        if options[_MANAGER] != "1":
            raise ParamInvalid(f'{_MANAGER} must be "1" with llm.LocalCommRes, got {options[_MANAGER]!r}')
    is_manager = options.get(_MANAGER) == "1"
    if _BACKEND in options:
        _check_backend(options, is_manager)
    if is_manager and LISTEN in options:
        ip, port = parse_listen_ip_info(options[LISTEN])
        options |= {"llm.ListenIp": str(ip), "llm.ListenPort": str(port)}
    return is_manager


def _check_backend(options: dict[str, str], is_manager: bool) -> None:
    if not is_manager:
        raise ParamInvalid(f'{_BACKEND} needs {_MANAGER} to be "1"')
    options.setdefault(_ACCESSIBLE, "1")
    if options[_ACCESSIBLE] != "1":
        raise ParamInvalid(f'{_BACKEND} needs {_ACCESSIBLE} to be "1", got {options[_ACCESSIBLE]!r}')
    if LISTEN not in options:
        raise ParamInvalid(f"{_BACKEND} needs {LISTEN}")
