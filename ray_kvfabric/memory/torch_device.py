"""What NPUs and CUDA GPUs have in common: torch's tensors, streams, events and IPC reductions."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

from ray_kvfabric.errors import LinkFailed, LLMException, LLMStatusCode, OutOfMemory, ParamInvalid
from ray_kvfabric.memory.device import Device, Mark, Share, Tensor

_FIRST_NAP_S, _LONGEST_NAP_S = 20e-6, 1e-3


class TorchDevice(Device):
    """`module` is torch.npu or torch.cuda; importing torch (and torch_npu) is up to whoever makes one."""

    share_names: ClassVar[tuple[str, str, str]]  # of UntypedStorage: share, map, count down
    forgives_addresses: ClassVar[bool] = False  # a copy with a wrong one is an error, and not the end of the context

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._torch: Any = import_module("torch")
        self._module: Any = getattr(self._torch, self.kind)
        self.torch_device = self._torch.device(self.kind, index)
        self._thread = threading.local()

    @property
    def chip(self) -> str:
        return str(self._module.get_device_name(self.index))

    def has(self, device: object) -> bool:
        return bool(device == self.torch_device)

    @contextmanager
    def current(self) -> Iterator[None]:
        before = self._module.current_device()
        if before != self.index or not hasattr(self._thread, "is_set"):
            self._module.set_device(self.index)  # a thread has a context of its own
            self._thread.is_set = True
        try:
            yield
        finally:
            if before != self.index:
                self._module.set_device(before)

    def allocate(self, nbytes: int) -> Tensor:
        with self.current():
            try:
                tensor = self._torch.empty(nbytes, dtype=self._torch.uint8, device=self.torch_device)
            except self._torch.OutOfMemoryError as error:
                raise OutOfMemory(f"{self} has no {nbytes} bytes: {_first_line(error)}") from None
            except RuntimeError as error:
                raise LLMException(
                    f"{self} gives no memory: {_first_line(error)}", status_code=LLMStatusCode.LLM_FAILED
                ) from None
            self._zero(tensor)
        return tensor

    def _zero(self, tensor: Tensor) -> None:
        tensor.zero_()
        self._torch.accelerator.current_stream().synchronize()

    def probe(self, address: int) -> None:
        if not self.forgives_addresses:
            self.block_around(address)

    def block_around(self, address: int) -> Tensor:
        with self.current():
            for segment in self._module.memory_snapshot():
                for block in segment["blocks"] if segment["device"] == self.index else ():
                    if block["address"] <= address < block["address"] + block["size"]:
                        storage = self._construct_storage(block["address"], block["size"])
                        return self._over(storage, block["size"])
        raise ParamInvalid(f"{address:#x} lies in no memory that torch allocated on {self}")

    def _construct_storage(self, address: int, nbytes: int) -> Any:
        return self._torch._C._construct_storage_from_data_pointer(address, self.torch_device, nbytes)

    def _over(self, storage: Any, nbytes: int) -> Tensor:
        flat = self._torch.empty(0, dtype=self._torch.uint8, device=storage.device)
        return flat.set_(storage, 0, (nbytes,), (1,))

    # ---- the caller's streams --------------------------------------------------------------------

    def mark(self) -> Mark | None:
        with self.current():
            stream = self._torch.accelerator.current_stream(self.torch_device)
            return None if stream.query() else stream.record_event()

    def await_mark(self, mark: Mark, deadline_ns: int) -> bool:
        """By questions at growing distances: torch has no wait with a limit."""
        nap_s = _FIRST_NAP_S
        with self.current():
            while not mark.query():
                if time.monotonic_ns() >= deadline_ns:
                    return False
                time.sleep(nap_s)
                nap_s = min(2 * nap_s, _LONGEST_NAP_S)
        return True

    # ---- other processes -------------------------------------------------------------------------

    def share(self, tensor: Tensor) -> Share:
        storage = tensor.untyped_storage()
        with self.current():
            _, *what = getattr(storage, self.share_names[0])()
        handle, nbytes, offset, counter_handle, counter_offset, event_handle, needs_event = what
        return Share(
            storage.data_ptr(),
            nbytes,
            handle,
            offset,
            counter_handle,
            counter_offset,
            event_handle,
            needs_event,
        )

    def map_share(self, share: Share) -> Tensor:
        kind = self._torch.UntypedStorage
        with self.current():
            try:
                storage = getattr(kind, self.share_names[1])(
                    self.index,
                    share.handle,
                    share.nbytes,
                    share.offset,
                    share.counter_handle,
                    share.counter_offset,
                    share.event_handle,
                    share.needs_event,
                )
            except RuntimeError as error:
                raise LinkFailed(f"{self} cannot map the peer's memory: {_first_line(error)}") from None
            return self._over(storage, share.nbytes)

    def release_share(self, share: Share) -> None:
        with self.current():
            getattr(self._torch.UntypedStorage, self.share_names[2])(share.counter_handle, share.counter_offset)

    def collect(self) -> None:
        with self.current():
            self._module.ipc_collect()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
