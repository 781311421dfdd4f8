"""The logger LLM_DATADIST: to stdout, made when something is first logged (contract section 2.2)."""

from __future__ import annotations

import logging
import sys
import traceback
from functools import cache

from ray_kvfabric.config import ascend_log_level

_LEVELS = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}
_FORMAT = "[%(levelname)s] %(name)s(%(process)d) %(asctime)s [%(filename)s:%(lineno)d] %(message)s"


def debug(message: str, *args: object) -> None:
    _logger().debug(message, *args)


def info(message: str, *args: object) -> None:
    _logger().info(message, *args)


def warning(message: str, *args: object) -> None:
    _logger().warning(message, *args)


def error(message: str, *args: object) -> None:
    _logger().error(message, *args)


class _Stdout(logging.Handler):
    """Writes to whatever sys.stdout is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stdout.write(self.format(record) + "\n")


@cache
def _logger() -> logging.Logger:
    logger = logging.getLogger("LLM_DATADIST")
    logger.setLevel(_LEVELS.get(ascend_log_level() or "", logging.ERROR))
    handler = _Stdout()
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(handler)
    logger.findCaller = _find_caller  # type: ignore[method-assign]  # whoever called debug(), info(), ...
    return logger


_OWN_FILES = (_Stdout.emit.__code__.co_filename, logging.Logger.debug.__code__.co_filename)


def _find_caller(stack_info: bool = False, stacklevel: int = 1) -> tuple[str, int, str, str | None]:
    """Logger.findCaller's answer for the nearest frame outside this file and logging.

    At the top of a thread's stack there is none: it answers with the last frame then (contract section 18).
    """
    frame = sys._getframe()
    while frame.f_code.co_filename in _OWN_FILES and frame.f_back is not None:
        frame = frame.f_back
    stack = "".join(traceback.format_stack(frame)) if stack_info else None
    return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, stack
