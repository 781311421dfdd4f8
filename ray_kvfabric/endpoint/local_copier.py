"""LocalCopier: copies between tables of this process, each in host memory or on the endpoint's device."""

from __future__ import annotations

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ParamInvalid, StillMoving, TransferTimeout
from ray_kvfabric.memory.copy import BlockList, Copier, RegionTable
from ray_kvfabric.memory.device import Devices, Direction, Pieces, check_granule

DEVICE_S = 30.0  # no time limit of LLM-DataDist's applies to these copies, and a device may not come back
_DIRECTIONS = {
    ("host", "device"): Direction.TO_DEVICE,
    ("device", "host"): Direction.TO_HOST,
    ("device", "device"): Direction.INSIDE,
}


class LocalCopier:
    """Behind what the calling thread's current stream still has to do, and done when a call returns."""

    def __init__(self, copier: Copier, devices: Devices) -> None:
        self.copier = copier
        self._devices = devices
        self._stuck: list[tuple[RegionTable, RegionTable]] = []

    def copy(
        self,
        source: RegionTable,
        target: RegionTable,
        memories: tuple[str, str],
        blocks: tuple[BlockList, BlockList],
    ) -> None:
        """All regions, pair by pair in order. `memories` are the source's and the target's."""
        if memories == ("host", "host"):
            self.copier.copy_blocks(source, target, 0, 0, len(source), *blocks)
            return
        try:
            self._copy_on_device(self.copier.pieces(source, target, 0, 0, len(source), *blocks), _DIRECTIONS[memories])
        except StillMoving:
            self._stuck.append((source, target))  # their memory stays taken
            raise

    def check_device(self, verb: str, *, emulates_device: bool) -> None:
        """Raises LLMException (LLM_PARAM_INVALID) where there is none, nor host memory in its place."""
        if not emulates_device and self._devices.find() is None:
            raise ParamInvalid(
                f"{verb} needs device memory, and there is no device; emulated_device=host says that DEVICE caches "
                "lie in host memory"
            )

    def _copy_on_device(self, pieces: Pieces, direction: Direction) -> None:
        device = self._devices.open("a copy of device memory")
        give_up = Deadline.after(DEVICE_S)
        if direction is Direction.INSIDE:
            check_granule(device, pieces, "a copy inside the device")
        with device.current():
            mark = device.mark()
            if mark is not None and not device.await_mark(mark, give_up.at_ns):
                raise TransferTimeout(
                    f"{device} was still busy with other work after {DEVICE_S:g} s; nothing was copied"
                )
            with device.queue() as queue:
                queue.copy(pieces, direction)
                if not queue.finish(give_up.at_ns):
                    raise StillMoving(f"{device} did not end a copy within {DEVICE_S:g} s")
