"""Children with an environment of their own; a test's processes are spawned, never forked."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 60.0


class ChildDied(Exception):
    def __init__(self, exitcode: int | None) -> None:
        super().__init__(exitcode)
        self.exitcode = exitcode


def _enter(
    environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...], answer: Connection
) -> None:
    os.environ.update(environment)
    try:
        result = ("result", function(*args))
    except BaseException:
        result = ("error", traceback.format_exc())
    answer.send(result)


class Child:
    """A process that runs one function; its result, its failed assertion, or its death is what `result` tells."""

    def __init__(self, function: Callable[..., Any], *args: Any, **environment: str) -> None:
        self._answer, theirs = SPAWN.Pipe(duplex=False)
        arguments = (environment, function, args, theirs)
        self.process = SPAWN.Process(target=_enter, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def result(self) -> Any:
        try:
            assert self._answer.poll(PATIENCE), "the child did not answer"
            kind, value = self._answer.recv()
        except EOFError:
            self.process.join(PATIENCE)
            raise ChildDied(self.process.exitcode) from None
        assert kind == "result", value
        return value

    def exitcode(self) -> int | None:
        self.process.join(PATIENCE)
        return self.process.exitcode

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()


def pipe() -> tuple[Connection, Connection]:
    return SPAWN.Pipe()
