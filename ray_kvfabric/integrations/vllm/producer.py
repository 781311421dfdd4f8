"""Producer: the worker side of an engine that computes KV for others. A thin shell around SendBook.

engine's thread   follow, save, end_step, take_sent: a lock and a list; offers that known consumers show; a small push,
                  where nothing is ahead of it; and a wait for pushes that read blocks which the engine is about to use
                  again
push threads      push what the book says is next
answer threads    the consumers' other offers, and declines
warden            looks once a second after ended requests whose consumer grants nothing
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache_manager import CacheManager
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, NotLinked, PeerLost
from ray_kvfabric.integrations.vllm.layout import KVLayout, LayoutMismatch, Terms
from ray_kvfabric.integrations.vllm.offer_text import prepare, shown_offer
from ray_kvfabric.integrations.vllm.orders import Begin, Orders
from ray_kvfabric.integrations.vllm.params import transfer_id_of
from ray_kvfabric.integrations.vllm.pushes import Failure, Offer, Push
from ray_kvfabric.integrations.vllm.seat import cluster_id_of
from ray_kvfabric.integrations.vllm.send_book import SendBook
from ray_kvfabric.integrations.vllm.settings import ConnectorSettings
from ray_kvfabric.integrations.vllm.tally import FAILED, Tally
from ray_kvfabric.integrations.vllm.timeline import Timeline
from ray_kvfabric.transport.notices import Eye

logger = logging.getLogger(__name__)

OFFER, DECLINE, EXPECTS = "vllm.offer", "vllm.decline", "vllm.expects"
LOOK_S = 1.0
UNKNOWN_S = 4.0  # a consumer that has not heard of a request for so long after its prefill never will
TELL_S = 2.0
END_S = 10.0
Held = list[tuple[Begin, int]]  # ended requests that wait for their grants, and since when (monotonic ns)
SMALL_NBYTES = 256 << 10
SMALL_S = 1.0  # its link is open: it waits for nobody, but where its target has just died


class Producer:
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
        timeline: Timeline | None = None,
    ) -> None:
        self._manager = manager
        self._layout = layout
        self._caches = caches
        self._terms = terms
        self._rank = rank
        self._settings = settings
        self._tally = tally
        self._timeline = timeline
        self._is_on_device = any(cache.cache_desc.placement.name == "DEVICE" for cache in caches)
        self._small_nbytes = 0 if self._is_on_device else SMALL_NBYTES  # of a layer, that its thread pushes itself
        self._book = SendBook(layout, int(settings.transfer_timeout_s * 1e9))
        self._lock = threading.Lock()  # of the book
        self._has_work = threading.Condition(self._lock)
        self._has_ended = threading.Condition(self._lock)  # a push
        self._is_closed = threading.Event()
        self.has_step = False  # this step computes KV for somebody
        self._eye = Eye.AWAY
        prepare()
        self._unknown_since: dict[str, int] = {}  # by transfer_id
        manager.answers(OFFER, self._on_offer)
        manager.answers(DECLINE, self._on_decline)
        self._telling = ThreadPoolExecutor(4, thread_name_prefix="kvfabric-tell")
        jobs = [self._push_all] * settings.push_threads + [self._watch]
        self._threads = [threading.Thread(target=job, name="kvfabric-producer", daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    # ---- the engine's thread -----------------------------------------------------------------------

    def forget(self, req_ids: Sequence[str]) -> None:
        """Their blocks are about to be used for something else. Waits for a push that is reading them just now."""
        if not req_ids:
            return
        with self._lock:
            deadline = Deadline.after(self._settings.push_timeout_s)
            for req_id in [req_id for req_id in req_ids if self._book.drop(req_id)]:
                while self._book.is_reading(req_id) and self._has_ended.wait(deadline.remaining_s):
                    pass

    def follow(self, orders: Orders) -> None:
        """Waits, as `forget`, for a push that is reading blocks which are to be used for something else."""
        with self._lock:
            for gone in orders.gone:
                deadline = Deadline.after(self._settings.push_timeout_s)
                while self._book.lose(gone) and self._has_ended.wait(deadline.remaining_s):
                    pass
            for begin in orders.begin:
                self._book.begin(begin)
            for finish in orders.finish:
                self._book.finish(finish, time.monotonic_ns())
            self._book.start_step(orders.parts)
            self.has_step = self._book.has_step
        self._look_for_offers()
        with self._lock:
            self._wake()

    def save(self, layer: str) -> None:
        """The KV of this layer that the step computes is in the cache, or will be once the stream has come so far.

        Said twice of a layer it counts once. A layer without a cache, or without a name, waits for `end_step`.
        """
        if not self._book.is_unsaved(layer):
            return
        now_ns, mark = time.monotonic_ns(), self._mark()
        if self._timeline is not None:
            self._timeline.computed(layer, [transfer_id_of(key) for key in self._book.step_transfers], now_ns)
        if self._eye != Eye.AWAY:  # a request that begins is for `follow`
            self._look_for_offers()
        with self._lock:
            self._book.saved(layer, mark, now_ns)
            push = self._next_small(self._small_nbytes)
        self._push_small(push)

    def end_step(self) -> None:
        with self._lock:
            self._book.end_step(self._mark(), time.monotonic_ns())
        self._look_for_offers()  # after the layers have counted: it may be for the last time
        with self._lock:
            push = self._next_small(self._small_nbytes)
        self._push_small(push)
        self.has_step = False

    def _look_for_offers(self) -> None:
        """In the pages of consumers that are linked already, while the engine computes what they may have granted
        blocks for: no thread of this process has to wake for an offer.
        """
        with self._lock:
            has_ungranted, computes = self._book.has_ungranted, self._book.computes_ungranted
        eye = Eye.AWAY if not has_ungranted else Eye.LOOKS if computes else Eye.WAITS
        if eye != Eye.AWAY or self._eye != Eye.AWAY:
            for lookout in self._manager.lookouts():
                lookout.look(eye)
                for sequence, text in lookout.news() if lookout.has_news else ():
                    lookout.judge(sequence, self._takes(text))
        self._eye = eye

    def _takes(self, text: bytes) -> bool:
        """Never waits: what needs more than a look is asked by a call."""
        shown = shown_offer(text)
        if shown is None or shown.terms != self._terms.digest:
            return False
        if not all(self._manager.is_open_granted(granted.grant) for granted in shown.offer.grants.values()):
            return False
        with self._lock:
            return self._book.offered(shown.offer, time.monotonic_ns()) is None

    def _next_small(self, left: int) -> Push | None:
        """What the engine's thread pushes next, where no push is ahead of it; what is left is for the push threads."""
        if not self._book.is_ready:
            return None
        push = self._book.next_alone(left) if left > 0 else None
        if push is None:
            self._has_work.notify()
        return push

    def _push_small(self, push: Push | None) -> None:
        left = self._small_nbytes
        while push is not None:
            left -= push.nbytes
            self._push(push, SMALL_S)
            with self._lock:
                push = self._next_small(left)

    def _wake(self) -> None:
        """One push thread, where it finds something to do: each that wakes takes the interpreter from the engine."""
        if self._book.is_ready:
            self._has_work.notify()

    def _mark(self) -> object:
        return self._manager.mark(self._caches[0]) if self._is_on_device else None

    @property
    def has_sent(self) -> bool:
        return self._book.has_sent

    def take_sent(self) -> list[str]:
        with self._lock:
            return self._book.take_sent()

    @property
    def num_open(self) -> int:
        return self._book.num_open

    # ---- push threads ------------------------------------------------------------------------------

    def _push_all(self) -> None:
        while not self._is_closed.is_set():
            with self._lock:
                push = self._book.next_push()
                failures = self._book.take_failures()
                if push is None and not failures:
                    self._has_work.wait(LOOK_S)
                    continue
                self._wake()
            self._tell_all(failures)
            if push is not None:
                self._push(push, self._settings.push_timeout_s)

    def _push(self, push: Push, timeout_s: float) -> None:
        failure = None
        piece = push.piece
        per_layer = self._layout.lanes[piece.lane].per_layer
        layers = range(piece.first_layer, piece.stop_layer)
        try:
            receipt = self._manager.push_granted(
                push.grant, self._caches[piece.lane], piece.blocks, layers, layers, per_layer,
                at=push.at, seal=piece.seals, timeout_s=timeout_s, after=piece.mark,
            )  # fmt: skip
        except FabricError as error:
            failure = f"{type(error).__name__}: {error}"
            self._tally.add(**{FAILED + type(error).__name__: 1})
            logger.info("a push of request %s failed: %s", push.req_id, failure)
        except Exception as error:  # the engine must not wait for a push that a bug has ended
            failure = f"{type(error).__name__}: {error}"
            logger.exception("a push of request %s failed", push.req_id)
        with self._lock:
            is_hidden = self._book.ended(push, failure)
            self._has_ended.notify_all()
        if failure is None:
            hidden = receipt.nbytes if is_hidden else 0
            parked_s = (receipt.started_ns - piece.made_ns) / 1e9
            self._tally.add(pushes=1, bytes_pushed=receipt.nbytes, bytes_hidden=hidden, parked_seconds=parked_s)
            if self._timeline is not None:
                names = self._layout.lanes[piece.lane].layers[piece.first_layer : piece.stop_layer]
                self._timeline.pushed(transfer_id_of(push.grant.request_id), names, receipt)

    def _tell_all(self, failures: list[Failure]) -> None:
        """Aside: a receiver that does not answer must not keep pushes to others waiting."""
        for failure in failures:
            with suppress(RuntimeError):  # closed: the endpoint leaves, which says it too
                self._telling.submit(self._tell, failure)

    def _tell(self, failure: Failure) -> None:
        try:
            self._manager.fail_granted(failure.grant, failure.reason, timeout_s=TELL_S)
        except FabricError as error:
            logger.debug("%s could not be told that %s: %s", failure.grant, failure.reason, error)

    # ---- the other side ----------------------------------------------------------------------------

    def _on_offer(self, arguments: dict[str, Any]) -> str | None:
        """Why the offer is of no use, or None."""
        theirs: Terms = arguments["terms"]
        offer: Offer = arguments["offer"]
        try:
            self._terms.check(theirs)
        except LayoutMismatch as error:
            return str(error)
        for granted in offer.grants.values():
            self._manager.open_granted(granted.grant, self._settings.ask_timeout_s)
        with self._lock:
            refusal = self._book.offered(offer, time.monotonic_ns())
            self._wake()
        return refusal

    def _on_decline(self, arguments: dict[str, Any]) -> bool:
        with self._lock:
            for transfer_id in arguments["transfer_ids"]:
                self._book.declined(transfer_id)
            self._wake()
        return True

    # ---- warden ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._is_closed.wait(LOOK_S):
            with self._lock:
                self._book.forget_early(time.monotonic_ns())
                self._wake()
                held = self._book.held()
            hopeless = self._why_hopeless(held) if held else {}
            keys = {begin.transfer_id for begin, _ in held}
            self._unknown_since = {key: since for key, since in self._unknown_since.items() if key in keys}
            for req_id, reason in hopeless.items():
                self._tally.add(**{FAILED + "unclaimed": 1})
                logger.info("request %s: %s", req_id, reason)
                with self._lock:
                    self._book.give_up(req_id, reason)

    def _why_hopeless(self, held: Held) -> dict[str, str]:
        """By req_id. Each consumer is asked once about all that waits for it."""
        now_ns = time.monotonic_ns()
        hopeless = {
            begin.req_id: f"nobody has granted blocks for {self._settings.grant_wait_s:g} s after its prefill had ended"
            for begin, since_ns in held
            if now_ns - since_ns > self._settings.grant_wait_s * 1e9
        }
        for target in {begin.target for begin, _ in held if begin.target is not None}:
            mine = [begin for begin, _ in held if begin.target == target and begin.req_id not in hopeless]
            hopeless.update(self._unwanted(target, mine, now_ns))
        return hopeless

    def _unwanted(self, target: str, begun: list[Begin], now_ns: int) -> dict[str, str]:
        try:
            deadline = Deadline.after(TELL_S)
            peer = self._manager.find_endpoint(cluster_id_of(target, self._rank), deadline)
            keys = [begin.transfer_id for begin in begun]
            expected = cast("set[str]", self._manager.ask(peer, EXPECTS, {"transfer_ids": keys}, deadline))
        except (NotLinked, PeerLost):
            return {begin.req_id: f"engine {target} is gone" for begin in begun}
        except FabricError:
            return {}  # it does not answer: the deadline decides
        for key in keys:
            if key in expected:
                self._unknown_since.pop(key, None)
            else:
                self._unknown_since.setdefault(key, now_ns)
        reason = f"engine {target} does not wait for it"
        since = {begin.req_id: self._unknown_since.get(begin.transfer_id, now_ns) for begin in begun}
        return {req_id: reason for req_id, since_ns in since.items() if now_ns - since_ns > UNKNOWN_S * 1e9}

    def close(self) -> None:
        """Idempotent; pushes that run are waited for."""
        self._is_closed.set()
        with self._lock:
            self._has_work.notify_all()
        for thread in self._threads:
            thread.join(END_S)
        self._telling.shutdown(wait=False, cancel_futures=True)
        if self._timeline is not None:
            self._timeline.close()
