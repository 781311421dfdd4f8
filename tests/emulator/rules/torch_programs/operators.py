"""Operators need kernels, of which there are none. With the task queue off each is an exception where it is called."""

import torch
import torch_npu  # noqa: F401

torch.npu.set_device(0)
tensor = torch.arange(8, dtype=torch.float32).to("npu")
operators = [
    lambda: tensor + tensor,
    tensor.zero_,
    lambda: tensor.fill_(3),
    lambda: torch.zeros(8, device="npu"),
    lambda: tensor.reshape(2, 4).t().contiguous(),
    lambda: tensor[torch.tensor([1, 2], device="npu")],
]
for number, operator in enumerate(operators):
    try:
        operator()
        torch.npu.synchronize()
    except RuntimeError:
        continue
    raise SystemExit(f"operator {number} passed")
assert torch.equal(tensor.cpu(), torch.arange(8, dtype=torch.float32))
print("all of it")
