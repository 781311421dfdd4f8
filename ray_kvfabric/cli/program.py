"""Program: somebody's script or module, run in this process as python itself would run it."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from dataclasses import dataclass
from types import TracebackType

import click


@dataclass(frozen=True, slots=True)
class Program:
    """`name` is a path, or a module's name."""

    name: str
    arguments: tuple[str, ...]
    is_module: bool

    def enter(self) -> None:
        """Makes sys.argv and sys.path the program's. Raises click.UsageError for a script that is not there."""
        if not self.is_module and not os.path.exists(self.name):
            raise click.UsageError(f"can't open file {os.path.abspath(self.name)!r}: no such file")
        sys.argv = [self.name, *self.arguments]
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = os.getcwd() if self.is_module else os.path.dirname(os.path.realpath(self.name))

    def run(self) -> None:
        """Returns after the program's last line; ends in SystemExit where python would have ended."""
        try:
            self._run()
        except SystemExit:
            raise
        except BaseException as error:
            sys.excepthook(type(error), error.with_traceback(_own(error.__traceback__)), error.__traceback__)
            sys.exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)

    def _run(self) -> None:
        if self.is_module:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(self.name, run_name="__main__")


def _own(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of this module and of runpy, which stand before the program's."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        trace = trace.tb_next
    return trace
