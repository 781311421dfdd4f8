"""Argument checks that the value classes and the verbs share (contract sections 3.1 and 8.11).

Integer widths reject None and other types with TypeError and a wrong range with ValueError; bool passes as int,
numpy integers do not. Everything semantic is ParamInvalid.
"""

from __future__ import annotations

from typing import TypeVar

from ray_kvfabric.errors import NoneGiven, ParamInvalid

T = TypeVar("T")

_WIDTHS = {
    "uint8": (0, 2**8 - 1),
    "uint16": (0, 2**16 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


def check_int(value: object, width: str, field: str) -> int:
    """`value` as an int of `width` ("uint32", "int64", ...)."""
    if not isinstance(value, int):
        raise TypeError(f"{field} must be an int, got {type(value).__name__}")
    low, high = _WIDTHS[width]
    if not low <= value <= high:
        raise ValueError(f"{field} must be a {width}, in [{low}, {high}], got {value}")
    return int(value)


def check_type(value: object, kind: type[T], field: str) -> T:
    """`value` if it is a `kind`, else a TypeError that names the field."""
    if value is None:
        raise NoneGiven(f"{field} must be a {kind.__name__}, got None")
    if not isinstance(value, kind):
        raise TypeError(f"{field} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def check_layer_range(value: object, field: str) -> range:
    """The strict rule of contract 8.11: a range of step 1 with 0 <= start < stop."""
    layers = check_type(value, range, field)
    if layers.step != 1:
        raise ParamInvalid(f"{field} must have step 1, got {layers!r}")
    if not 0 <= layers.start < layers.stop:
        raise ParamInvalid(f"{field} must satisfy 0 <= start < stop, got {layers!r}")
    return layers
