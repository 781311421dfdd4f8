"""hccl: NPU to NPU, on one host or between hosts, by HCCL's own paths (HCCS, RoCE).

    push   the initiator asks the responder to receive, and sends; both derive the same items from the same plan
    pull   it asks the responder to send, and receives
One HcclBatchSendRecv carries all pieces of a transfer; host memory on either side goes through that side's staging
buffers, one batch a window. A transfer is acknowledged by the responder's answer. An error breaks the communicator:
both ends throw it away, and the next transfer makes another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import (
    FabricError,
    LinkFailed,
    LLMException,
    PeerLost,
    StillMoving,
    TransferCancelled,
    TransferTimeout,
)
from ray_kvfabric.grant import GrantUse
from ray_kvfabric.memory.copy import RegionTable
from ray_kvfabric.plan import Plan
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import CacheInfo, EndpointInfo, Receipt, Route
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import (
    ANY_WITH_DEVICE,
    Answerer,
    Capabilities,
    Link,
    LocalEnd,
    Order,
    RemoteCache,
    Serving,
    Transport,
)
from ray_kvfabric.transport.delegation import Tally
from ray_kvfabric.transport.device_copy import await_turn, check_limits, pieces_of
from ray_kvfabric.transport.granted import check_undigested
from ray_kvfabric.transport.hccl_communicator import Communicator
from ray_kvfabric.transport.hccl_halves import Half, run_half
from ray_kvfabric.transport.hccl_library import RECEIVE, SEND
from ray_kvfabric.transport.hccl_pairs import (
    LEAVE,
    RESPONDER,
    Pair,
    PairTable,
    in_thread,
    open_pidfd,
)
from ray_kvfabric.transport.hccl_responder import TAKE_PART, Responder
from ray_kvfabric.transport.host_link import same_host_refusal
from ray_kvfabric.transport.questions import FAIL_GRANT, ask, tell_plan, told

LEAVE_S = 2.0
DOUBT_S = 1.0  # for the responder to say why the exchange broke


class HcclLink(Link):
    transport = "hccl"

    def __init__(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls, pairs: PairTable) -> None:
        super().__init__(local, peer)
        self._peers = peers
        self._pairs = pairs
        self._tally = Tally()
        self._turns = {False: threading.Lock(), True: threading.Lock()}  # by is_pull
        self._pidfd = open_pidfd(local.endpoint, peer)
        self._is_lost = False
        self._used: set[Pair] = set()  # of which the responder may have an end

    def open_cache(self, cache: CacheInfo, deadline: Deadline) -> RemoteCache:
        """Opens the communicator for pushes too, so that the first transfer need not."""
        if self._pairs.find(self._pair(is_pull=False)) is None:
            with self._turn(deadline, is_pull=False):
                self._used.add(self._pair(is_pull=False))
                self._communicator(self._pair(is_pull=False), deadline)
        return RemoteCache(cache, self.local.copier.RegionTable(cache.regions))

    def _pair(self, *, is_pull: bool) -> Pair:
        return Pair(self.local.endpoint.incarnation, self.peer.incarnation, is_pull)

    def push(self, source: RegionTable, target: RemoteCache, plan: Plan, order: Order) -> Receipt:
        check_undigested(order.use, self.transport)
        try:
            return self._exchange(source, target.table, target.info, plan, order, is_pull=False)
        except LLMException as error:
            if order.use is not None:
                with suppress(FabricError):
                    self.fail_grant(order.use, error.status_code, str(error), Deadline.after(LEAVE_S))
            raise

    def fail_grant(self, use: GrantUse, code: int, reason: str, deadline: Deadline) -> None:
        question = {**self._pair(is_pull=False)._asdict(), "use": use, "code": int(code), "reason": reason}
        ask(self._peers, self.peer, FAIL_GRANT, question, deadline)

    def pull(self, source: RemoteCache, target: RegionTable, plan: Plan, order: Order) -> Receipt:
        return self._exchange(source.table, target, source.info, plan, order, is_pull=True)

    def _exchange(
        self, source: RegionTable, target: RegionTable, there: CacheInfo, plan: Plan, order: Order, *, is_pull: bool
    ) -> Receipt:
        started_ns = time.monotonic_ns()
        pieces = pieces_of(self.local, source, target, plan, apart=True)
        half = Half(
            RECEIVE if is_pull else SEND, pieces, order, RESPONDER, self._window_nbytes(order.memory, there.memory)
        )
        question = {
            **self._pair(is_pull=is_pull)._asdict(),
            "transfer_id": order.transfer_id,
            "cache_id": there.cache_id,
            "generation": there.generation,
            "from_cluster_id": self.local.endpoint.cluster_id,
            "my_regions": told(target if is_pull else source),
            "your_regions": told(source if is_pull else target),
            **tell_plan(plan),
            "window_nbytes": half.window_nbytes,
            "started_ns": started_ns,
            "use": order.use,
        }
        if not self.is_alive:
            raise PeerLost(f"{self.peer} has died; nothing was moved")
        with self._turn(Deadline(order.deadline_ns), is_pull=is_pull):
            await_turn(self.local.devices, order, f"between endpoint {self.local.endpoint.cluster_id} and {self.peer}")
            receipt = self._run(half, question, is_pull)
        self._tally.count(receipt.nbytes, is_pull=is_pull)
        return receipt

    @contextmanager
    def _turn(self, deadline: Deadline, *, is_pull: bool) -> Iterator[None]:
        """One at a time makes the communicator, or uses it."""
        turn = self._turns[is_pull]
        if not turn.acquire(timeout=deadline.remaining_s):
            raise TransferTimeout(f"other transfers kept {self!r} busy for all the time there was")
        try:
            yield
        finally:
            turn.release()

    def _window_nbytes(self, here: str, there: str) -> int:
        if here == "host":
            return self.local.endpoint.staging_nbytes
        return self.peer.staging_nbytes if there == "host" else 0

    def _run(self, half: Half, question: dict[str, object], is_pull: bool) -> Receipt:
        deadline, pair = Deadline(half.order.deadline_ns), self._pair(is_pull=is_pull)
        self._used.add(pair)
        communicator = self._communicator(pair, deadline)
        question |= {"serial": communicator.serial, "timeout_s": deadline.remaining_s}
        asked = in_thread(lambda: ask(self._peers, self.peer, TAKE_PART, question, deadline))
        try:
            run_half(self.local, communicator, half, lambda: self._check(asked, half.order))
            answer: Any = asked.result(deadline.remaining_s)
        except BaseException as error:
            self._pairs.discard(pair, communicator)
            raise self._cause(asked, half.order, error) from None
        return Receipt(*answer)

    def _communicator(self, pair: Pair, deadline: Deadline) -> Communicator:
        try:
            return self._pairs.communicator(pair, self.peer, deadline)
        except PeerLost:
            self._is_lost = True
            raise

    def _check(self, asked: Future[Any], order: Order) -> None:
        """The responder has refused or died; or the transfer is to end."""
        if asked.done():
            asked.result()
        if not self.is_alive:
            raise PeerLost(f"{self.peer} died during transfer {order.transfer_id}")
        check_limits(order, f"to or from {self.peer}")

    def _cause(self, asked: Future[Any], order: Order, error: BaseException) -> BaseException:
        """What the responder said, where it has said something: it knows better why the exchange broke."""
        self._is_lost |= isinstance(error, PeerLost)
        if isinstance(error, StillMoving) or not isinstance(error, Exception):
            return error  # whatever became of the peer, nothing here may be freed
        if not isinstance(error, TransferTimeout | TransferCancelled):
            wait([asked], timeout=min(DOUBT_S, Deadline(order.deadline_ns).remaining_s))
        asked.cancel()
        said = asked.exception() if asked.done() and not asked.cancelled() else None
        if not self.is_alive:
            said = PeerLost(f"{self.peer} died during transfer {order.transfer_id}")
        if isinstance(said, StillMoving):  # there, not here
            return TransferTimeout(f"{self.peer}: {said}")
        if isinstance(said, PeerLost):
            self._is_lost = True
        if said is not None:
            return said
        if isinstance(error, FutureTimeout) and not isinstance(error, LLMException):
            return TransferTimeout(f"{self.peer} did not confirm in time")
        return error

    @property
    def nbytes_pushed(self) -> int:
        return self._tally.nbytes_pushed

    @property
    def nbytes_pulled(self) -> int:
        return self._tally.nbytes_pulled

    @property
    def num_landed(self) -> int:
        return self._tally.num_landed

    @property
    def device_nbytes(self) -> int:
        return self._pairs.nbytes_of([self._pair(is_pull=is_pull) for is_pull in self._turns])

    def peer_ended(self) -> None:
        self._is_lost = True

    @property
    def is_alive(self) -> bool:
        return not self._is_lost and not (self._pidfd >= 0 and shared_page.has_ended(self._pidfd))

    def close(self) -> None:
        for is_pull in self._turns:
            self._leave(self._pair(is_pull=is_pull))
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _leave(self, pair: Pair) -> None:
        """Both ends give their buffers back; a responder that cannot be told keeps its own until one of them ends."""
        communicator = self._pairs.find(pair)
        if communicator is not None:
            self._pairs.discard(pair, communicator)
        if self.is_alive and pair in self._used:
            with suppress(FabricError):
                ask(self._peers, self.peer, LEAVE, pair._asdict(), Deadline.after(LEAVE_S))


class HcclTransport(Transport):
    name = "hccl"
    capabilities = Capabilities(one_sided=False, same_host_only=False, foreign_memory=True, memories=ANY_WITH_DEVICE)

    def __init__(self) -> None:
        self._pairs: PairTable | None = None

    def missing(self) -> str | None:
        return None if find_spec("torch_npu") else "torch_npu is not installed"

    def refusal(self, local: EndpointInfo, route: Route) -> str | None:
        device = route.cache.device
        if device is not None and device.kind != "npu":
            return f"cache {route.cache.cache_id} lies on {device}, no NPU"
        if route.endpoint.pid == local.pid and same_host_refusal(local, route.endpoint) is None:
            return "both endpoints live in one process, and HCCL makes one rank of it"
        return None

    def open_link(self, local: LocalEnd, peer: EndpointInfo, peers: PeerCalls | None, deadline: Deadline) -> Link:
        if peers is None or self._pairs is None:
            raise LinkFailed(f"endpoint {local.endpoint.cluster_id} has no control connection to ask {peer}")
        return HcclLink(local, peer, peers, self._pairs)

    def serve(self, serving: Serving) -> dict[str, Answerer]:
        self._pairs = PairTable(serving.local, serving.peers, serving.local.hccl_buffer_mib)
        return {**self._pairs.answers(), TAKE_PART: Responder(serving, self._pairs).take_part}

    def sweep(self) -> None:
        if self._pairs is not None:
            self._pairs.sweep()

    def peer_ended(self, incarnation: int) -> None:
        if self._pairs is not None:
            self._pairs.peer_ended(incarnation)

    def describe(self) -> dict[str, object]:
        if self._pairs is None or not self._pairs.pairs():
            return {}
        return {
            "communicators": len(self._pairs.pairs()),
            "communicator_bytes": self._pairs.nbytes_of(self._pairs.pairs()),
        }

    def close(self) -> None:
        if self._pairs is not None:
            self._pairs.close()
