"""How one setting of LlmConfig is checked, read and emitted (contract section 6).

A check takes the assigned value and the setting's name, and gives what is stored; None leaves the setting unset
wherever its check lets None pass (contract 3.1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, overload

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.errors import ParamInvalid
from ray_kvfabric.integrations.llm_datadist._addresses import ip_number
from ray_kvfabric.integrations.llm_datadist.utils.utils import check_isinstance

T = TypeVar("T")
Emit = Callable[[Any], dict[str, str]]  # a stored value, None while unset, to option keys and texts


class Setting(Generic[T]):
    """A property that lies in its object's attribute `_<name>`, where some clients write directly (section 18)."""

    def __init__(self, check: Callable[[Any, str], T | None], default: T, emit: Emit) -> None:
        self.emit = emit
        self._check = check
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.slot = f"_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        stored: T | None = getattr(instance, self.slot)
        return self._default if stored is None else stored

    def __set__(self, instance: object, value: T | None) -> None:
        setattr(instance, self.slot, self._check(value, self._name))


# ---- emission ------------------------------------------------------------------------------------


def if_set(key: str) -> Emit:
    """Also when it was set to an empty text, a zero or False."""
    return lambda value: {} if value is None else {key: _option_text(value)}


def if_truthy(key: str) -> Emit:
    return lambda value: {key: _option_text(value)} if value else {}


def emit_device_ids(value: int | Sequence[int] | None) -> dict[str, str]:
    if value is None:
        return {}
    ids = [_option_text(each) for each in ([value] if isinstance(value, int) else value)]
    return {"ge.exec.deviceId": ";".join(ids), "ge.session_device_id": ids[0]}


def _option_text(value: object) -> str:
    """Every option is a text; a bool is "1" or "0", also where it stands for an int."""
    return str(int(value)) if isinstance(value, bool) else str(value)


# ---- checks --------------------------------------------------------------------------------------


def text(value: str | None, name: str) -> str | None:
    check_isinstance(name, value, str)
    return value


def flag(value: bool | None, name: str) -> bool | None:
    check_isinstance(name, value, bool)
    return value


def any_int(value: int | None, name: str) -> int | None:
    check_isinstance(name, value, int)
    return value


def uint32(value: int, name: str) -> int:
    return check_int(value, "uint32", name)


def int_between(low: int, high: int) -> Callable[[int, str], int]:
    def check(value: int, name: str) -> int:
        if not low <= check_type(value, int, name) <= high:
            raise ParamInvalid(f"{name} must be in [{low}, {high}], got {value}")
        return value

    return check


def fraction(value: float, name: str) -> float:
    if not 0 <= check_type(value, float, name) <= 1:
        raise ParamInvalid(f"{name} must be in [0, 1], got {value}")
    return value


def device_ids(value: int | Sequence[int], name: str) -> int | Sequence[int]:
    check_isinstance(name, value, (int, list, tuple), allow_none=False)
    ids = [value] if isinstance(value, int) else value
    if not ids:
        raise ParamInvalid(f"{name} is empty")
    for each in ids:
        if check_type(each, int, name) < 0:
            raise ParamInvalid(f"{name} must not be negative, got {each}")
        check_int(each, "int32", name)
    return value


def timeout_ms(value: int | str, name: str) -> int | str:
    """Stored as it was given: a text of digits stays a text."""
    check_isinstance(name, value, (int, str), allow_none=False)
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ParamInvalid(f"{name} must be a number of milliseconds in digits, got {value!r}")
    if int(value) <= 0:
        raise ParamInvalid(f"{name} must be at least 1, got {value}")
    check_int(int(value), "int32", name)
    return value


def cluster_info(value: str, name: str) -> str:
    """JSON whose listen_ip_info[].ip become numbers. Raises json.JSONDecodeError, a ValueError."""
    info = json.loads(check_type(value, str, name))
    addresses = info.get("listen_ip_info", ()) if isinstance(info, dict) else ()
    for address in addresses:
        if isinstance(address, dict) and isinstance(address.get("ip"), str):
            address["ip"] = ip_number(address["ip"])
    return json.dumps(info)
