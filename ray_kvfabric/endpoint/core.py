"""EndpointCore: an endpoint among others. It announces itself, answers peers, notices their end, and ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.cache_entry import CacheEntry
from ray_kvfabric.endpoint.identity import ANY_TRACER, allow_tracer
from ray_kvfabric.endpoint.links import Admit, as_named, nothing_to_do
from ray_kvfabric.endpoint.mover import tell_nobody
from ray_kvfabric.endpoint.parts import NOTE_PULL, EndpointParts
from ray_kvfabric.endpoint.status import describe_endpoint
from ray_kvfabric.errors import FabricError, NotLinked, ParamInvalid
from ray_kvfabric.route import EndpointInfo
from ray_kvfabric.transport.base import Answerer

logger = logging.getLogger(__name__)

FOLLOWER_S = 2.0  # for the directory to say who has followed a peer that ended


class EndpointCore(EndpointParts):
    """What all verbs of one endpoint stand on."""

    def _begin(self) -> None:
        """Who was refused, or does not know whether it was taken, leaves nothing behind."""
        try:
            self._directory.announce(self.endpoint, self._control_deadline())
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                self.close()
            raise

    # ---- the fabric --------------------------------------------------------------------------------

    def listen(self, alias: str) -> None:
        """Lets others find this endpoint under "ip:port" also; "" ends that. No socket is opened.

        Raises AliasTaken when another live endpoint has the alias; then the old one stays.
        """
        self._check_open()
        before = self._identity.endpoint
        self._identity.rename(alias)
        try:
            self._directory.announce(self.endpoint, self._control_deadline())
        except BaseException:
            self._identity.rename(before.alias)
            raise

    def drop_dead_links(self) -> None:
        """Lets go of the memory of peers that died or freed it; who keeps an endpoint in the fabric calls it often."""
        self._links.sweep()
        self._links.tidy()

    def _look_after(self) -> None:
        """What the watch does: dead writers and peers, grants whose time is over."""
        self._identity.page.sweep_links()
        self._links.sweep()
        self._grant_watch.tick()

    def _refuse_new(self, reason: str) -> None:
        """No grant is given from now on."""
        self._grants.refuse_new(reason)

    def _forget_cache(self, cache_id: int) -> None:
        """The cache is fenced off: its grants end, and who writes under one stops."""
        self._grants.revoke_cache(cache_id, self._control_deadline())

    def peers_in_use(self) -> tuple[tuple[int, int], ...]:
        """(cluster_id, incarnation) of the peers that this endpoint has links to, or whose grants it waits for."""
        linked = {(link.peer.cluster_id, link.peer.incarnation) for link in self._links.links()}
        return tuple(linked | self._grant_watch.writers())

    def peer_ended(self, cluster_id: int, incarnation: int, reason: str) -> None:
        """This peer has died or left: its links, what it was granted and what it has mapped are given back at once.

        Idempotent. May wait for transfers that are just failing.
        """
        self._grant_watch.peer_ended(
            cluster_id, incarnation, reason, lambda: self._is_followed(cluster_id, incarnation)
        )
        self._links.drop_peer(incarnation)
        self._identity.page.sweep_links()

    def _is_followed(self, cluster_id: int, incarnation: int) -> bool:
        """Whether another incarnation of the cluster_id is known to live."""
        try:
            return self._directory.endpoint(cluster_id, Deadline.after(FOLLOWER_S)).incarnation != incarnation
        except FabricError:
            return False

    def forget_ways(self, cluster_id: int) -> None:
        """The next transfer to this endpoint asks the directory again; what is under way goes on."""
        self._links.forget_cluster(cluster_id)

    def gate_links(self, admit: Admit) -> None:
        """`admit(cluster_id)` decides whom keys may reach and raises NotLinked else; by default everybody.

        It is asked when a way is opened: `forget_ways` makes a later refusal count.
        """
        self._links.gate(admit)

    def find_endpoint(self, cluster_id: int, deadline: Deadline) -> EndpointInfo:
        """Who carries `cluster_id`. Raises NotLinked, TransferTimeout."""
        return self._directory.endpoint(cluster_id, deadline)

    def find_alias(self, alias: str, deadline: Deadline) -> EndpointInfo:
        """Who listens under "ip:port". Raises NotLinked, TransferTimeout."""
        return self._directory.endpoint_at(alias, deadline)

    # ---- questions of peers ------------------------------------------------------------------------

    def answers(self, question: str, answerer: Answerer) -> None:
        """Lets whoever embeds this endpoint answer a question of its own. Answers must be idempotent."""
        self._answerers[question] = answerer

    def shows(self, name: str, describe: Callable[[], object]) -> None:
        """Lets whoever embeds this endpoint say something of its own in `status`, ready for JSON."""
        self._shown[name] = describe

    def answer(self, question: str, arguments: dict[str, Any]) -> object:
        """What a peer's `PeerCalls.ask` comes to."""
        if question not in self._answerers:
            raise ParamInvalid(f"endpoint {self.endpoint.cluster_id} does not know the question {question!r}")
        return self._answerers[question](arguments)

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """The answer of another endpoint, or of this one. Raises what it raises, PeerLost, TransferTimeout."""
        if peer.incarnation == self.endpoint.incarnation:
            return self.answer(question, arguments)
        if self._peers is None:
            raise NotLinked(f"endpoint {self.endpoint.cluster_id} has no control connection to ask {peer}")
        return self._peers.ask(peer, question, arguments, deadline)

    def _admit_writer(self, arguments: dict[str, Any]) -> bool:
        self.counters.warn_once(
            "admitted_any_tracer",
            f"process {arguments['pid']} may not trace this process yet: every process of this user is now allowed to",
        )
        allow_tracer(ANY_TRACER)
        return True

    def _tell_owner(self, owner: EndpointInfo, cache_id: int, row: int, tensors: range) -> None:
        """The bytes have landed already: an owner that cannot be told keeps its key, and the log says so."""
        arguments = {"cache_id": cache_id, "row": row, "first": tensors.start, "stop": tensors.stop}
        try:
            self.ask(owner, NOTE_PULL, arguments, self._control_deadline())
        except FabricError as error:
            self.counters.add("pulls_not_told")
            logger.warning("%s was not told that row %d of its cache %d was pulled: %s", owner, row, cache_id, error)

    # ---- the end -----------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Endpoint, caches, links, transfers, grants, memory and counters, ready for JSON."""
        infos = [entry.info for entry in self._caches.all()]
        described = describe_endpoint(
            self.endpoint, infos, self._links, self._transfers, self._pools, self._devices, self._grants, self._gate
        )
        return {**described, "uses": {name: describe() for name, describe in self._shown.items()}}

    def close(self) -> None:
        """Leaves the fabric: transfers are stopped, links closed, caches fenced off and freed. Idempotent.

        Every step is taken, whatever became of those before it; then the last error is raised, those before it in
        its context: TransferTimeout when a live peer does not leave a cache, or another thread does not come back from
        opening a link.
        """
        if self._is_closed:
            return
        self._is_closed = self._links.is_ending = True
        self._refuse_new(f"{self.endpoint} is closed: it gives no grants any more")
        with ExitStack() as steps:  # the last one first
            steps.callback(self._cut_cycles)
            steps.callback(self._identity.close)
            steps.callback(self._devices.close)
            steps.callback(self._links.close_transports)
            for pool in self._pools.values():
                steps.callback(pool.close)
            steps.callback(self._staging.close)
            for entry in self._caches.all():
                steps.callback(self._end_cache, entry)
            steps.callback(self._grants.close, self._control_deadline())
            steps.callback(self._watch.stop)
            steps.callback(self._links.close, self._control_deadline())
            steps.callback(self._directory.leave, self.endpoint, self._control_deadline())
            steps.callback(self._transfers.close)

    def _end_cache(self, entry: CacheEntry) -> None:
        """One whose granted blocks are in quarantine stays: a writer may be inside. `grants.close` has said so."""
        if self._grants.holds_cache(entry.info.cache_id):
            return
        self._caches.remove(entry.info.cache_id, self._control_deadline())
        entry.end_cache()

    def _cut_cycles(self) -> None:
        """What refers back to this object would keep its memory mapped until the garbage collector comes."""
        self._answerers.clear()
        self._shown.clear()
        self._mover.note_pull = tell_nobody
        self._links.gate(as_named)
        self._links.on_link = nothing_to_do

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<CacheManager {self.endpoint.cluster_id} {state}: {len(self._caches.all())} caches, "
            f"{len(self._links.links())} links>"
        )
