"""BlockOffer: blocks that their owner is ready to grant to whoever asks; control/offers.py decides who gets which.

    asker    request_grant -> asks the owner -> a grant at once, or it waits in the owner's queue and sleeps
    owner    blocks come back -> the next in the queue is granted -> the asker is told by a question to it
    lost     an asker that was told nothing asks again now and then; the same request is the same grant
Landed blocks are the owner's until it gives them back; those of a grant that failed are free again by themselves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.control.ageing_queue import Priority
from ray_kvfabric.control.directory import Mark
from ray_kvfabric.control.offers import BlockRequest, Command, Granted, Offers, Refused
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.issued import IssuedGrant
from ray_kvfabric.errors import CreditExhausted, LLMException, TransferTimeout
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.transport import _shared_page as shared_page

LOOK_NS = 50_000_000  # `received` looks this often for writers that died; a seal wakes it at once

Give = Callable[[Cache, tuple[int, ...], str, float, int], IssuedGrant]  # blocks, request, ttl_s, the writer
Tell = Callable[[EndpointInfo, str, Grant], None]  # an asker its grant, in time


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked, and how it calls its request."""

    endpoint: EndpointInfo
    request_id: str

    @property
    def mark(self) -> Mark:
        return self.endpoint.cluster_id, self.endpoint.incarnation


class _Done(NamedTuple):
    """What came of commands: new grants, and by their tickets the requests that came to nothing."""

    made: list[IssuedGrant]
    refusals: dict[str, LLMException]


class Landed(NamedTuple):
    """What a writer brought: `blocks` are the owner's until `BlockOffer.give_back(ticket)`."""

    ticket: str
    receipt: GrantReceipt
    blocks: tuple[int, ...]


class BlockOffer:
    """Threads share it. Made by `CacheManager.offer_blocks`."""

    def __init__(
        self,
        cache: Cache,
        page: shared_page.SharedPage,
        ttl_s: float,
        limit: int,
        ageing_s: float,
        give: Give,
        tell: Tell,
    ) -> None:
        self.cache = cache
        self._page = page
        self._ttl_s = ttl_s
        self._give = give
        self._tell = tell
        self._lock = threading.RLock()
        self._offers = Offers(limit, ageing_s)
        self._askers: dict[str, Asker] = {}
        self._reserved: dict[str, Granted] = {}  # for which the endpoint had no credit yet
        self._issued: dict[str, IssuedGrant] = {}  # by the request's ticket
        self._answered: set[str] = set()  # of these, those whose asker had its grant as the answer to its question
        self._landed: deque[Landed] = deque()
        self._closed_for: LLMException | None = None

    # ---- the owner ---------------------------------------------------------------------------------

    def add(self, blocks: list[int] | tuple[int, ...]) -> None:
        """More blocks to grant, such as those that came by other ways and are free now."""
        with self._lock:
            done = self._carry_out(self._offers.offer(blocks, time.monotonic()))
        self._tell_all(done.made)

    def received(self, timeout_s: float) -> Landed:
        """Sleeps until the next grant of this offer has landed. Raises TransferTimeout after `timeout_s`."""
        deadline = Deadline.after(timeout_s)
        while True:
            bell = self._page.bell
            self._conclude()
            with self._lock:
                if self._landed:
                    return self._landed.popleft()
            if deadline.passed:
                raise TransferTimeout(
                    f"nothing has landed in the offered blocks of cache {self.cache.cache_id} in {timeout_s:g} s"
                )
            self._page.sleep(bell, min(deadline.at_ns, time.monotonic_ns() + LOOK_NS))

    def give_back(self, ticket: str) -> None:
        """Landed blocks are free for the next who asks."""
        with self._lock:
            done = self._carry_out(self._offers.give_back(ticket, time.monotonic()))
        self._tell_all(done.made)

    def keep(self, ticket: str) -> tuple[int, ...]:
        """Landed blocks are the owner's own now; `add` offers them again."""
        with self._lock:
            return self._offers.keep(ticket)

    def close(self, reason: LLMException) -> None:
        """Refuses who asks from now on, and who waits; what was granted goes on."""
        with self._lock:
            self._closed_for = reason
            self._forget_askers(self._askers)

    # ---- askers ------------------------------------------------------------------------------------

    def ask(self, ticket: str, asker: Asker, num_blocks: int, priority: Priority, timeout_s: float) -> Grant | None:
        """The grant, or None: it waits. The same ticket is the same request. Raises CreditExhausted, GrantReplayed."""
        with self._lock:
            if self._closed_for is not None and ticket not in self._issued:
                raise copy(self._closed_for)
            now = time.monotonic()  # under the lock: the queue's time never goes back
            self._askers.setdefault(ticket, asker)
            request = BlockRequest(ticket, asker.mark, num_blocks, priority, now + timeout_s)
            done = self._carry_out(self._offers.request(request, now))
            issued = self._issued.get(ticket)
            if issued is not None:
                self._answered.add(ticket)
        self._tell_all([each for each in done.made if each is not issued])
        if ticket in done.refusals:
            raise done.refusals[ticket]
        return None if issued is None else issued.grant

    def cancel(self, ticket: str) -> None:
        """Its asker gave up, whether it was granted meanwhile or not."""
        with self._lock:
            done = self._carry_out(self._cancelled(ticket))
            issued = self._issued.get(ticket)
            self._askers.pop(ticket, None)
        self._tell_all(done.made)
        if issued is not None:
            issued.revoke()

    def not_awaited(self, ticket: str) -> None:
        """Its asker was told its grant and waits no longer: it gave up, unless it had it as an answer before."""
        with self._lock:
            issued = None if ticket in self._answered else self._issued.get(ticket)
        if issued is not None:
            issued.revoke()

    def drop(self, cluster_id: int, incarnation: int) -> None:
        """An asker has died; its grants are ended by who watches over grants."""
        mark = (cluster_id, incarnation)
        with self._lock:
            self._forget_askers([ticket for ticket, asker in self._askers.items() if asker.mark == mark])
            done = self._carry_out(self._offers.drop(mark, time.monotonic()))
        self._tell_all(done.made)

    def tick(self) -> None:
        with self._lock:
            done = self._carry_out([*self._offers.tick(time.monotonic()), *self._reserved.values()])
        self._tell_all(done.made)

    # ---- acting ------------------------------------------------------------------------------------

    def _carry_out(self, commands: list[Command]) -> _Done:
        """Under the lock. Blocks that cannot be granted are free again, and may serve the next."""
        done, left = _Done([], {}), deque(commands)
        while left:
            command = left.popleft()
            ticket = command.request.request_id
            if not isinstance(command, Granted):
                self._askers.pop(ticket, None)
                if isinstance(command, Refused):
                    done.refusals[ticket] = command.error
            elif ticket not in self._issued:
                self._reserved.pop(ticket, None)
                self._issue(command, done)
                if ticket not in self._issued and ticket not in self._reserved:
                    left += self._offers.give_back(ticket, time.monotonic())
        return done

    def _issue(self, granted: Granted, done: _Done) -> None:
        """Nothing for one whom nobody knows any more, or who is late, and where the endpoint gives no more grants.

        Where it gives none for the moment the blocks are kept for the request, and the next tick tries again.
        """
        ticket = granted.request.request_id
        asker = self._askers.get(ticket)
        if asker is None or granted.request.until <= time.monotonic():
            return
        try:
            issued = self._give(self.cache, granted.blocks, asker.request_id, self._ttl_s, asker.endpoint.cluster_id)
        except CreditExhausted:
            self._reserved[ticket] = granted
            return
        except LLMException as error:
            del self._askers[ticket]
            done.refusals[ticket] = error
            return
        self._issued[ticket] = issued
        issued.on_end = lambda: self._ended(ticket, issued)
        if issued.outcome is None:
            done.made.append(issued)
        else:  # its cache was freed, or its asker died, before that
            self._ended(ticket, issued)

    def _cancelled(self, ticket: str) -> list[Command]:
        """Of a request that waits, or whose blocks are kept for it."""
        if self._reserved.pop(ticket, None) is not None:
            return self._offers.give_back(ticket, time.monotonic())
        return self._offers.cancel(ticket, time.monotonic())

    def _forget_askers(self, tickets: Iterable[str]) -> None:
        """Those that wait: they are granted nothing any more."""
        for ticket in [each for each in tickets if each not in self._issued]:
            self._askers.pop(ticket, None)

    def _ended(self, ticket: str, issued: IssuedGrant) -> None:
        """Its blocks are the owner's again; a second time nothing happens."""
        with self._lock:
            if self._issued.pop(ticket, None) is None:
                return
            self._askers.pop(ticket, None)
            self._answered.discard(ticket)
            if isinstance(issued.outcome, GrantReceipt):
                self._landed.append(Landed(ticket, issued.outcome, issued.grant.blocks))
                return
        self.give_back(ticket)

    def _conclude(self) -> None:
        """Ends the grants that are complete."""
        with self._lock:
            ready = [issued for issued in self._issued.values() if issued.done()]
        for issued in ready:
            with suppress(LLMException):  # it comes back by `_ended`; in quarantine the watch looks at it again
                issued.wait(0)

    def _tell_all(self, issued: list[IssuedGrant]) -> None:
        """Without the lock: it is a question to each asker, put by another thread."""
        for each in issued:
            with self._lock:
                found = [(ticket, self._askers.get(ticket)) for ticket, mine in self._issued.items() if mine is each]
            for ticket, asker in found:
                if asker is not None:
                    self._tell(asker.endpoint, ticket, each.grant)

    def describe(self) -> dict[str, int]:
        with self._lock:
            return {
                "cache_id": self.cache.cache_id,
                "free": self._offers.free,
                "granted": self._offers.granted,
                "waiting": self._offers.waiting,
                "landed": len(self._landed),
            }
