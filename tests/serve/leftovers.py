"""Files that engines leave behind when they are killed: of this user, made since, and of their names only."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATTERNS = ((Path("/dev/shm"), "psm_*"), (Path("/dev/shm"), "sem.mp-*"), (Path(tempfile.gettempdir()), "vllm_dist_*"))


@dataclass(frozen=True)
class Leftovers:
    paths: frozenset[Path]

    @classmethod
    def now(cls) -> Leftovers:
        found = [path for folder, pattern in PATTERNS for path in folder.glob(pattern)]
        return cls(frozenset(path for path in found if _is_mine(path)))

    def since(self, before: Leftovers) -> Leftovers:
        return Leftovers(self.paths - before.paths)

    def remove(self) -> None:
        for path in self.paths:
            with suppress(OSError):
                path.unlink()


def _is_mine(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except FileNotFoundError:
        return False
