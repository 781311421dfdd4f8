"""Asking: the requests of this endpoint that wait for an owner's grant, and the grants that came."""

from __future__ import annotations

import secrets
import threading
from typing import Any

from ray_kvfabric.grant import Grant


class Asking:
    """Threads share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._grants: dict[str, Grant | None] = {}

    def begin(self) -> str:
        """The ticket of a new request."""
        ticket = secrets.token_hex(16)
        with self._changed:
            self._grants[ticket] = None
        return ticket

    def take(self, question: dict[str, Any]) -> bool:
        """The owner's answer that came later. False: nobody waits for it any more."""
        with self._changed:
            is_awaited = question["ticket"] in self._grants
            if is_awaited:
                self._grants[question["ticket"]] = question["grant"]
                self._changed.notify_all()
            return is_awaited

    def wait(self, ticket: str, timeout_s: float) -> Grant | None:
        with self._changed:
            self._changed.wait_for(lambda: self._grants[ticket] is not None, timeout_s)
            return self._grants[ticket]

    def end(self, ticket: str) -> Grant | None:
        """Nobody waits for it any more; what came meanwhile. A second time it does nothing."""
        with self._changed:
            return self._grants.pop(ticket, None)
