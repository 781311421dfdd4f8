"""The verbs of offers: an owner offers free blocks, askers ask for a grant and sleep until there is room."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from ray_kvfabric.cache.checks import check_int, check_type
from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.asking import Asking
from ray_kvfabric.endpoint.grant_rules import check_ttl, check_wanted
from ray_kvfabric.endpoint.grant_verbs import GrantVerbs
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.endpoint.offers import Asker, BlockOffer
from ray_kvfabric.endpoint.requests import BlockArgument, check_blocks_key, check_cache
from ray_kvfabric.errors import (
    CacheNotFound,
    EndpointDraining,
    FabricError,
    FeatureNotEnabled,
    ParamInvalid,
    TransferTimeout,
)
from ray_kvfabric.grant import Grant
from ray_kvfabric.route import EndpointInfo, Route

ASK, TAKE, CANCEL = "ask_for_grant", "take_grant", "cancel_asking"
ASK_AGAIN_S = 5.0  # a grant of which nobody could tell the asker is found by this


class OfferVerbs(GrantVerbs):
    """`offer_blocks` of an owner, `request_grant` of an asker."""

    def _begin(self) -> None:
        self._offered: dict[int, BlockOffer] = {}  # by cache_id
        self._asking = Asking()
        self._answerers |= {ASK: self._answer_asker, TAKE: self._asking.take, CANCEL: self._cancel_asker}
        super()._begin()

    def offer_blocks(
        self, cache: Cache, blocks: BlockArgument, *, ttl_s: float | None = None, max_waiting: int = 1024
    ) -> BlockOffer:
        """Grants these free blocks to whoever asks, as many as each wants, for `ttl_s`; the next in turn waits.

        At most `max_waiting` requests wait, the most urgent first, and nobody for ever. One offer a cache; `add` puts
        more into it. Raises ParamInvalid, TypeError.
        """
        self._check_open()
        check_cache(cache, "cache")
        info = self._caches.find_mapped(cache.cache_id).info
        if not info.is_blocks:
            raise ParamInvalid(f"cache {info.cache_id} is a continuous cache, it has no blocks")
        check_wanted(blocks, 1, (), None, info.regions[0].num_blocks)
        check_ttl(ttl_s)
        check_int(max_waiting, "uint32", "max_waiting")
        if cache.cache_id in self._offered:
            raise ParamInvalid(f"blocks of cache {cache.cache_id} are offered already: add to that offer")
        offer = self._offered[cache.cache_id] = BlockOffer(
            cache,
            self._identity.page,
            self.settings.grants.ttl_s if ttl_s is None else ttl_s,
            max_waiting,
            self.settings.admission.ageing_s,
            self._give,
            self._tell_asker,
        )
        offer.add(blocks)
        self._watch.begin()
        return offer

    def _give(self, cache: Cache, blocks: tuple[int, ...], request_id: str, ttl_s: float, asker: int) -> IssuedGrant:
        return self.grant_blocks(cache, blocks, request_id=request_id, ttl_s=ttl_s, sources=[asker])

    def _tell_asker(self, asker: EndpointInfo, ticket: str, grant: Grant) -> None:
        """Aside: the asker may take its time. If it cannot be told it asks again."""
        threading.Thread(target=self._tell_now, args=(asker, ticket, grant), name="kvfabric-offer", daemon=True).start()

    def _tell_now(self, asker: EndpointInfo, ticket: str, grant: Grant) -> None:
        with suppress(FabricError):
            question = {"ticket": ticket, "grant": grant}
            is_taken = self.ask(asker, TAKE, question, self._control_deadline())
            offer = self._offered.get(grant.cache_id)
            if not is_taken and offer is not None:
                offer.not_awaited(ticket)

    # ---- askers ------------------------------------------------------------------------------------

    def request_grant(
        self,
        key: BlocksCacheKey,
        num_blocks: int,
        *,
        request_id: str = "",
        priority: Priority = Priority.NORMAL,
        timeout_s: float | None = None,
    ) -> Grant:
        """A grant of `num_blocks` offered blocks of the cache that the key names; sleeps until there is room.

        None waits for `control_timeout_s`. Raises CreditExhausted (the queue is full), NotLinked, CacheNotFound,
        FeatureNotEnabled (its owner offers nothing), EndpointDraining, PeerLost, TransferTimeout.
        """
        self._check_open()
        check_blocks_key(key, "key")
        if check_int(num_blocks, "uint32", "num_blocks") < 1:
            raise ParamInvalid(f"num_blocks must be at least 1, got {num_blocks}")
        check_type(request_id, str, "request_id")
        deadline = Deadline.after(self.settings.control_timeout_s if timeout_s is None else timeout_s)
        asking = self._asking.begin()
        try:
            return self._await_grant(key, num_blocks, request_id, priority, asking, deadline)
        finally:
            self._asking.end(asking)

    def _await_grant(
        self,
        key: BlocksCacheKey,
        num_blocks: int,
        request_id: str,
        priority: Priority,
        ticket: str,
        deadline: Deadline,
    ) -> Grant:
        route = self._directory.resolve(*key.way, deadline)
        question = {
            "ticket": ticket,
            "cache_id": route.cache.cache_id,
            "asker": self.endpoint,
            "request_id": request_id,
            "num_blocks": num_blocks,
            "priority": int(priority),
        }
        while not deadline.passed:
            grant = self._ask_owner(route.endpoint, question, deadline)
            grant = grant or self._asking.wait(ticket, min(deadline.remaining_s, ASK_AGAIN_S))
            if grant is not None:
                return grant
        return self._give_up(route, ticket, f"{num_blocks} blocks of {key} were not free in time")

    def _ask_owner(self, owner: EndpointInfo, question: dict[str, Any], deadline: Deadline) -> Grant | None:
        """None: it waits, or the question or its answer was lost. Once more it is still the same request."""
        question["timeout_s"] = deadline.remaining_s
        with suppress(TransferTimeout):
            grant: Any = self.ask(owner, ASK, question, Deadline.after(min(deadline.remaining_s, ASK_AGAIN_S)))
            return None if grant is None else check_type(grant, Grant, "the answer")
        return None

    def _give_up(self, route: Route, ticket: str, why: str) -> Grant:
        """First nobody waits any more, so a grant that is told from now on is refused; one that was told is taken."""
        grant = self._asking.end(ticket)
        if grant is not None:
            return grant
        with suppress(FabricError):
            cancel = {"ticket": ticket, "cache_id": route.cache.cache_id}
            self.ask(route.endpoint, CANCEL, cancel, self._control_deadline())
        raise TransferTimeout(why)

    # ---- answers -----------------------------------------------------------------------------------

    def _answer_asker(self, question: dict[str, Any]) -> Grant | None:
        offer = self._offered.get(question["cache_id"])
        if offer is None:
            raise FeatureNotEnabled(f"{self.endpoint} offers no blocks of its cache {question['cache_id']}")
        asker = Asker(question["asker"], question["request_id"])
        priority = Priority(question["priority"])
        return offer.ask(question["ticket"], asker, question["num_blocks"], priority, question["timeout_s"])

    def _cancel_asker(self, question: dict[str, Any]) -> bool:
        offer = self._offered.get(question["cache_id"])
        if offer is not None:
            offer.cancel(question["ticket"])
        return offer is not None

    # ---- with the endpoint's life --------------------------------------------------------------------

    def _look_after(self) -> None:
        super()._look_after()
        for offer in list(self._offered.values()):
            offer.tick()

    def peer_ended(self, cluster_id: int, incarnation: int, reason: str) -> None:
        super().peer_ended(cluster_id, incarnation, reason)
        for offer in list(self._offered.values()):
            offer.drop(cluster_id, incarnation)

    def _refuse_new(self, reason: str) -> None:
        super()._refuse_new(reason)
        for offer in list(self._offered.values()):
            offer.close(EndpointDraining(reason))

    def _forget_cache(self, cache_id: int) -> None:
        super()._forget_cache(cache_id)
        offer = self._offered.pop(cache_id, None)
        if offer is not None:
            offer.close(CacheNotFound(f"cache {cache_id} of {self.endpoint} was freed"))

    def describe_offers(self) -> list[dict[str, int]]:
        """What is offered, granted and waited for, by cache."""
        return [offer.describe() for offer in list(self._offered.values())]
