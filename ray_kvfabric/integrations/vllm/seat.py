"""Seat: an engine's worker process as an endpoint of the fabric, whether it is a Ray worker or not."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

import ray

from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.config import (
    NAMESPACE,
    EndpointSettings,
    FabricConfig,
    GrantSettings,
    PoolSettings,
    endpoint_settings,
)
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ClusterIdTaken, ConfigError, FabricError
from ray_kvfabric.fabric import Fabric
from ray_kvfabric.integrations.vllm.layout import Terms
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings

logger = logging.getLogger(__name__)

SUCCESSION_S = 20.0  # longer than a lease: until an engine that died under this name is forgotten
RETRY_S = 0.5
GREETING_S = 5.0
TERMS = "vllm.terms"


def cluster_id_of(engine_id: str, rank: int) -> int:
    """Both sides of a transfer come to the same number, so that no table of ranks is written."""
    return int.from_bytes(hashlib.blake2b(f"{engine_id}#{rank}".encode(), digest_size=8).digest(), "little")


def worker_settings(settings: ConnectorSettings, kv_nbytes: int) -> EndpointSettings:
    """`kv_nbytes`: what the engine's KV cache takes of fabric memory, 0 when it lies elsewhere."""
    pool = PoolSettings(memory_size=kv_nbytes + (1 << 20)) if kv_nbytes else None
    return endpoint_settings(
        mem_pool=pool,
        sync_kv_timeout_ms=int(settings.push_timeout_s * 1e3),
        control_timeout_s=settings.ask_timeout_s,
        grants=GrantSettings(max_grants=16384, ttl_s=settings.transfer_timeout_s),
    )


class Seat:
    """Taken for one worker of an engine; left by `leave`, or with its process."""

    def __init__(self, settings: ConnectorSettings, engine_id: str, rank: int, role: str, kv_nbytes: int) -> None:
        """`role` is PROMPT, DECODER or MIX. Raises ConfigError without a Ray cluster, ClusterIdTaken."""
        self._settings = settings
        self.engine_id = engine_id
        self.rank = rank
        self._role = role
        _meet_ray(settings.address)
        config = FabricConfig(name=settings.fabric, lifetime="detached")
        self.fabric = Fabric.connect(settings.fabric, config=config, address=settings.address)
        self.manager = self._join(worker_settings(settings, kv_nbytes))

    def _join(self, settings: EndpointSettings) -> CacheManager:
        deadline = Deadline.after(SUCCESSION_S)
        while True:
            try:
                return self.fabric.join(cluster_id_of(self.engine_id, self.rank), settings=settings, role=self._role)
            except ClusterIdTaken as error:
                if deadline.passed:
                    raise ClusterIdTaken(
                        f"an engine {self.engine_id!r} is in fabric {self._settings.fabric!r} already: {error}"
                    ) from None
            logger.info("waiting for the engine that was called %s before to be forgotten", self.engine_id)
            time.sleep(RETRY_S)

    def greet(self, terms: Terms) -> None:
        """Compares terms with every worker of the group that KV may come from or go to. Raises LayoutMismatch.

        Of two engines that start at once at least one sees the other.
        """
        self.manager.answers(TERMS, lambda _: (self._settings.group, self.rank, terms))
        for member in self.fabric.members():
            endpoint = member.endpoint
            if endpoint.cluster_id == self.manager.endpoint.cluster_id or not _may_meet(self._role, endpoint.role):
                continue
            try:
                answer = self.manager.ask(endpoint, TERMS, {}, Deadline.after(GREETING_S))
            except FabricError as error:  # it is no engine, or just starts or ends
                logger.debug("%s did not say its terms: %s", endpoint, error)
                continue
            group, rank, theirs = cast("tuple[str, int, Terms]", answer)
            if (group, rank) == (self._settings.group, self.rank):
                terms.check(theirs)

    def leave(self) -> None:
        """The last one ends the fabric, unless somebody holds it."""
        self.fabric.close()
        with suppress(FabricError):
            self.fabric.retire()


def _may_meet(mine: str, theirs: str) -> bool:
    """Two producers, or two consumers, send each other nothing."""
    return mine != theirs or mine == "MIX"


@contextmanager
def _own_chance() -> Iterator[None]:
    """Ray draws the names of its subscribers from `random`, which engines seed alike: two of one name would end each
    other's long polls, 2,000 times a second, at a fifth of a core each.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _meet_ray(address: str | None) -> None:
    if ray.is_initialized():
        return
    try:
        with _own_chance():
            ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ConfigError(
            f"kv_connector_extra_config.address is {address!r}, and no Ray cluster was found: start one with "
            f"`ray start --head`, or name one ({error})"
        ) from error
