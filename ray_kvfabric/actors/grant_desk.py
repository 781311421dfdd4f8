"""GrantDesk: what an endpoint does about grants for callers outside its process. Each method is idempotent."""

from __future__ import annotations

from typing import Any

from ray_kvfabric.actors.desk import Desk
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import CacheRef, Receipt


class GrantDesk(Desk):
    """The rest is the Desk's."""

    def grant_blocks(self, cache: CacheRef, blocks: list[int], options: dict[str, Any], call_id: str | None) -> Grant:
        self._check_is_meant(cache.incarnation)
        grant: Grant = self.once(call_id, lambda: self._grant(cache.cache_id, blocks, options))
        return grant

    def _grant(self, cache_id: int, blocks: list[int], options: dict[str, Any]) -> Grant:
        return self.manager.grant_blocks(self.manager.cache(cache_id), blocks, **options).grant

    def wait_granted(self, grant_id: str, timeout_s: float, given_by: int) -> GrantReceipt:
        """`given_by` is the incarnation that gave the grant."""
        self._check_is_meant(given_by)
        return self.manager.issued(grant_id).wait(timeout_s)

    def revoke_grant(self, grant_id: str, timeout_s: float, given_by: int) -> None:
        self._check_is_meant(given_by)
        self.manager.issued(grant_id).revoke(timeout_s)

    def push_granted(
        self, transfer_id: str, grant: Grant, cache: CacheRef, src_blocks: list[int], options: dict[str, Any]
    ) -> Receipt:
        self._check_is_meant(cache.incarnation)
        source = self.manager.cache(cache.cache_id)
        started = self.manager.start_push_granted(grant, source, src_blocks, **options, transfer_id=transfer_id)
        return started.wait()

    def fail_granted(self, grant: Grant, reason: str) -> None:
        self.manager.fail_granted(grant, reason)

    def drain(self, timeout_s: float) -> None:
        self.manager.drain(timeout_s)
