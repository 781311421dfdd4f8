"""What is counted of one endpoint and its process. Called inside the process."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

from ray_kvfabric.cache_manager import CacheManager

Census = dict[str, object]
# Of an endpoint that nothing uses; its own page is mapped.
CLEAN: Census = {"page_links": [], "links": 0, "ways": 0, "caches": 0, "slots": 0, "mappings": 1, "shm_files": 0}
_KEPT_THREADS = ("kvfabric-transfer", "kvfabric-alarm")  # a pool's, and one that ends when it has nothing to do


def take(manager: CacheManager) -> Census:
    """All of it; equal censuses mean that nothing stayed behind."""
    return {
        **books(manager),
        "page_links": [_process(pid) for _, _, pid, _ in manager._identity.page.links()],
        "links": len(manager._links.links()),
        "ways": sum(len(ways) for ways in manager._links._ways.values()),
        "caches": len(manager._caches.all_ids()),
        "slots": _count_slots(manager),
        "mappings": _count_lines("memfd:kvfabric"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sorted(each.name for each in threading.enumerate() if not each.name.startswith(_KEPT_THREADS)),
        "native_threads": len(os.listdir("/proc/self/task")) - threading.active_count(),
        "shm_files": _count_lines("/dev/shm/") + len([name for name in os.listdir("/dev/shm") if "kvfabric" in name]),
    }


def books(manager: CacheManager) -> Census:
    """What has to be back while both ends still live and are linked."""
    grants, gate = manager._grants, manager._gate
    return {
        "grants": grants.describe(),
        "inside": manager._identity.page.count_writers(),
        "board_bytes": grants._space.free_nbytes,
        "gate": gate.describe(),
        "sleeping": len(gate._sleeping) + len(gate._threadless),
        "transfers": sum(not transfer.done() for transfer in manager._transfers.all()),
        "local_users": dict(grants.users._inside),
    }


def difference(before: Census, after: Census) -> str:
    """In words, "" when there is none."""
    names = [name for name in before if name in after and before[name] != after[name]]
    return "; ".join(f"{name} {after[name]}, was {before[name]}" for name in names)


def _process(pid: int) -> str:
    """Who has that number now: it may be another's already."""
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"{pid} (gone)"


def _count_slots(manager: CacheManager) -> int:
    """Those of its page that a cache or a grant has: the only set that the page refers to."""
    (taken,) = (each for each in gc.get_referents(manager._identity.page) if isinstance(each, set))
    return len(taken)


def _count_lines(text: str) -> int:
    return sum(text in line for line in Path("/proc/self/maps").read_text().splitlines())
