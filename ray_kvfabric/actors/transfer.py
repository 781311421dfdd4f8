"""FabricTransfer: a push launched through the scheduler, as its caller sees it.

    launched -> the source's call is watched -> its receipt or its error
        the scheduler died, its references with it -> the source is asked by transfer_id
            it knows the transfer -> its receipt or its error
            it never saw it, the launch was lost -> launched again under the same id, which moves nothing twice
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError

from ray_kvfabric.actors.clients import SchedulerClient, opened
from ray_kvfabric.actors.edge import fetch, peer_errors
from ray_kvfabric.actors.launch import find_worker
from ray_kvfabric.cache.keys import BlocksCacheKey
from ray_kvfabric.control.errands import Errand
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import NotLinked, TransferTimeout, TransferUnknown
from ray_kvfabric.route import Receipt


class PushOrder(NamedTuple):
    """Whose call, which, and of which target: what `SchedulerActor.send` takes."""

    source_cluster_id: int
    errand: Errand
    key: BlocksCacheKey


class FabricTransfer:
    """Waited for with `result`, or awaited. `timeout_s` is the wait of a `result` that names none."""

    def __init__(self, client: SchedulerClient, order: PushOrder, timeout_s: float) -> None:
        self.transfer_id = order.errand.errand_id
        self._client = client
        self._order = order
        self._timeout_s = timeout_s
        self._launch()

    @property
    def ref(self) -> Any:
        """The ObjectRef of the launched call, to be awaited or passed to a task as a dependency.

        It dies with the scheduler, which owns it; `result` does not. Raises what the launch was refused with.
        """
        return self._reference(Deadline.after(self._timeout_s))

    def result(self, timeout_s: float | None = None) -> Receipt:
        """The receipt, or the push's own error. Raises TransferTimeout when it is not known in time.

        Raises PeerLost when the source died: whether its last blocks landed is then not known.
        """
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        while True:
            with peer_errors(self._source):
                try:
                    return self._watch(deadline)
                except (ObjectLostError, RayActorError) as error:
                    if isinstance(error, ActorDiedError) and not self._is_ours(error):
                        raise
                    receipt = self._ask_source(deadline)
                    if receipt is not None:
                        return receipt
            if deadline.passed:
                raise TransferTimeout(f"the outcome of transfer {self.transfer_id} was not known in time")
            self._launch()
