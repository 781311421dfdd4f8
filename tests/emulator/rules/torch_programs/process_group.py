"""torch.distributed with the backend hccl: isend and irecv, then a batch in both directions."""

import os
import tempfile

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
import torch_npu  # noqa: F401

COUNT = 1 << 20


def rank(number: int, file: str) -> None:
    torch.npu.set_device(number)
    distributed.init_process_group("hccl", init_method=f"file://{file}", rank=number, world_size=2)
    counting = torch.arange(COUNT, dtype=torch.float32)
    mine, theirs = (counting + number).to("npu"), torch.empty(COUNT, device="npu")
    work = distributed.isend(mine, 1) if number == 0 else distributed.irecv(theirs, 0)
    work.wait()
    torch.npu.synchronize()
    if number == 1:
        assert torch.equal(theirs.cpu(), counting)
    peer = 1 - number
    ops = [distributed.P2POp(distributed.isend, mine, peer), distributed.P2POp(distributed.irecv, theirs, peer)]
    for work in distributed.batch_isend_irecv(ops):
        work.wait()
    torch.npu.synchronize()
    assert torch.equal(theirs.cpu(), counting + peer)
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(rank, args=(os.path.join(folder, "store"),), nprocs=2)
    print("all of it")
