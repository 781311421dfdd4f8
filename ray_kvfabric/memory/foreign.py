"""Memory that somebody else owns: an address, a torch tensor, or an object with the buffer or the DLPack protocol.

The fabric keeps such an object alive while it is registered. What lies behind a bare address is the caller's
word; before the fabric itself reads or writes there, it looks whether the process has it mapped.
"""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ray_kvfabric.errors import ParamInvalid

CPU_DEVICES = {1, 3, 11, 13}  # DLPack: kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged


class Borrowed(NamedTuple):
    """`owner` keeps the bytes at `address` alive; None for a bare address. `device` is torch's, of a device tensor."""

    address: int
    owner: object
    device: Any = None


def borrow(source: object, nbytes: int, field: str) -> Borrowed:
    """The address of at least `nbytes` contiguous, writable bytes of `source`.

    TypeError for something that is neither an int nor a buffer nor a DLPack tensor (a negative or oversized
    int too, as in contract 3.2); LLMException (LLM_PARAM_INVALID) for too few, scattered or read-only bytes.
    """
    if isinstance(source, int):
        if not 0 <= source < 2**64:
            raise TypeError(f"{field} must be an address in [0, 2**64), got {source}")
        return Borrowed(int(source), None)
    if _is_device_tensor(source):
        borrowed, found = _of_device_tensor(source, field)
    else:
        borrowed, found = _of_dlpack(source, field) if hasattr(source, "__dlpack__") else _of_buffer(source, field)
    if found < nbytes:
        raise ParamInvalid(f"{field} holds {found} bytes, cache_desc needs {nbytes} a tensor")
    return borrowed


def _is_device_tensor(source: object) -> bool:
    """Whether it is a torch tensor outside the host, told without importing torch."""
    kind = getattr(getattr(source, "device", None), "type", "cpu")
    return kind not in ("cpu", "meta") and hasattr(source, "untyped_storage")


def _of_device_tensor(source: Any, field: str) -> tuple[Borrowed, int]:
    if not source.is_contiguous():
        raise ParamInvalid(f"{field} is not contiguous: strides {source.stride()} for shape {tuple(source.shape)}")
    return Borrowed(source.data_ptr(), source, source.device), source.numel() * source.element_size()


def _of_buffer(source: object, field: str) -> tuple[Borrowed, int]:
    try:
        view = memoryview(source)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{field} must be an int address or an object with the buffer or DLPack protocol, "
            f"got {type(source).__name__}"
        ) from None
    if view.readonly:
        raise ParamInvalid(f"{field} is read-only")
    if not view.c_contiguous:
        raise ParamInvalid(f"{field} is not contiguous")
    return Borrowed(np.frombuffer(view, np.uint8).ctypes.data, view), view.nbytes


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _of_dlpack(source: object, field: str) -> tuple[Borrowed, int]:
    """Read from the capsule itself: numpy's own reader does not know bfloat16. An unused capsule frees itself."""
    try:
        capsule = source.__dlpack__()  # type: ignore[attr-defined]
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ParamInvalid(f"{field} does not give its memory: {error}") from None
    tensor = _DLTensor.from_address(_capsule_pointer(capsule))
    if tensor.device_type not in CPU_DEVICES:
        raise ParamInvalid(f"{field} lies on DLPack device {tensor.device_type}, not in host memory")
    shape = tensor.shape[: tensor.ndim]
    if tensor.strides and not _is_contiguous(shape, tensor.strides[: tensor.ndim]):
        raise ParamInvalid(f"{field} is not contiguous: strides {tensor.strides[: tensor.ndim]} for shape {shape}")
    address = (tensor.data or 0) + tensor.byte_offset
    return Borrowed(address, capsule), prod(shape) * tensor.bits * tensor.lanes // 8


def _capsule_pointer(capsule: object) -> int:
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype = ctypes.c_void_p
    read.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return int(read(capsule, b"dltensor"))


def _is_contiguous(shape: list[int], strides: list[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def check_mapped(what: str, ranges: list[tuple[int, int]]) -> None:
    """Raises LLMException (LLM_PARAM_INVALID) for (address, nbytes) that this process cannot read and write."""
    mapped = _writable_ranges()
    for address, nbytes in ranges:
        if not any(start <= address and address + nbytes <= stop for start, stop in mapped):
            raise ParamInvalid(
                f"{what} lies at address {address:#x}, of which this process has not {nbytes} bytes mapped readable "
                "and writable"
            )


def _writable_ranges() -> list[tuple[int, int]]:
    """Mapped ranges (start, stop), neighbours joined, in order."""
    joined: list[tuple[int, int]] = []
    with open("/proc/self/maps") as file:
        for line in file:
            bounds, mode = line.split(maxsplit=2)[:2]
            start, stop = (int(part, 16) for part in bounds.split("-"))
            if not mode.startswith("rw"):
                continue
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
    return joined
