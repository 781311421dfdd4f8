"""Granting: the verbs of grants for drivers, jobs and notebooks. Each is a call to one endpoint, wherever it lives."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from ray_kvfabric.actors.clients import SchedulerClient
from ray_kvfabric.actors.edge import peer_errors
from ray_kvfabric.actors.transfer import FabricTransfer, PushOrder
from ray_kvfabric.cache.checks import check_type
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.plan import TENSORS_PER_LAYER
from ray_kvfabric.route import CacheRef, Receipt

DRAIN_S = 60.0


class Granting:
    """`_client` and `timeout_s` are the fabric's."""

    _client: SchedulerClient
    timeout_s: float

    def grant_blocks(
        self,
        cache: CacheRef,
        blocks: Sequence[int],
        *,
        request_id: str = "",
        ttl_s: float | None = None,
        writers: int = 1,
        sources: Sequence[int] = (),
        layers: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        verify: str | None = None,
    ) -> Grant:
        """`CacheManager.grant_blocks` at the endpoint of `cache`. A handle of a former life is StaleIncarnation."""
        check_type(cache, CacheRef, "cache")
        options = {
            "request_id": request_id,
            "ttl_s": ttl_s,
            "writers": writers,
            "sources": list(sources),
            "layers": layers,
            "tensor_num_per_layer": tensor_num_per_layer,
            "verify": verify,
        }
        grant: Grant = self._at(
            cache.cluster_id,
            "grant_blocks",
            cache=cache,
            blocks=list(blocks),
            options=options,
            call_id=uuid.uuid4().hex,
        )
        return grant

    def wait_granted(self, grant: Grant, timeout_s: float | None = None) -> GrantReceipt:
        """`IssuedGrant.wait` at the endpoint that gave the grant."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        receipt: GrantReceipt = self._at(
            grant.cluster_id, "wait_granted", extra_s=timeout_s,
            grant_id=grant.grant_id, timeout_s=timeout_s, given_by=grant.incarnation,
        )  # fmt: skip
        return receipt

    def revoke_grant(self, grant: Grant, timeout_s: float | None = None) -> None:
        """`IssuedGrant.revoke` at the endpoint that gave the grant."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        self._at(
            grant.cluster_id, "revoke_grant", extra_s=timeout_s,
            grant_id=grant.grant_id, timeout_s=timeout_s, given_by=grant.incarnation,
        )  # fmt: skip

    def push_granted(
        self,
        grant: Grant,
        src: CacheRef,
        src_blocks: Sequence[int],
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        at: int = 0,
        seal: bool = True,
        writer: int | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Receipt:
        """`CacheManager.push_granted` at the endpoint of `src`; returns when the bytes are there."""
        return self.start_push_granted(
            grant, src, src_blocks, src_layer_range, dst_layer_range, tensor_num_per_layer,
            at=at, seal=seal, writer=writer, timeout_s=timeout_s, priority=priority,
        ).result()  # fmt: skip

    def start_push_granted(
        self,
        grant: Grant,
        src: CacheRef,
        src_blocks: Sequence[int],
        src_layer_range: range | None = None,
        dst_layer_range: range | None = None,
        tensor_num_per_layer: int = TENSORS_PER_LAYER,
        *,
        at: int = 0,
        seal: bool = True,
        writer: int | None = None,
        transfer_id: str | None = None,
        timeout_s: float | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> FabricTransfer:
        """`push_granted` without the wait. `transfer_id`: 32 hexadecimal digits; the same is the same push."""
        check_type(grant, Grant, "grant")
        check_type(src, CacheRef, "src")
        transfer_id = transfer_id or uuid.uuid4().hex
        options = {
            "src_layer_range": src_layer_range,
            "dst_layer_range": dst_layer_range,
            "tensor_num_per_layer": tensor_num_per_layer,
            "at": at,
            "seal": seal,
            "writer": writer,
            "timeout_s": timeout_s,
            "priority": priority,
        }
        arguments: dict[str, object] = {
            "transfer_id": transfer_id, "grant": grant, "cache": src, "src_blocks": list(src_blocks), "options": options
        }  # fmt: skip
        order = PushOrder(src.cluster_id, Errand(transfer_id, "push_granted", arguments), None, src.incarnation)
        return FabricTransfer(self._client, order, self.timeout_s + (timeout_s or 0.0))

    def fail_granted(self, grant: Grant, src: CacheRef, reason: str) -> None:
        """`CacheManager.fail_granted` at the endpoint of `src`: it will not bring the rest."""
        self._at(src.cluster_id, "fail_granted", grant=grant, reason=reason)

    def drain(self, cluster_id: int, timeout_s: float = DRAIN_S) -> None:
        """`CacheManager.drain` of one endpoint: for scale-down, before its actor is killed."""
        self._at(cluster_id, "drain", extra_s=timeout_s, timeout_s=timeout_s)

    def _at(self, cluster_id: int, method: str, extra_s: float = 0.0, **arguments: Any) -> Any:
        """Takes effect once, however often the call or its answer is lost until the deadline."""
        with peer_errors(f"endpoint {cluster_id}"):
            return self._client.errand(cluster_id, method, Deadline.after(self.timeout_s + extra_s), **arguments)
