"""Communicators: for each initiator and responder one of two ranks, and one more if the initiator pulls too.

    rank 0 is the initiator, rank 1 the responder. One initiator means one order of operations at both ends, and
    opposite transfers never wait for each other.

Making one takes the turn of both processes, since HCCL makes one at a time in a process. The lower process leads: it
takes its own turn, then lets the other take its own and begin, then begins itself. So turns are taken in one order
everywhere, and nobody waits in a circle.

    initiator is lower     lead
    initiator is higher    ask the responder to lead, and join when it asks
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, NamedTuple

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LinkFailed, TransferTimeout
from ray_kvfabric.ports import PeerCalls
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.transport import _shared_page as shared_page
from ray_kvfabric.transport.base import Answerer, LocalEnd
from ray_kvfabric.transport.hccl_communicator import Communicator
from ray_kvfabric.transport.hccl_library import load_hccl
from ray_kvfabric.transport.host_link import pidfd_of, same_host_refusal
from ray_kvfabric.transport.questions import ask

LEAD, JOIN, LEAVE = "hccl_lead", "hccl_join", "hccl_leave"
INITIATOR, RESPONDER = 0, 1
_turn = threading.Lock()  # HCCL's rule: one communicator is made at a time in a process


class Pair(NamedTuple):
    """Incarnations of both ends; `is_pull` says whose bytes they are: the responder's, or the initiator's."""

    initiator: int
    responder: int
    is_pull: bool


class PairTable:
    """The communicators of one endpoint. Threads may share it."""

    def __init__(self, local: LocalEnd, peers: PeerCalls | None, buffer_mib: int) -> None:
        self._local = local
        self._peers = peers
        self._buffer_mib = buffer_mib
        self._lock = threading.Lock()
        self._made: dict[Pair, Communicator] = {}
        self._joining: dict[Pair, Future[Any]] = {}  # begun for a peer that leads
        self._processes: dict[int, int] = {}  # incarnation of a peer on this host -> pidfd
        self._is_closed = False

    def answers(self) -> dict[str, Answerer]:
        return {LEAD: self._lead_for_peer, JOIN: self._join_peer, LEAVE: self._let_go}

    def communicator(self, pair: Pair, peer: EndpointInfo, deadline: Deadline) -> Communicator:
        """As initiator. Raises LinkFailed, PeerLost, TransferTimeout."""
        found = self.find(pair)
        if found is not None:
            return found
        serial = secrets.randbits(62)
        if _order(self._local.endpoint) < _order(peer):
            return self._lead(pair, serial, INITIATOR, peer, deadline)
        question = {**pair._asdict(), "serial": serial, "them": self._local.endpoint, "timeout_s": deadline.remaining_s}
        ask(self._peers, peer, LEAD, question, deadline)
        return self.await_serial(pair, serial, deadline)

    def find(self, pair: Pair) -> Communicator | None:
        with self._lock:
            return self._made.get(pair)

    def await_serial(self, pair: Pair, serial: int, deadline: Deadline) -> Communicator:
        """One that both ends have agreed on; it may still be on its way here. Raises LinkFailed, TransferTimeout."""
        with self._lock:
            joining = self._joining.get(pair)
        if joining is not None:
            wait([joining], timeout=deadline.remaining_s)
        found = self.find(pair)
        if found is None or found.serial != serial:
            raise LinkFailed(f"endpoint {self._local.endpoint.cluster_id} has no such communicator any more")
        return found

    def discard(self, pair: Pair, communicator: Communicator) -> None:
        """After an error: the next use makes another."""
        with self._lock:
            if self._made.get(pair) is communicator:
                del self._made[pair]
        communicator.close()

    def sweep(self) -> None:
        """Closes communicators with processes of this host that died."""
        with self._lock:
            dead = {each for each, pidfd in self._processes.items() if shared_page.has_ended(pidfd)}
            for incarnation in dead:
                os.close(self._processes.pop(incarnation))
        self._close({pair for pair in self.pairs() if dead & set(pair[:2])})

    def peer_ended(self, incarnation: int) -> None:
        """Of a process of another host nothing but this tells."""
        with self._lock:
            mine = {pair for pair in self._made if incarnation in (pair.initiator, pair.responder)}
        self._close(mine)

    def pairs(self) -> list[Pair]:
        with self._lock:
            return [*self._made]

    def nbytes_of(self, pairs: list[Pair]) -> int:
        """Device memory that the communicators of these pairs take, as far as they are made: two buffers each."""
        with self._lock:
            return 2 * self._buffer_mib * 2**20 * sum(pair in self._made for pair in pairs)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            pidfds, self._processes = [*self._processes.values()], {}
        self._close(set(self.pairs()))
        for pidfd in pidfds:
            os.close(pidfd)

    def _close(self, pairs: set[Pair]) -> None:
        with self._lock:
            dropped = [self._made.pop(pair) for pair in pairs if pair in self._made]
        for communicator in dropped:
            communicator.close()

    # ---- making ----------------------------------------------------------------------------------

    def _lead(self, pair: Pair, serial: int, rank: int, peer: EndpointInfo, deadline: Deadline) -> Communicator:
        """Its own join begins once the peer's has: a peer that is busy or dead costs nobody the turn."""
        device = self._local.devices.open(f"a communicator with {peer}")
        with _own_turn(deadline) as keep_turn:
            with device.current():
                root_info = load_hccl().root_info()
            question = {
                **pair._asdict(), "serial": serial, "root_info": root_info, "them": self._local.endpoint,
                "timeout_s": deadline.remaining_s,
            }  # fmt: skip
            ask(self._peers, peer, JOIN, question, deadline)
            joined = self._start_join(root_info, serial, rank, keep_turn())
        wait([joined], timeout=deadline.remaining_s)
        if not joined.done():
            joined.cancel()
            raise TransferTimeout(f"the communicator with {peer} was not made in time")
        return self._keep(pair, peer, joined.result())

    def _lead_for_peer(self, arguments: dict[str, Any]) -> bool:
        pair, serial, peer = _named(arguments), arguments["serial"], arguments["them"]
        self._lead(pair, serial, RESPONDER, peer, Deadline.after(arguments["timeout_s"]))
        return True

    def _join_peer(self, arguments: dict[str, Any]) -> bool:
        """Returns once the join has begun; HCCL itself lets both ends end it together."""
        pair, deadline = _named(arguments), Deadline.after(arguments["timeout_s"])
        rank = INITIATOR if pair.initiator == self._local.endpoint.incarnation else RESPONDER
        with _own_turn(deadline) as keep_turn:
            joined = self._start_join(arguments["root_info"], arguments["serial"], rank, keep_turn())
        kept = in_thread(lambda: self._keep(pair, arguments["them"], joined.result()))
        with self._lock:
            self._joining[pair] = kept
        kept.add_done_callback(lambda _: self._end_joining(pair, kept))
        return True

    def _end_joining(self, pair: Pair, kept: Future[Any]) -> None:
        with self._lock:
            if self._joining.get(pair) is kept:
                del self._joining[pair]

    def _start_join(self, root_info: bytes, serial: int, rank: int, give_turn_back: Callable[[], None]) -> Future[Any]:
        """In a thread of its own: the call cannot be bounded, the wait for it can. Nobody's late result is closed."""
        device = self._local.devices.open("a communicator")

        def join() -> Communicator:
            try:
                with device.current():
                    return Communicator(device, load_hccl().join(root_info, rank, self._buffer_mib), serial)
            finally:
                give_turn_back()

        return in_thread(join, unwanted=Communicator.close)

    def _keep(self, pair: Pair, peer: EndpointInfo, communicator: Communicator) -> Communicator:
        """Raises PeerLost for one that died meanwhile, LinkFailed when this endpoint was closed."""
        try:
            older = self._enter(pair, peer, communicator)
        except BaseException:
            communicator.close()
            raise
        if older is not None:
            older.close()
        return communicator

    def _enter(self, pair: Pair, peer: EndpointInfo, communicator: Communicator) -> Communicator | None:
        pidfd = open_pidfd(self._local.endpoint, peer)
        with self._lock:
            if pidfd >= 0 and (self._is_closed or peer.incarnation in self._processes):
                os.close(pidfd)
            elif pidfd >= 0:
                self._processes[peer.incarnation] = pidfd
            if self._is_closed:
                raise LinkFailed(f"endpoint {self._local.endpoint.cluster_id} is closed")
            older, self._made[pair] = self._made.get(pair), communicator
            return older

    def _let_go(self, arguments: dict[str, Any]) -> bool:
        """The initiator has closed its end."""
        self._close({_named(arguments)})
        return True


def _order(endpoint: EndpointInfo) -> tuple[object, ...]:
    """Turns are taken in this order: processes', since each has one turn; endpoints of one process share it."""
    return endpoint.host, endpoint.pid, endpoint.incarnation


def open_pidfd(local: EndpointInfo, peer: EndpointInfo) -> int:
    """-1 for a process of another host, which only its silence betrays. Raises PeerLost."""
    return -1 if same_host_refusal(local, peer) is not None else pidfd_of(peer.pid, str(peer))


@contextmanager
def _own_turn(deadline: Deadline) -> Iterator[Callable[[], Callable[[], None]]]:
    """The process's turn. Whoever takes what is given inside gives the turn back itself, by calling that."""
    if not _turn.acquire(timeout=deadline.remaining_s):
        raise TransferTimeout("HCCL makes one communicator at a time, and others took all the time there was")
    is_kept = False

    def keep() -> Callable[[], None]:
        nonlocal is_kept
        is_kept = True
        return _turn.release

    try:
        yield keep
    finally:
        if not is_kept:
            _turn.release()


def in_thread(work: Callable[[], Any], unwanted: Callable[[Any], object] | None = None) -> Future[Any]:
    """Work in a thread of its own; `unwanted` gets a result that came after the future was cancelled."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        if future.set_running_or_notify_cancel():
            future.set_result(result)
        elif unwanted is not None:
            unwanted(result)

    threading.Thread(target=run, name="kvfabric-hccl", daemon=True).start()
    return future


def _named(arguments: dict[str, Any]) -> Pair:
    return Pair(arguments["initiator"], arguments["responder"], arguments["is_pull"])
