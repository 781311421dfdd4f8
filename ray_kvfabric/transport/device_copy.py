"""Carrying a plan out with an accelerator's copy engine, on addresses that this process has mapped.

    device -> device    one batch on a private stream, one wait
    host -> device      through the staging buffers: two batches a window, two windows under way
    device -> host      the same backwards
Deadline and stop word are looked at before anything is enqueued and between windows; what is enqueued is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from ray_kvfabric.errors import StillMoving, TransferCancelled, TransferTimeout
from ray_kvfabric.memory.copy import COPY_DONE, COPY_STOPPED, COPY_TIMED_OUT, RegionTable
from ray_kvfabric.memory.device import PATIENCE_NS, Device, Devices, Direction, Pieces, Queue, check_granule
from ray_kvfabric.memory.staging import NBYTES, SOURCE, TARGET, Staging, joined, packed, windows
from ray_kvfabric.plan import Blocks, Plan
from ray_kvfabric.transport.base import LocalEnd, Order

Outcome = tuple[int, int, int]  # status, bytes, 0: as the copy kernel's
Enqueue = Callable[[Queue, Pieces, int], None]  # a window of the transfer, over the buffer at this address


def pieces_of(local: LocalEnd, source: RegionTable, target: RegionTable, plan: Plan, *, apart: bool = False) -> Pieces:
    """What the plan moves, without blocks that it writes over later: streams and batches keep no order of copies.

    `apart`: the tables are of two processes, whose addresses say nothing of each other. A peer that is given the same
    tables finds the same pieces.
    """
    span = plan.span
    blocks = _last_of_each(local, plan)
    return local.copier.pieces(
        source, target, span.source_first, span.target_first, span.num_regions, *blocks, apart=apart
    )


def _last_of_each(local: LocalEnd, plan: Plan) -> tuple[Blocks, Blocks]:
    targets = list(plan.target_blocks)
    if len(set(targets)) == len(targets):
        return plan.source_blocks, plan.target_blocks
    last = dict(zip(targets, plan.source_blocks, strict=True))
    copier = local.copier
    return copier.BlockList([*last.values()], "src_blocks"), copier.BlockList([*last], "dst_blocks")


def carry_out(device: Device, staging: Staging, pieces: Pieces, order: Order, *, is_pull: bool) -> Outcome:
    """Moves all pieces: from or to a peer's device, with the local side where `order.memory` says.

    Raises LLMException: what the device refuses or breaks at, StillMoving.
    """
    columns = (SOURCE, TARGET, NBYTES) if order.memory == "device" else (SOURCE if is_pull else TARGET, NBYTES)
    check_granule(device, pieces, f"transfer {order.transfer_id}", columns)
    with device.current():
        if order.after is not None and not device.await_mark(order.after, order.deadline_ns):
            return COPY_TIMED_OUT, 0, 0
        if order.memory == "device":
            return _directly(device, pieces, order)
        return _staged(device, staging, pieces, order, _stage_in if is_pull else _stage_out)


def _directly(device: Device, pieces: Pieces, order: Order) -> Outcome:
    status = limit_reached(order)
    if status:
        return status, 0, 0
    with device.queue() as queue:
        queue.copy(pieces, Direction.INSIDE)
        status = settle(queue, order)
    return status, int(pieces[:, NBYTES].sum()), 0


def _staged(device: Device, staging: Staging, pieces: Pieces, order: Order, enqueue: Enqueue) -> Outcome:
    moved = 0
    with staging.lease(order.deadline_ns) as buffers, ExitStack() as streams:
        queues = [streams.enter_context(device.queue()) for _ in buffers.addresses]
        status = COPY_DONE
        for number, window in enumerate(windows(pieces, buffers.nbytes)):
            queue = queues[number % 2]
            status = settle(queue, order) or limit_reached(order)  # the buffer is free again
            if status:
                break
            enqueue(queue, window, buffers.addresses[number % 2])
            moved += int(window[:, NBYTES].sum())
        status = max([status, *(settle(queue, order) for queue in queues)])
    return status, moved, 0


def _stage_out(queue: Queue, window: Pieces, buffer: int) -> None:
    places = packed(window, buffer)
    queue.copy(joined(window, places), Direction.TO_DEVICE)
    queue.copy(joined(places, window), Direction.INSIDE)


def _stage_in(queue: Queue, window: Pieces, buffer: int) -> None:
    places = packed(window, buffer)
    queue.copy(joined(window, places), Direction.INSIDE)
    queue.copy(joined(places, window), Direction.TO_HOST)


def limit_reached(order: Order) -> int:
    """COPY_DONE while the transfer may go on."""
    if order.stop is not None and order.stop.is_set:
        return COPY_STOPPED
    return COPY_TIMED_OUT if time.monotonic_ns() >= order.deadline_ns else COPY_DONE


def check_limits(order: Order, what: str) -> None:
    """Raises TransferCancelled, TransferTimeout for a transfer that is to end."""
    status = limit_reached(order)
    if status == COPY_STOPPED:
        raise TransferCancelled(f"transfer {order.transfer_id} {what} was cancelled")
    if status:
        raise TransferTimeout(f"transfer {order.transfer_id} {what} passed its time limit")


def await_turn(devices: Devices, order: Order, what: str) -> None:
    """Until the caller's own work on the cache is done. Raises TransferCancelled, TransferTimeout: nothing moved."""
    device = devices.device
    if order.after is not None and device is not None and not device.await_mark(order.after, order.deadline_ns):
        raise TransferTimeout(f"transfer {order.transfer_id} {what}: what it moves was not computed in time")
    check_limits(order, what)


def settle(queue: Queue, order: Order) -> int:
    """Waits until the queue has come to rest. Past the deadline it is COPY_TIMED_OUT, and nothing moves any more.

    Raises StillMoving, and what went wrong on the device.
    """
    if queue.finish(order.deadline_ns):
        return COPY_DONE
    if queue.finish(max(order.deadline_ns, time.monotonic_ns()) + PATIENCE_NS):
        return COPY_TIMED_OUT
    raise StillMoving(f"transfer {order.transfer_id} is late and the device does not come to rest")
