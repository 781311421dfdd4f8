"""Timeline: when a producer's layers were computed and its pushes ran, one JSON line an event, for pictures and tests.

Times are CLOCK_MONOTONIC nanoseconds of the host.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from ray_kvfabric.route import Receipt


class Timeline:
    """Appends to `directory/engine-rank.jsonl`. Threads may share it."""

    def __init__(self, directory: Path, engine_id: str, rank: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{engine_id}-{rank}.jsonl"
        self._lock = threading.Lock()
        self._file = self.path.open("a", buffering=1)

    def computed(self, layer: str, transfer_ids: Sequence[str], at_ns: int) -> None:
        """One layer of one step, for all requests of the step whose KV is promised."""
        self._write({"event": "computed", "layer": layer, "transfer_ids": transfer_ids, "at_ns": at_ns})

    def pushed(self, transfer_id: str, layers: Sequence[str], receipt: Receipt) -> None:
        self._write(
            {
                "event": "pushed",
                "transfer_id": transfer_id,
                "layers": layers,
                "nbytes": receipt.nbytes,
                "started_ns": receipt.started_ns,
                "landed_ns": receipt.landed_ns,
            }
        )

    def _write(self, event: dict[str, object]) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(json.dumps(event) + "\n")

    def close(self) -> None:
        with self._lock:
            self._file.close()
