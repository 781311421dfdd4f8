"""IssuedGrant: a grant in the hands of the receiver that gave it. What it sends to writers is the Grant inside.

    standing     writers may write
    landed       `wait` gives the receipt: every writer has sealed, every block is there, nobody can write any more
    failed       `wait` raises what the writer failed with
    expired, revoked
Whatever it came to, the blocks are the receiver's again when `wait` or `revoke` has returned, or raised anything
but TransferTimeout.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import LLMException
from ray_kvfabric.grant import Grant, GrantReceipt
from ray_kvfabric.transport import _shared_page as shared_page

if TYPE_CHECKING:
    from ray_kvfabric.endpoint.grants import GrantTable

Outcome = GrantReceipt | LLMException


class IssuedGrant:
    """Threads may share it. Pickling it gives the Grant, so it can be sent to a writer as it is."""

    def __init__(self, table: GrantTable, grant: Grant, granted_ns: int) -> None:
        self.grant = grant
        self.granted_ns = granted_ns
        self.outcome: Outcome | None = None
        self.cause = (shared_page.STALE, 0)  # why it was fenced off: a status of its board, and of which writer
        self.ending = threading.Lock()  # who fences it, drains it and tells its outcome
        self.on_end: Callable[[], None] | None = None  # called once its blocks are the receiver's again
        self._table = table

    # ---- waiting -----------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether `wait` would return or raise at once. No system call."""
        return self.outcome is not None or self._table.has_news(self)

    def wait(self, timeout_s: float | None = None) -> GrantReceipt:
        """Sleeps until every writer has sealed and every granted block is there, or one has failed.

        None waits as long as the grant stands. Raises GrantFailed, GrantIncomplete, DigestMismatch, PeerLost (a writer
        died), GrantExpired, GrantRevoked; TransferTimeout when `timeout_s` passes first: the grant then stands on.
        """
        return self._table.wait(self, self._deadline(timeout_s))

    def wait_layer(self, layer: int, timeout_s: float | None = None) -> None:
        """Sleeps until every granted block of this layer, as the cache counts layers, was written.

        Other layers may still be coming, and a block that is written twice may change again; a digest is compared
        for the blocks of this layer. Raises as `wait`, ParamInvalid for a layer that was not granted. After a
        DigestMismatch of the layer the grant stands on: its writer may write the blocks again.
        """
        self._table.wait_layer(self, layer, self._deadline(timeout_s))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is not None:
            return Deadline.after(timeout_s)
        return Deadline(self.grant.deadline_ns + int(self._table.control_timeout_s * 1e9))

    def __await__(self) -> Generator[object, None, GrantReceipt]:
        """Its thread sleeps with the grant; those of a loop's pool would wait for each other."""
        future: Future[GrantReceipt] = Future()
        future.set_running_or_notify_cancel()
        threading.Thread(target=self._fulfil, args=(future,), name="kvfabric-await", daemon=True).start()
        return asyncio.wrap_future(future).__await__()

    def _fulfil(self, future: Future[GrantReceipt]) -> None:
        try:
            future.set_result(self.wait())
        except BaseException as error:
            future.set_exception(error)

    # ---- ending ------------------------------------------------------------------------------------

    def revoke(self, timeout_s: float | None = None) -> None:
        """Stops the writers and waits until none is inside: from then on the blocks may be used for anything.

        None waits for `control_timeout_s`. Idempotent, and no error for a grant that has ended. Raises
        TransferTimeout while a writer that lives does not leave; the blocks stay in quarantine until it does or dies.
        """
        self._table.revoke(self, timeout_s)

    def __enter__(self) -> IssuedGrant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.revoke()

    # ---- looking in --------------------------------------------------------------------------------

    @property
    def grant_id(self) -> str:
        return self.grant.grant_id

    @property
    def state(self) -> str:
        """standing; fenced, or quarantined, while a writer does not leave; then landed, failed, expired or revoked."""
        return self._table.state_of(self)

    @property
    def progress(self) -> float:
        """The share of granted blocks that were written so far, from 0 to 1."""
        return self._table.progress_of(self)

    def __reduce__(self) -> tuple[object, ...]:
        return _as_grant, (self.grant,)

    def __repr__(self) -> str:
        return f"<IssuedGrant {self.grant}: {self.state}>"


def _as_grant(grant: Grant) -> Grant:
    return grant
