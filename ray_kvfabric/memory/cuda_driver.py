"""What the fabric asks of NVIDIA's driver itself, through cuda-bindings: one context, the copy kernel, errors in words.

The kernel is built by NVRTC at first use, for the GPU that is there; no compiler of the host takes part.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from ray_kvfabric.errors import FeatureNotEnabled, LLMException, LLMStatusCode
from ray_kvfabric.memory.cuda_kernel import ENTRY, MACROS, SOURCE

SUCCESS, NOT_READY = 0, 600
_MEMORY_ERRORS = {214, 220, 226, 700}  # uncorrectable ECC, uncorrectable NVLink, contained, illegal address
_BATCH_SINCE = 12080  # the driver's version whose cuMemcpyBatchAsync takes failIdx; newer drivers have it too
_TO_INSTALL = "copies on a GPU need NVIDIA's own packages (pip install cuda-bindings nvidia-cuda-nvrtc)"


def bindings(name: str) -> Any:
    """cuda.bindings.driver or cuda.bindings.nvrtc. Raises LLMException (LLM_FEATURE_NOT_ENABLED)."""
    try:
        return import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise FeatureNotEnabled(f"{_TO_INSTALL}: {error}") from None


def compile_kernel(capability: int) -> bytes:
    """The copy kernel for a compute capability (90 is 9.0): CUBIN, or PTX where this NVRTC does not know the GPU yet.

    Raises LLMException: LLM_FEATURE_NOT_ENABLED without NVRTC, LLM_FAILED with the compiler's log.
    """
    nvrtc = bindings("nvrtc")
    try:
        known = _built(nvrtc, nvrtc.nvrtcGetSupportedArchs())
    except RuntimeError as error:  # the bindings are there and the library is not
        raise FeatureNotEnabled(f"{_TO_INSTALL}: {error}") from None
    older = [each for each in known if each <= capability]
    if not older:
        raise FeatureNotEnabled(f"this NVRTC builds for compute capabilities {[*known]}, the GPU has {capability}")
    target = f"sm_{capability}" if capability in older else f"compute_{max(older)}"
    program = _built(nvrtc, nvrtc.nvrtcCreateProgram(SOURCE.encode(), f"{ENTRY}.cu".encode(), 0, [], []))
    try:
        return _compile(nvrtc, program, [f"--gpu-architecture={target}", *(f"-D{n}={v}" for n, v in MACROS.items())])
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compile(nvrtc: Any, program: Any, options: list[str]) -> bytes:
    [code] = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(code):
        log = _filled(nvrtc, program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        raise LLMException(
            f"NVRTC does not compile the copy kernel with {options}: {log.decode(errors='replace').strip()}",
            status_code=LLMStatusCode.LLM_FAILED,
        )
    if "sm_" in options[0]:
        return _filled(nvrtc, program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    return _filled(nvrtc, program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)


def _filled(nvrtc: Any, program: Any, size: Any, fill: Any) -> bytes:
    buffer = bytes(_built(nvrtc, size(program)))
    _built(nvrtc, fill(program, buffer))  # into the buffer, as these bindings have it
    return buffer


def _built(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    code, *values = answer
    if int(code):
        words = nvrtc.nvrtcGetErrorString(code)[1].decode()
        raise LLMException(f"NVRTC failed: {words}", status_code=LLMStatusCode.LLM_FAILED)
    return values[0] if len(values) == 1 else values


class CudaDriver:
    """One GPU, by the index that torch and the driver both give it; its primary context is torch's."""

    def __init__(self, index: int) -> None:
        self.api = bindings("driver")
        self.check(self.api.cuInit(0), "starting CUDA")
        self._device = self.check(self.api.cuDeviceGet(index), "finding the GPU")
        self._context = self.check(self.api.cuDevicePrimaryCtxRetain(self._device), "the GPU's context")

    @contextmanager
    def current(self) -> Iterator[None]:
        """A thread has no context before it has called CUDA's runtime, and the driver's calls need one."""
        self.check(self.api.cuCtxPushCurrent(self._context), "the GPU's context")
        try:
            yield
        finally:
            self.api.cuCtxPopCurrent()

    @cached_property
    def kernel(self) -> Any:
        """The copy kernel, built and loaded at first need, with the context current."""
        attributes = self.api.CUdevice_attribute
        major, minor = (
            self.check(self.api.cuDeviceGetAttribute(each, self._device), "the compute capability")
            for each in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        module = self.check(self.api.cuModuleLoadData(compile_kernel(10 * major + minor)), "loading the copy kernel")
        return self.check(self.api.cuModuleGetFunction(module, ENTRY.encode()), "finding the copy kernel")

    @cached_property
    def batch(self) -> Any | None:
        """cuMemcpyBatchAsync as C has it, for arrays of numpy's; None where the driver is too old."""
        try:
            code, address, *_ = self.api.cuGetProcAddress(b"cuMemcpyBatchAsync", _BATCH_SINCE, 0)
        except RuntimeError:
            return None
        if int(code) or not int(address):
            return None
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        kind = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer, size, pointer, pointer, size, pointer, pointer)
        return kind(int(address))

    def check(self, answer: tuple[Any, ...], what: str) -> Any:
        """What a call answered beside its code. Raises LLMException with the driver's own words."""
        if int(answer[0]):
            raise self.error(int(answer[0]), what)
        return answer[1] if len(answer) == 2 else answer[1:]

    def error(self, code: int, what: str) -> LLMException:
        status = LLMStatusCode.LLM_DEVICE_MEM_ERROR if code in _MEMORY_ERRORS else LLMStatusCode.LLM_FAILED
        return LLMException(f"{what} failed on the GPU with code {code}: {self._words(code)}", status_code=status)

    def _words(self, code: int) -> str:
        try:
            known = self.api.CUresult(code)
        except ValueError:
            return "no message"
        name, text = self.api.cuGetErrorName(known)[1], self.api.cuGetErrorString(known)[1]
        return f"{name.decode()}, {text.decode()}"


@cache
def open_driver(index: int) -> CudaDriver:
    """One a GPU and process: the kernel is built once."""
    return CudaDriver(index)
