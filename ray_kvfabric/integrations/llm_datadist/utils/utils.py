"""LLM-DataDist's argument checks by its names; None passes check_isinstance and check_dict (contract section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.errors import NoneGiven


def check_isinstance(
    param_name: str,
    param_value: object,
    types: type | list[type] | tuple[type, ...],
    element_type: type | None = None,
    allow_none: bool = True,
) -> None:
    """TypeError unless the value is one of `types`, and each of its elements an `element_type` where one is given."""
    if param_value is None:
        if not allow_none:
            raise NoneGiven(f"{param_name} must be {_names(types)}, got None")
        return
    if not isinstance(param_value, _as_tuple(types)):
        raise TypeError(f"{param_name} only support {_names(types)}, got {type(param_value).__name__}")
    if element_type is not None and isinstance(param_value, Iterable):
        for element in param_value:
            check_isinstance(f"element of {param_name}", element, element_type, allow_none=False)


def check_dict(
    param_name: str, param_value: object, key_type: type, value_type: type, element_type: type | None = None
) -> None:
    """TypeError unless it is a dict of `key_type` to `value_type`, the values of `element_type` where one is given."""
    check_isinstance(param_name, param_value, dict, key_type)
    if isinstance(param_value, dict):
        for key, value in param_value.items():
            check_isinstance(f"{param_name}[{key!r}]", value, value_type, element_type, allow_none=False)


def check_list_int32(param_name: str, param_value: object) -> None:
    """A list or tuple of int32."""
    check_isinstance(param_name, param_value, (list, tuple), int, allow_none=False)
    if isinstance(param_value, Iterable):
        for element in param_value:
            check_int32(f"element of {param_name}", element)


def _check_of(width: str) -> Callable[[str, object], None]:
    def check(param_name: str, param_value: object) -> None:
        check_int(param_value, width, param_name)

    return check


check_int32 = _check_of("int32")
check_int64 = _check_of("int64")
check_uint8 = _check_of("uint8")
check_uint16 = _check_of("uint16")
check_uint32 = _check_of("uint32")
check_uint64 = _check_of("uint64")


def _as_tuple(types: type | list[type] | tuple[type, ...]) -> tuple[type, ...]:
    return (types,) if isinstance(types, type) else tuple(types)


def _names(types: type | list[type] | tuple[type, ...]) -> str:
    return " or ".join(each.__name__ for each in _as_tuple(types))
