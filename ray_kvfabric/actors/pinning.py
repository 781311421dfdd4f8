"""Which device of this process Ray has given to its actor, as torch counts devices here."""

from __future__ import annotations

import ray

from ray_kvfabric.config import visible_devices

_VISIBLE = {"NPU": "ASCEND_RT_VISIBLE_DEVICES", "GPU": "CUDA_VISIBLE_DEVICES"}


def pinned_index() -> int | None:
    """None for an actor that has no accelerator."""
    assigned = ray.get_runtime_context().get_accelerator_ids()
    for resource, variable in _VISIBLE.items():
        if assigned.get(resource):
            return local_index(assigned[resource][0], visible_devices(variable))
    return None


def local_index(assigned: str, visible: list[str] | None) -> int | None:
    """Where `assigned` stands among the devices that this process sees; None in `visible`: it sees all.

    Ray narrows what a process sees to what it assigned, unless it was told not to: then the ids are the host's.
    """
    if visible is not None and assigned in visible:
        return visible.index(assigned)
    return int(assigned) if assigned.isdecimal() else None
