"""One end's half of a transfer over a communicator: the items it sends or receives, and its staging.

    device memory here   all items at once, one batch a window
    host memory, sending      window k: host to buffer k % 2, while window k - 1 is being sent
    host memory, receiving    window k is received into buffer k % 2, while window k - 1 goes to the host
Both ends cut the same windows, since a batch here meets a batch there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ray_kvfabric.errors import ParamInvalid, StillMoving
from ray_kvfabric.memory.device import Direction, Pieces, Queue
from ray_kvfabric.memory.staging import NBYTES, SOURCE, TARGET, joined, packed, windows
from ray_kvfabric.transport.base import LocalEnd, Order
from ray_kvfabric.transport.device_copy import settle
from ray_kvfabric.transport.hccl_communicator import Communicator
from ray_kvfabric.transport.hccl_library import SEND, items_of

Check = Callable[[], None]  # raises when it is not worth waiting any longer


class Half(NamedTuple):
    """`window_nbytes` is 0 where both ends have device memory: then there is one window."""

    kind: int  # SEND or RECEIVE
    pieces: Pieces
    order: Order
    rank: int  # of the other end
    window_nbytes: int

    @property
    def column(self) -> int:
        return SOURCE if self.kind == SEND else TARGET

    def windows(self) -> Iterator[Pieces]:
        return windows(self.pieces, self.window_nbytes) if self.window_nbytes else iter([self.pieces])

    @property
    def nbytes(self) -> int:
        return int(self.pieces[:, NBYTES].sum())


def run_half(local: LocalEnd, communicator: Communicator, half: Half, check: Check) -> None:
    """Returns when this end's bytes have left, or are there. Raises what `check` raises, LLMException.

    After an error the communicator is closed, and nothing moves any more; StillMoving where it does all the same.
    """
    with communicator.device.current():
        if half.order.memory == "device":
            with _ended(communicator, half):
                _directly(communicator, half, check)
            return
        if half.window_nbytes > local.staging.buffer_nbytes:
            raise ParamInvalid(
                f"window_nbytes is {half.window_nbytes}, a staging buffer of endpoint {local.endpoint.cluster_id} "
                f"holds {local.staging.buffer_nbytes}"
            )
        lease = local.staging.lease(half.order.deadline_ns)
        with lease as buffers, _ended(communicator, half), communicator.device.queue() as queue:
            staged = _send_staged if half.kind == SEND else _receive_staged
            staged(communicator, queue, buffers.addresses, half, check)


@contextmanager
def _ended(communicator: Communicator, half: Half) -> Iterator[None]:
    """Whoever comes out of it by an error leaves nothing moving, so that buffers and caches may be used again."""
    try:
        yield
    except BaseException as error:
        if not communicator.close():
            raise StillMoving(f"transfer {half.order.transfer_id}: HCCL does not let go of it ({error})") from None
        raise


def _directly(communicator: Communicator, half: Half, check: Check) -> None:
    for window in half.windows():
        _batch(communicator, half, window)
    communicator.settle(check)


def _batch(communicator: Communicator, half: Half, places: Pieces) -> None:
    communicator.batch(items_of(places, half.column, half.kind, half.rank))


def _send_staged(communicator: Communicator, queue: Queue, buffers: tuple[int, int], half: Half, check: Check) -> None:
    for number, window in enumerate(half.windows()):
        places = packed(window, buffers[number % 2])
        _copy(queue, joined(window, places), Direction.TO_DEVICE, half, check)
        communicator.settle(check)
        _batch(communicator, half, places)
    communicator.settle(check)


def _receive_staged(
    communicator: Communicator, queue: Queue, buffers: tuple[int, int], half: Half, check: Check
) -> None:
    before: Pieces | None = None  # received, and not in the host's memory yet
    for number, window in enumerate(half.windows()):
        places = packed(window, buffers[number % 2])
        communicator.settle(check)
        _batch(communicator, half, places)
        if before is not None:
            _copy(queue, before, Direction.TO_HOST, half, check)
        before = joined(places, window)
    communicator.settle(check)
    if before is not None:
        _copy(queue, before, Direction.TO_HOST, half, check)


def _copy(queue: Queue, pieces: Pieces, direction: Direction, half: Half, check: Check) -> None:
    queue.copy(pieces, direction)
    if settle(queue, half.order):
        check()
