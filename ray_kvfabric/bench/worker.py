"""Worker processes: an object of the child's own, called by the parent one method at a time.

Local    the same surface over an object of this process
Spawned  over an object made in a fresh child, which ends with its parent
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

from ray_kvfabric.errors import FabricError, LLMException, LLMStatusCode, PeerLost, TransferTimeout

PATIENCE_S = 120.0
_LEAVE = "close"


class Worker(Protocol):
    """Whoever it is made of: `call` runs one method and returns or raises what that does."""

    def call(self, method: str, *arguments: object) -> Any: ...
    def close(self) -> None: ...


class Local:
    """An object of this process as a Worker."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def call(self, method: str, *arguments: object) -> Any:
        return getattr(self.inner, method)(*arguments)

    def close(self) -> None:
        self.inner.close()


class Spawned:
    """`make(*arguments)` in a child process. Raises PeerLost when the child dies, TransferTimeout when it hangs."""

    def __init__(self, name: str, make: Callable[..., Any], *arguments: object) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), name=name, daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return int(self._process.pid or 0)

    def call(self, method: str, *arguments: object) -> Any:
        try:
            self._pipe.send((method, arguments))
            if not self._pipe.poll(PATIENCE_S):
                raise TransferTimeout(f"worker {self.name!r} has not answered {method} for {PATIENCE_S:g} s")
            outcome = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise PeerLost(f"worker {self.name!r} died: exit code {self._exit_code()}") from error
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _exit_code(self) -> int | None:
        self._process.join(1.0)
        return self._process.exitcode

    def close(self) -> None:
        """Lets it close its object, then ends it; idempotent."""
        if self._pipe.closed:
            return
        with suppress(OSError):  # it died before
            self._pipe.send((_LEAVE, ()))
        self._process.join(10.0)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    def __enter__(self) -> Spawned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    inner: Any = None
    logging.getLogger("ray_kvfabric").setLevel(logging.ERROR)  # slow paths are what is looked for here
    try:
        while True:
            method, given = pipe.recv()
            if method == _LEAVE:
                return
            try:
                inner = make(*arguments) if inner is None else inner
                outcome = getattr(inner, method)(*given)
            except Exception as error:
                outcome = _portable(error)
            pipe.send(outcome)
    except (EOFError, OSError, KeyboardInterrupt):
        return  # the parent is gone, or leaving
    finally:
        if inner is not None:
            inner.close()


def _portable(error: Exception) -> Exception:
    if isinstance(error, FabricError):
        return error
    text = f"{type(error).__name__} in process {os.getpid()}: {error}"
    return LLMException(text, status_code=LLMStatusCode.LLM_FAILED)
