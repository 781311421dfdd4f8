"""PeerCalls over a pipe: two processes that ask each other and answer at the same time, without Ray.

asking      the caller's thread sends a question and sleeps until the answer comes
listening   one thread takes what comes in; each question is answered in a thread of its own: an answer may ask back
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import FabricError, LLMException, LLMStatusCode, PeerLost, TransferTimeout
from ray_kvfabric.route import EndpointInfo

Answer = Callable[[str, dict[str, Any]], object]  # `CacheManager.answer`


class Wire:
    """The PeerCalls port to the one process at the other end. `answer` is set before anybody asks there."""

    answer: Answer

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._numbers = count()
        self._asked: dict[int, Future[object]] = {}
        self._has_ended = False
        self._listener = threading.Thread(target=self._listen, name="kvfabric-wire", daemon=True)
        self._listener.start()

    def ask(self, peer: EndpointInfo, question: str, arguments: dict[str, Any], deadline: Deadline) -> object:
        """Raises what the peer raises, TransferTimeout, and PeerLost when its process is gone."""
        number, told = next(self._numbers), Future[object]()
        self._asked[number] = told
        try:
            if self._has_ended:  # looked at after the question is there: whoever ends later sees it
                raise PeerLost("the process at the other end died")
            self._send(number, (question, arguments))
            wait([told], timeout=deadline.remaining_s)
            if not told.done():
                raise TransferTimeout(f"{peer} has not answered {question} in time")
            return told.result()
        finally:
            del self._asked[number]

    def close(self) -> None:
        """Ends the listener first: a descriptor that is closed under its reader may be another file's by then."""
        with socket.socket(fileno=os.dup(self._pipe.fileno())) as end, suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._pipe.close()

    def _send(self, number: int, question: tuple[str, dict[str, Any]] | None, outcome: object = None) -> None:
        with self._sending:
            try:
                self._pipe.send((number, question, outcome))
            except OSError as error:
                raise PeerLost(f"the process at the other end is gone: {error}") from None

    def _listen(self) -> None:
        try:
            while True:
                number, question, outcome = self._pipe.recv()
                if question is None:
                    self._settle(number, outcome)
                else:
                    threading.Thread(target=self._serve, args=(number, *question), daemon=True).start()
        except (EOFError, OSError):
            self._has_ended = True
            for number in [*self._asked]:
                self._settle(number, PeerLost("the process at the other end died"))

    def _settle(self, number: int, outcome: object) -> None:
        told = self._asked.get(number)  # gone where nobody waits any more
        if told is None or told.done():
            return
        if isinstance(outcome, BaseException):
            told.set_exception(outcome)
        else:
            told.set_result(outcome)

    def _serve(self, number: int, question: str, arguments: dict[str, Any]) -> None:
        outcome: object
        try:
            outcome = self.answer(question, arguments)
        except FabricError as error:
            outcome = error
        except Exception as error:
            outcome = LLMException(f"{type(error).__name__}: {error}", status_code=LLMStatusCode.LLM_FAILED)
        with suppress(PeerLost):  # nobody is left to be told
            self._send(number, None, outcome)
