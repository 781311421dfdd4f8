"""What a program does with NPU tensors when it computes nothing: make, copy, wait, look."""

import torch
import torch_npu  # noqa: F401

assert torch.npu.is_available()
assert torch.npu.device_count() == 2
torch.npu.set_device(0)
assert torch.npu.current_device() == 0
assert torch.npu.get_device_name(0) == "Ascend910B3"
free, total = torch.npu.mem_get_info()
assert free <= total == 8 << 30

host = torch.arange(100_000, dtype=torch.float32)
device = host.to("npu")
assert device.device == torch.device("npu", 0)
assert torch.equal(device.cpu(), host)
copy = torch.empty(100_000, device="npu")
copy.copy_(device)
assert torch.equal(copy.cpu(), host)
copy.copy_(host * 2)
assert torch.equal(copy.cpu(), host * 2)
there = host.to("npu:1")
assert torch.equal(there.cpu(), host)
there.copy_(copy)
assert torch.equal(there.cpu(), host * 2)
assert torch.equal(device.view(torch.uint8)[64:128].cpu(), host.view(torch.uint8)[64:128])

stream = torch.npu.Stream()
stream.wait_stream(torch.npu.current_stream())
with torch.npu.stream(stream):
    aside = torch.empty(100_000, device="npu")
    aside.copy_(device, non_blocking=True)
    device.record_stream(stream)
event = torch.npu.Event(enable_timing=True)
event.record(stream)
event.synchronize()
assert event.query()
assert torch.equal(aside.cpu(), host)
stream.synchronize()
assert stream.query()
assert stream.npu_stream != torch.npu.current_stream().npu_stream

pinned = host.pin_memory()
assert pinned.is_pinned()
from_pinned = pinned.to("npu", non_blocking=True)
torch.npu.synchronize()
assert torch.equal(from_pinned.cpu(), host)

generic = torch.Stream(device="npu")
with generic:
    copy.copy_(device)
generic_event = torch.Event(device="npu")
generic_event.record(generic)
generic_event.synchronize()
assert torch.accelerator.current_accelerator().type == "npu"
assert torch.accelerator.device_count() == 2
torch.accelerator.synchronize()
assert torch.equal(copy.cpu(), host)

del device, copy, aside, there, from_pinned
torch.npu.ipc_collect()
torch.npu.empty_cache()
torch.npu.synchronize()
print("all of it")
