"""Tensor IPC of torch_npu: exported on device 0, rebuilt for device 1 by its index, read and written there."""

import torch
import torch.multiprocessing as multiprocessing
import torch_npu  # noqa: F401
from torch.multiprocessing import reductions

COUNT = 1 << 20
DEVICE_INDEX = 6  # in what reduce_tensor gives


def importer(questions, answers) -> None:
    torch.npu.set_device(1)
    rebuild, arguments = questions.get()
    arguments = list(arguments)
    assert arguments[DEVICE_INDEX] == 0
    arguments[DEVICE_INDEX] = 1
    shared = rebuild(*arguments)
    assert shared.device == torch.device("npu", 1)
    near = torch.empty(COUNT, device="npu:1")
    near.copy_(shared[:COUNT])
    torch.npu.synchronize()
    assert torch.equal(near.cpu(), torch.arange(COUNT, dtype=torch.float32))
    shared[COUNT:].copy_(near)
    torch.npu.synchronize()
    answers.put("written")
    questions.get()
    del shared
    torch.npu.ipc_collect()
    answers.put("closed")


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    torch.npu.set_device(0)
    tensor = torch.cat([torch.arange(COUNT, dtype=torch.float32), torch.zeros(COUNT)]).to("npu")
    torch.npu.synchronize()
    questions, answers = context.Queue(), context.Queue()
    process = context.Process(target=importer, args=(questions, answers))
    process.start()
    questions.put(reductions.reduce_tensor(tensor))
    assert answers.get(timeout=60) == "written"
    assert torch.equal(tensor[COUNT:].cpu(), torch.arange(COUNT, dtype=torch.float32))
    questions.put("close")
    assert answers.get(timeout=60) == "closed"
    process.join()
    assert process.exitcode == 0
    del tensor
    torch.npu.ipc_collect()
    torch.npu.empty_cache()
    print("all of it")
