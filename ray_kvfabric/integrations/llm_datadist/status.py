"""Status codes, the exception that carries one, and Status (contract sections 3.3, 3.4 and 4.1)."""

from __future__ import annotations

from ray_kvfabric.errors import LLMException as LLMException
from ray_kvfabric.errors import LLMStatusCode as LLMStatusCode


class Status:
    """A status code as an object."""

    def __init__(self, status: LLMStatusCode) -> None:
        self._status_code = status

    def is_ok(self) -> bool:
        return self._status_code == LLMStatusCode.LLM_SUCCESS

    @property
    def status_code(self) -> LLMStatusCode:
        return self._status_code


def code_2_status(code: int) -> LLMStatusCode:
    """The member of that number; LLM_FAILED for a number that has none (contract 3.1)."""
    try:
        return LLMStatusCode(code)
    except ValueError:
        return LLMStatusCode.LLM_FAILED
