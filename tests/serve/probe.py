"""The connector, and beside it a file for each engine with what `Told` in deployment.py has. For tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray_kvfabric.integrations.vllm import connector

FOLDER = "KVFABRIC_TEST_PROBE"


class KVFabricConnector(connector.KVFabricConnector):
    """Of the scheduler side only, whose process has the pool of blocks."""

    _pool: Any = None
    _told: Any = None
    _failed = 0

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._pool = gpu_block_pool
        self._tell()

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        self._tell()
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        has_failed = getattr(connector_output, "failed_recving", None) or connector_output.invalid_block_ids
        self._failed += bool(has_failed)
        super().update_connector_output(connector_output)

    def has_pending_push_work(self) -> bool:
        """Asked after each step, when its blocks have been given back."""
        self._tell()
        return super().has_pending_push_work()

    def _tell(self) -> None:
        if self._pool is None:
            return
        told = (os.getpid(), self._pool.get_num_free_blocks(), self._decode.num_open, self._prefill.num_open)
        told += (self._failed,)
        if told != self._told:
            self._told = told
            path = Path(os.environ[FOLDER]) / self._engine_id
            path.with_suffix(".new").write_text(" ".join(map(str, told)))
            path.with_suffix(".new").rename(path)
