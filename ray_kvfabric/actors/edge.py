"""Ray's exceptions become the fabric's here.

fetch        waits for one call: its own error, or TransferTimeout; lets RayActorError, ObjectLostError pass
repeated     fetches an idempotent call, and makes it again while it, or its answer, is lost
once         an actor's method without Ray's retries, for whoever makes a lost call again
peer_errors  turns what fetch lets pass into PeerLost
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from ray_kvfabric import errors
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, LLMException, LLMStatusCode, NotLinked, PeerLost, TransferTimeout

RETRY_S = 0.05
LOST = (ActorUnavailableError, ObjectLostError)  # whether the call was made is not known; its actor may live
_PASSED_ON = (FabricError, TypeError, ValueError, LookupError)


def require_ray() -> None:
    """Calls into a Ray that was shut down would start another one."""
    if not ray.is_initialized():
        raise NotLinked("Ray does not run in this process, or was shut down")


def fetch(ref: Any, deadline: Deadline, what: str) -> Any:
    """The call's value or its own error; `what` names it in a TransferTimeout."""
    require_ray()
    try:
        return ray.get(ref, timeout=deadline.remaining_s)
    except GetTimeoutError:
        raise TransferTimeout(f"{what} was not answered in time") from None
    except RayTaskError as error:
        raise original(error) from None


def repeated(
    call: Callable[[], Any],
    deadline: Deadline,
    what: str,
    lost: tuple[type[Exception], ...] = LOST,
) -> Any:
    """What `call()`, which starts a call and returns its reference, comes to. Raises as `fetch` does."""
    while True:
        try:
            return fetch(call(), deadline, what)
        except lost as error:
            if deadline.remaining_s <= RETRY_S:
                raise TransferTimeout(f"{what} was not answered in time: {_last_line(error)}") from None
        time.sleep(RETRY_S)


def original(error: RayTaskError) -> Exception:
    """What the remote method raised, if it is a refusal of the fabric; else an LLMException with its text."""
    cause = error.cause
    if isinstance(cause, _PASSED_ON) and not isinstance(cause, RayTaskError):
        return cause
    return LLMException(f"a remote call failed: {error}", status_code=LLMStatusCode.LLM_FAILED)


def once(method: Any) -> Any:
    """An actor's method, its calls not retried by Ray."""
    return method.options(max_task_retries=0)


@contextmanager
def peer_errors(who: str) -> Iterator[None]:
    """Raises PeerLost where the actor died or its answer was lost, or the error that its start ended with."""
    try:
        yield
    except ActorDiedError as error:
        raise _start_error(error) or PeerLost(f"{who} died: {_last_line(error)}") from None
    except (RayActorError, ObjectLostError) as error:
        raise PeerLost(f"{who} is gone: {_last_line(error)}") from None


def _start_error(error: ActorDiedError) -> Exception | None:
    """Ray keeps only the text of what `__init__` raised: the fabric's own errors are made again from it."""
    found = re.search(r"ray_kvfabric\.errors\.(\w+): (.*)", str(error)) if error.actor_init_failed else None
    kind = getattr(errors, found[1], None) if found else None
    return kind(found[2]) if found and kind else None


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
