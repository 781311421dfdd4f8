"""WorkerSide: the connector in an engine's worker process, where the KV cache is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations.vllm.consumer import Consumer, Ended
from ray_kvfabric.integrations.vllm.layout import Terms, describe_lanes, lay_out
from ray_kvfabric.integrations.vllm.orders import Orders
from ray_kvfabric.integrations.vllm.producer import Producer
from ray_kvfabric.integrations.vllm.seat import Seat
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings
from ray_kvfabric.integrations.vllm.storage import Allocation, form_of, register, tensors_of
from ray_kvfabric.integrations.vllm.tally import Tally
from ray_kvfabric.integrations.vllm.timeline import Timeline

logger = logging.getLogger(__name__)

ROLES = {"kv_producer": "PROMPT", "kv_consumer": "DECODER", "kv_both": "MIX"}


class WorkerSide:
    """`groups[g]` are the layers of KV group g, whose blocks are numbered below `num_blocks`.

    `kv_nbytes`: of the KV cache, where it shall lie in fabric memory; 0 where the engine's own is registered.
    """

    def __init__(
        self,
        settings: ConnectorSettings,
        engine_id: str,
        rank: int,
        kv_role: str,
        groups: list[list[str]],
        num_blocks: int,
        kv_nbytes: int,
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._num_blocks = num_blocks
        self._kv_role = kv_role
        self._rank = rank
        self._tally = Tally()
        self._seat = Seat(settings, engine_id, rank, ROLES[kv_role], kv_nbytes)
        self._allocation = Allocation(self._seat.manager, kv_nbytes) if kv_nbytes else None
        self.producer: Producer | None = None
        self.consumer: Consumer | None = None

    def allocator(self) -> AbstractContextManager[Any] | None:
        """What the engine allocates its KV cache in; None for its own way."""
        return self._allocation.storage if self._allocation is not None else None

    def begin_allocation(self) -> None:
        """For an engine that does not ask for `allocator`."""
        if self._allocation is not None:
            self._allocation.enter()

    def register(self, kv_caches: Mapping[str, Any], terms: Mapping[str, str]) -> None:
        """`terms` are what both sides must agree on.

        Raises ConfigError, LayoutMismatch for another engine of the group that differs.
        """
        if self._allocation is not None:
            self._allocation.leave()
        tensors = tensors_of(kv_caches)
        forms = {layer: [form_of(layer, each, self._num_blocks) for each in found] for layer, found in tensors.items()}
        layout = lay_out(self._groups, forms)
        if not layout.lanes:
            raise ConfigError("the engine has no KV cache to share")
        manager = self._seat.manager
        caches = register(manager, layout, tensors)
        fields = {**terms, "kv_cache": describe_lanes(layout.lanes)}
        mine = Terms(self._seat.engine_id, tuple(fields.items()))
        rest = (layout, caches, mine, self._rank, self._settings, self._tally)
        if self._kv_role != "kv_consumer":
            timeline = self._settings.timeline and Timeline(self._settings.timeline, self._seat.engine_id, self._rank)
            self.producer = Producer(manager, *rest, timeline or None)
        if self._kv_role != "kv_producer":
            self.consumer = Consumer(manager, *rest)
        self._seat.greet(mine)
        logger.info(
            "engine %s is %s of fabric %r; the digest of its terms is %s",
            self._seat.engine_id, manager.endpoint, self._settings.fabric, mine.digest,
        )  # fmt: skip
        manager.shows("vllm", self._describe)

    def _describe(self) -> dict[str, object]:
        """Requests whose KV is promised or being sent, and those that wait for theirs."""
        sides = {"sending": self.producer, "receiving": self.consumer}
        return {name: side.num_open for name, side in sides.items() if side is not None}

    def follow(self, orders: Orders) -> None:
        if self.consumer is not None:
            self.consumer.follow(orders)
        if self.producer is not None:
            self.producer.follow(orders)

    def ends(self) -> tuple[list[str], list[Ended]]:
        """Requests that were sent, and those that were received or not; each once."""
        sent = self.producer.take_sent() if self.producer is not None and self.producer.has_sent else []
        ended = self.consumer.take_ended() if self.consumer is not None and self.consumer.has_ended else []
        return sent, ended

    @property
    def has_ends(self) -> bool:
        return (self.consumer is not None and self.consumer.has_ended) or (
            self.producer is not None and self.producer.has_sent
        )

    def counts(self) -> dict[str, Any] | None:
        return self._tally.take()

    def close(self) -> None:
        """Idempotent."""
        if self.producer is not None:
            self.producer.close()
        if self.consumer is not None:
            self.consumer.close()
        self._seat.leave()
