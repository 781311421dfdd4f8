"""An Atlas NPU: torch_npu for memory and events, ACL itself for private streams and batches of copies."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from ray_kvfabric.errors import LLMException, LLMStatusCode
from ray_kvfabric.memory import _device_copy
from ray_kvfabric.memory.acl import load_acl
from ray_kvfabric.memory.device import Direction, Pieces, Queue, Tensor
from ray_kvfabric.memory.torch_device import TorchDevice


class NpuQueue(Queue):
    """A stream that torch does not know, so that giving it up takes nothing else with it."""

    def __init__(self) -> None:
        self._acl = load_acl()
        self._stream = self._acl.create_stream()

    @property
    def handle(self) -> int:
        return self._stream

    def copy(self, pieces: Pieces, direction: Direction) -> None:
        self._check_open()
        count, code = _device_copy.enqueue(self._acl.memcpy_async, pieces, direction, self._stream)
        if code:
            source, target, nbytes = (int(value) for value in pieces[count])
            raise self._acl.error(code, f"copying {nbytes} bytes from {source:#x} to {target:#x} ({direction.name})")

    def _check_open(self) -> None:
        """ACL takes 0 for the default stream."""
        if not self._stream:
            raise LLMException("the stream was closed by another thread", status_code=LLMStatusCode.LLM_FAILED)

    def finish(self, deadline_ns: int) -> bool:
        self._check_open()
        left_ms = (deadline_ns - time.monotonic_ns()) // 10**6
        return self._acl.synchronize(self._stream, min(max(left_ms, 1), 2**31 - 1))

    def close(self) -> None:
        if self._stream:
            self._acl.destroy_stream(self._stream)
            self._stream = 0


class NpuDevice(TorchDevice):
    """`import torch_npu` has happened."""

    kind = "npu"
    forgives_addresses = True
    granule = 64  # aclrtMemcpyAsync between device addresses wants both aligned to 64 bytes
    share_names = ("_share_npu_", "_new_shared_npu", "_release_ipc_counter_npu")

    def _zero(self, tensor: Tensor) -> None:
        """Behind what is queued: torch hands a freed block out again before its last use is over."""
        self._torch.accelerator.current_stream(self.torch_device).synchronize()
        load_acl().fill(tensor.data_ptr(), tensor.numel(), 0)

    def _construct_storage(self, address: int, nbytes: int) -> Any:
        bindings: Any = import_module("torch_npu")._C
        return bindings._construct_storage_from_data_pointer(address, self.torch_device, nbytes)

    def open_queue(self) -> Queue:
        with self.current():
            return NpuQueue()
