"""Drain: an endpoint finishes what it has begun, takes nothing new, and says when it holds nothing any more.

told    the directory refuses new ways to it, its page new pushes, itself new grants and offers
waited  for the grants that stand, the transfers inside its caches, and its own
left    its links to others are closed; caches stay, and can be pulled from
"""

from __future__ import annotations

import time

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.endpoint.core import EndpointCore
from ray_kvfabric.errors import TransferTimeout

NAP_S = 0.02
DRAIN_S = 60.0


class DrainVerb(EndpointCore):
    """`drain`."""

    def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Returns when this endpoint holds nothing: no grant, no transfer in or out, no link. For scale-down.

        New grants and new pushes into it raise EndpointDraining from the first moment on; pushes under grants that
        stand, pulls from it and its own transfers go on, and are waited for: what is handed off is pulled meanwhile by
        whoever takes it over. Idempotent. Raises TransferTimeout that says what is left; it then drains on, and may be
        called again.
        """
        self._check_open()
        deadline = Deadline.after(timeout_s)
        self._identity.drain()
        self._refuse_new(f"{self.endpoint} is draining: it gives no grants any more")
        self._directory.announce(self.endpoint, deadline)
        while held := self._held():
            if deadline.passed:
                raise TransferTimeout(f"{self.endpoint} still holds {', '.join(held)}")
            time.sleep(NAP_S)
        self._links.close_all(deadline)

    def _held(self) -> list[str]:
        """What keeps it from being drained, in words."""
        self._grant_watch.tick(ends_complete=True)
        standing = [str(issued.grant) for issued in self._grants.standing()]
        writers = self._identity.page.count_writers()
        own = sum(each["moving"] + each["queued"] + each["paused"] for each in self._gate.describe().values())
        counted = {f"{writers} transfers of peers": writers, f"{own} transfers of its own": own}
        return [*standing, *(what for what, count in counted.items() if count)]
