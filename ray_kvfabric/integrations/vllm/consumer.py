"""Consumer: the worker side of an engine that lets others compute its KV.

A thread for each open request grants its blocks, offers the grants to the producer, and sleeps until they have landed
or failed. Whoever ends it, the blocks are drained before `take_ended` names the request, and it is named once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.errors import FabricError, GrantRevoked, LLMException, PeerLost, TransferTimeout
from ray_kvfabric.integrations.vllm.layout import KVLayout, Terms
from ray_kvfabric.integrations.vllm.offer_text import ShownOffer, prepare, text_of
from ray_kvfabric.integrations.vllm.orders import Decline, Orders, Receive
from ray_kvfabric.integrations.vllm.producer import DECLINE, EXPECTS, OFFER
from ray_kvfabric.integrations.vllm.pushes import LaneGrant, Offer
from ray_kvfabric.integrations.vllm.seat import cluster_id_of
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings
from ray_kvfabric.integrations.vllm.tally import FAILED, Tally
from ray_kvfabric.route import EndpointInfo

logger = logging.getLogger(__name__)

MAX_OPEN = 4096  # threads, each asleep in a request's grant
DRAIN_S = 5.0


class Ended(NamedTuple):
    """`blocks` were not received whole; none when all of it landed."""

    req_id: str
    has_failed: bool
    blocks: tuple[int, ...]


@dataclass(slots=True)
class _Receiving:
    order: Receive
    lock: threading.Lock = field(default_factory=threading.Lock)
    grants: list[IssuedGrant] = field(default_factory=list)
    is_cancelled: bool = False
    is_reported: bool = False


class Consumer:
    """`caches[i]` is the cache of lane i of `layout`."""

    def __init__(
        self,
        manager: CacheManager,
        layout: KVLayout,
        caches: Sequence[Cache],
        terms: Terms,
        rank: int,
        settings: ConnectorSettings,
        tally: Tally,
    ) -> None:
        self._manager = manager
        self._layout = layout
        self._caches = caches
        self._terms = terms
        self._rank = rank
        self._settings = settings
        self._tally = tally
        self._open: dict[str, _Receiving] = {}
        self._expected: set[str] = set()  # transfer_ids
        self._peers: dict[str, EndpointInfo] = {}  # by engine_id, those that answered last
        self._ended: deque[Ended] = deque()
        self._threads = ThreadPoolExecutor(MAX_OPEN, thread_name_prefix="kvfabric-consumer")
        self._is_closing = False
        prepare()
        manager.answers(EXPECTS, lambda arguments: self._expected.intersection(arguments["transfer_ids"]))

    # ---- the engine's thread -----------------------------------------------------------------------

    def follow(self, orders: Orders) -> None:
        for expect in orders.expect:
            self._expected.add(expect.transfer_id)
        for order in orders.receive:
            receiving = self._open[order.req_id] = _Receiving(order)
            self._threads.submit(self._receive, receiving)
        for decline in orders.decline:
            self._expected.discard(decline.transfer_id)
            self._threads.submit(self._decline, decline)
        for req_id in orders.revoke:
            self._cancel(req_id)

    def _cancel(self, req_id: str) -> None:
        """Its end is reported once nobody can write any more; nothing for a request whose end was reported."""
        receiving = self._open.get(req_id)
        if receiving is not None:
            receiving.is_cancelled = True
            self._threads.submit(self._end, receiving, GrantRevoked(f"request {req_id} was aborted"))

    @property
    def has_ended(self) -> bool:
        return bool(self._ended)

    def take_ended(self) -> list[Ended]:
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        return ended

    @property
    def num_open(self) -> int:
        return len(self._open)

    # ---- a request's thread ------------------------------------------------------------------------

    def _receive(self, receiving: _Receiving) -> None:
        begun_ns = time.monotonic_ns()
        error: LLMException | None = None
        nbytes = 0
        try:
            self._grant(receiving)
            self._offer(receiving)
            for grant in receiving.grants:
                nbytes += grant.wait().nbytes
        except LLMException as failure:
            error = failure
        except Exception as failure:  # the engine must not wait for a request that a bug has ended
            logger.exception("request %s is not received", receiving.order.req_id)
            error = LLMException(f"{type(failure).__name__}: {failure}")
        if error is None:
            self._tally.add(bytes_received=nbytes)
            if self._rank == 0:  # the engine adds its workers' counts up
                self._tally.add(receives=1, receive_seconds=(time.monotonic_ns() - begun_ns) / 1e9)
        self._end(receiving, error)

    def _grant(self, receiving: _Receiving) -> None:
        order, source = receiving.order, cluster_id_of(receiving.order.source, self._rank)
        with receiving.lock:
            for lane in range(len(self._layout.lanes)):
                span = self._span(order, lane)
                if span is None:
                    continue
                if receiving.is_cancelled:
                    raise GrantRevoked(f"request {order.req_id} was aborted")
                receiving.grants.append(
                    self._manager.grant_blocks(
                        self._caches[lane],
                        span.blocks,
                        request_id=order.transfer_id,
                        ttl_s=self._settings.transfer_timeout_s,
                        sources=(source,),
                        tensor_num_per_layer=self._layout.lanes[lane].per_layer,
                        verify=self._settings.verify,
                    )
                )

    def _span(self, order: Receive, lane: int) -> Any:
        group = self._layout.lanes[lane].group
        return next((span for span in order.spans if span.group == group), None)

    def _offer(self, receiving: _Receiving) -> None:
        order = receiving.order
        lanes = [lane for lane in range(len(self._layout.lanes)) if self._span(order, lane) is not None]
        grants = {
            lane: LaneGrant(self._span(order, lane).first, issued.grant)
            for lane, issued in zip(lanes, receiving.grants, strict=True)
        }
        offer = Offer(order.transfer_id, order.num_tokens, grants)
        if self._is_found(order.source, offer):
            return
        refusal = self._ask(order.source, OFFER, {"terms": self._terms, "offer": offer})
        if refusal is not None:
            raise LLMException(f"engine {order.source} will not send request {order.req_id}: {refusal}")

    def _is_found(self, engine_id: str, offer: Offer) -> bool:
        """Whether a producer that computes, or begins to, has found it in this endpoint's shared page."""
        peer = self._peers.get(engine_id)
        notice = self._manager.show(peer, text_of(ShownOffer(self._terms.digest, offer))) if peer is not None else None
        return notice is not None and notice.is_taken()

    def _ask(self, engine_id: str, question: str, arguments: dict[str, Any]) -> object:
        """The directory is asked only about an engine that is new, or another than it was."""
        deadline = Deadline.after(self._settings.ask_timeout_s)
        known = self._peers.get(engine_id)
        if known is not None:
            with suppress(PeerLost):
                return self._ask_peer(engine_id, known, question, arguments, deadline)
        peer = self._manager.find_endpoint(cluster_id_of(engine_id, self._rank), deadline)
        return self._ask_peer(engine_id, peer, question, arguments, deadline)

    def _ask_peer(
        self, engine_id: str, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline
    ) -> object:
        answer = self._manager.ask(peer, question, arguments, deadline)
        self._peers[engine_id] = peer
        return answer

    def _end(self, receiving: _Receiving, error: LLMException | None) -> None:
        """Drained, then reported, by whichever of its threads comes first."""
        with receiving.lock:
            if receiving.is_reported:
                return
            for grant in receiving.grants:
                self._drain(grant)
            receiving.is_reported = True
            order = receiving.order
            self._open.pop(order.req_id, None)
            self._expected.discard(order.transfer_id)
            if error is not None and not receiving.is_cancelled:
                self._tally.add(**{FAILED + type(error).__name__: 1})
                logger.warning("the KV of request %s did not come: %s", order.req_id, error)
            has_failed = error is not None and not receiving.is_cancelled  # who was aborted wants no second try
            blocks = tuple(block for span in order.spans for block in span.blocks) if has_failed else ()
            self._ended.append(Ended(order.req_id, has_failed, blocks))

    def _drain(self, grant: IssuedGrant) -> None:
        """However long a writer that lives is stopped inside: until it has left its blocks are not the engine's.

        An engine that ends uses none any more: then one try is made.
        """
        while not self._is_drained(grant) and not self._is_closing:
            pass

    def _is_drained(self, grant: IssuedGrant) -> bool:
        try:
            grant.revoke(DRAIN_S)
        except TransferTimeout as error:
            logger.warning("%s", error)
            return False
        return True

    def _decline(self, decline: Decline) -> None:
        """The producer's own deadline frees its blocks where it cannot be told."""
        with suppress(FabricError):
            self._ask(decline.source, DECLINE, {"transfer_ids": [decline.transfer_id]})

    def close(self) -> None:
        """Revokes what is open and waits for it; a writer that does not leave is waited for once, for DRAIN_S."""
        self._is_closing = True
        for req_id in list(self._open):
            self._cancel(req_id)
        self._threads.shutdown(wait=True)
