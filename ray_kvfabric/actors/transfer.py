"""FabricTransfer: a push launched through the scheduler, as its caller sees it.

launched -> the source's call is watched -> its receipt or its error
    the scheduler died, its references with it -> the source is asked by transfer_id
        it knows the transfer -> its receipt or its error
        it never saw it, the launch was lost -> launched again under the same id, which moves nothing twice
        it was replaced by another incarnation -> PeerLost
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, NamedTuple

import ray
from ray.exceptions import ObjectLostError, RayActorError

from ray_kvfabric.actors.clients import ErrandLost, SchedulerClient
from ray_kvfabric.actors.edge import fetch, peer_errors, repeated
from ray_kvfabric.actors.launch import find_worker
from ray_kvfabric.cache.html_table import html_table
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, NotLinked, PeerLost, StaleIncarnation, TransferTimeout, TransferUnknown
from ray_kvfabric.route import Receipt

LOOK_S = 0.2


class PushOrder(NamedTuple):
    """Whose call, which, of which target and at which incarnation: what `SchedulerActor.send` takes.

    `key` None: a grant names the target.
    """

    source_cluster_id: int
    errand: Errand
    key: BlocksCacheKey | None
    incarnation: int | None = None


class FabricTransfer:
    """Waited for with `result`, or awaited. `timeout_s` is the wait of a `result` that names none."""

    def __init__(self, client: SchedulerClient, order: PushOrder, timeout_s: float) -> None:
        self.transfer_id = order.errand.errand_id
        self._client = client
        self._order = order
        self._timeout_s = timeout_s
        self._is_called = False
        self._launch()

    @property
    def ref(self) -> Any | None:
        """The ObjectRef of the launched call, to be awaited or passed to a task as a dependency.

        None for a source without an actor. It dies with the scheduler, which owns it; `result` does not.
        Raises what the launch was refused with.
        """
        with peer_errors("the scheduler"):
            return self._reference(Deadline.after(self._timeout_s))

    def result(self, timeout_s: float | None = None) -> Receipt:
        """The receipt, or the push's own error. Raises TransferTimeout when it is not known in time.

        Raises PeerLost when the source died: whether its last blocks landed is then not known.
        """
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        while not deadline.passed:
            try:
                return self._watch(deadline)
            except (ObjectLostError, RayActorError):  # the scheduler or the source is gone; the source knows
                receipt = self._ask_source(deadline)
            except ErrandLost:
                receipt = None
            if receipt is not None:
                return receipt
            self._launch()
        raise TransferTimeout(f"the outcome of transfer {self.transfer_id} was not known in time")

    def cancel(self) -> bool:
        """Stops the push within 4 MiB; False when it had ended. What was written stays written.

        A push that has not reached its source yet is not known there: False, and it goes on.
        """
        deadline = Deadline.after(self._timeout_s)
        source = self._order.source_cluster_id
        with peer_errors(self._source):
            return bool(self._client.errand(source, "cancel", deadline, transfer_id=self.transfer_id))

    def __await__(self) -> Generator[Any, None, Receipt]:
        return asyncio.to_thread(self.result).__await__()

    def __repr__(self) -> str:
        return f"<FabricTransfer {self.transfer_id}: {self._order.source_cluster_id} -> {self._target}>"

    def _repr_html_(self) -> str:
        """Its receipt's table, or what is known of it within LOOK_S."""
        try:
            if self._may_be_over():
                return self.result(LOOK_S)._repr_html_()
            state, why = "moving", None
        except TransferTimeout as error:  # its own, or nobody knows yet
            state, why = "not known", str(error)
        except FabricError as error:
            state, why = "failed", f"{type(error).__name__}: {error}"
        row = (self._order.source_cluster_id, self._target.cluster_id, state, why)
        return html_table(f"transfer {self.transfer_id}", ("from", "to", "state", "why"), [row])

    def _may_be_over(self) -> bool:
        """Of a source without an actor nothing is known here."""
        reference = self.ref
        return reference is None or bool(ray.wait([reference], timeout=LOOK_S)[0])

    @property
    def _target(self) -> Any:
        """A key or a grant."""
        return self._order.key or self._order.errand.arguments["grant"]

    @property
    def _source(self) -> str:
        return f"endpoint {self._order.source_cluster_id}"

    def _launch(self) -> None:
        source, errand, key, incarnation = self._order
        self._launched = self._client.submit("send", source, errand, incarnation, key, retried_by_ray=True)

    def _reference(self, deadline: Deadline) -> Any | None:
        launched = fetch(self._launched, deadline, f"the launch of transfer {self.transfer_id}")
        return None if launched is None else launched[0]

    def _watch(self, deadline: Deadline) -> Receipt:
        reference = self._reference(deadline)
        if reference is not None:
            self._is_called = True
            receipt: Receipt = fetch(reference, deadline, f"transfer {self.transfer_id}")
            return receipt
        told: Receipt = self._client.outcome(self._order.errand, deadline)
        return told

    def _ask_source(self, deadline: Deadline) -> Receipt | None:
        """What the source says about the transfer; None when it never saw it."""
        try:
            with peer_errors(self._source):
                receipt: Receipt = repeated(lambda: self._result(deadline), deadline, f"transfer {self.transfer_id}")
                return receipt
        except TransferUnknown:
            return None
        except StaleIncarnation as error:
            raise PeerLost(f"{self._source} died: {error}") from None
        except NotLinked as error:  # an endpoint without an actor, or an actor that died
            if self._is_called:
                raise PeerLost(f"{self._source} died: {error}") from None
            return None

    def _result(self, deadline: Deadline) -> Any:
        worker = find_worker(self._client.fabric, self._order.source_cluster_id)
        return worker.result.remote(self.transfer_id, deadline.remaining_s, self._order.incarnation)
