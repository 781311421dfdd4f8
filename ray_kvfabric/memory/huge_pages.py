"""Whether the host gives huge pages to shared mappings. Detected and reported; never required."""

from __future__ import annotations

import re
from pathlib import Path

_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def shared_memory_policy(source: Path = _SHMEM_ENABLED) -> str:
    """The kernel's choice for shared memory ("never", "advise", "always", ...), or "unknown"."""
    try:
        match = re.search(r"\[(\w+)\]", source.read_text())
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def can_advise(policy: str) -> bool:
    """Whether asking with madvise can lead to huge pages under this policy."""
    return policy in {"advise", "always", "within_size", "force"}
