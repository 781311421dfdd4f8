"""HCCL through ctypes on the streams and tensors of torch_npu."""

import ctypes

import torch
import torch.multiprocessing as multiprocessing
import torch_npu  # noqa: F401

COUNT = (3 << 20) + 5
UINT8 = 7


class Item(ctypes.Structure):
    _fields_ = [
        ("direction", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("type", ctypes.c_int),
        ("peer", ctypes.c_uint32),
    ]


def rank(number: int, line) -> None:
    hccl = ctypes.CDLL("libhccl.so")
    torch.npu.set_device(number)
    root = ctypes.create_string_buffer(4108)
    if number == 0:
        assert hccl.HcclGetRootInfo(root) == 0
        line.send(root.raw)
    else:
        root.raw = line.recv()
    comm = ctypes.c_void_p()
    assert hccl.HcclCommInitRootInfo(2, root, number, ctypes.byref(comm)) == 0
    source = torch.arange(COUNT, dtype=torch.int32).to(torch.uint8).add(number)
    mine, theirs = source.to("npu"), torch.empty(COUNT, dtype=torch.uint8, device="npu")
    stream = torch.npu.Stream()
    stream.wait_stream(torch.npu.current_stream())
    items = (Item * 2)((0, mine.data_ptr(), COUNT, UINT8, 1 - number), (1, theirs.data_ptr(), COUNT, UINT8, 1 - number))
    assert hccl.HcclBatchSendRecv(items, 2, comm, ctypes.c_void_p(stream.npu_stream)) == 0
    stream.synchronize()
    assert torch.equal(theirs.cpu(), source + (1 - 2 * number))
    assert hccl.HcclCommDestroy(comm) == 0


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ends = context.Pipe()
    processes = [context.Process(target=rank, args=(number, ends[number])) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    print("all of it")
