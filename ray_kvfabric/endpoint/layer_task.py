"""CacheTask: the handle of a layer-wise transfer; run_layers starts its thread (contract 8.12 and 12.5).

    undecided -> LLM_SUCCESS after the config's last layer | the code of what failed        each reached at most once

The first failure ends the whole job; configs that it does not concern stay undecided. Every config has its own
result, also where two go to one cluster: LLM-DataDist shows one result for both.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ray_kvfabric.cache.checks import check_int
from ray_kvfabric.cache.layer_transfer import LayerSynchronizer
from ray_kvfabric.endpoint.layer_requests import LayerOrder, LayerPart, steps
from ray_kvfabric.errors import LLMException, LLMStatusCode, ParamInvalid

logger = logging.getLogger(__name__)

Move = Callable[[LayerPart], None]  # moves one layer for one config; raises what went wrong


class _Outcomes:
    """A code and an error for each config: written by the worker alone, read after it ended."""

    def __init__(self, num_configs: int) -> None:
        self.codes: list[LLMStatusCode | None] = [None] * num_configs
        self.errors: list[BaseException | None] = [None] * num_configs

    def fail(self, positions: Sequence[int], layer: int, error: BaseException) -> None:
        """The error is kept as long as the task, so it must not hold frames, and with them a cache's memory."""
        code = _code_of(error)
        for position in positions:
            self.codes[position], self.errors[position] = code, error
        logger.error("layer %d of transfer_configs %s failed with %s", layer, positions, code, exc_info=error)
        error.__traceback__ = error.__context__ = error.__cause__ = None


class CacheTask:
    """One running or ended layer-wise transfer. Every method may be called repeatedly, from any thread."""

    def __init__(self, worker: threading.Thread, outcomes: _Outcomes) -> None:
        self._worker = worker
        self._outcomes = outcomes

    def synchronize(self, timeout_in_millis: int | None = None) -> LLMStatusCode:
        """Waits as get_results does, and gives the first code that is not LLM_SUCCESS, else LLM_SUCCESS."""
        # None and LLM_SUCCESS are both false. A job that ended with a None has a failing code beside it.
        return next((code for code in self.get_results(timeout_in_millis) if code), LLMStatusCode.LLM_SUCCESS)

    def get_results(self, timeout_in_millis: int | None = None) -> list[LLMStatusCode | None]:
        """Waits for the job's end, without a limit if None; a code for each config, None for an undecided one.

        LLM_TIMEOUT for every config when the time passes first; the job goes on. Raises TypeError or ValueError
        for a timeout that is no uint32.
        """
        if not self._ends_within(timeout_in_millis):
            return [LLMStatusCode.LLM_TIMEOUT] * len(self._outcomes.codes)
        return list(self._outcomes.codes)

    @property
    def errors(self) -> list[BaseException | None]:
        """What failed for each config, without tracebacks: those are in the log. Complete once the job ended."""
        return list(self._outcomes.errors)

    def _ends_within(self, timeout_in_millis: int | None) -> bool:
        if timeout_in_millis is None:
            self._worker.join()
        else:
            self._worker.join(check_int(timeout_in_millis, "uint32", "timeout_in_millis") / 1000)
        return not self._worker.is_alive()

    def __repr__(self) -> str:
        if self._worker.is_alive():
            return f"<CacheTask: {len(self._outcomes.codes)} configs, running>"
        return f"<CacheTask: {', '.join('undecided' if c is None else c.name for c in self._outcomes.codes)}>"


def run_layers(order: LayerOrder, move: Move) -> CacheTask:
    """Starts the job. Its thread is no daemon: the end of a program does not cut a transfer."""
    outcomes = _Outcomes(len(order.configs))
    worker = threading.Thread(target=_work, args=(order, move, outcomes), name="kvfabric-layers", daemon=False)
    worker.start()
    return CacheTask(worker, outcomes)


def _work(order: LayerOrder, move: Move, outcomes: _Outcomes) -> None:
    layer, failing = 0, list(range(len(order.configs)))
    try:
        for layer, parts in steps(order):
            failing = [part.position for part in parts]
            _synchronize(order.synchronizer, layer)
            for part in parts:
                failing = [part.position]
                move(part)
                if part.is_last:
                    outcomes.codes[part.position] = LLMStatusCode.LLM_SUCCESS
    except BaseException as error:  # the synchronizer is the caller's: not even SystemExit may pass for a success
        outcomes.fail(failing, layer, error)


def _synchronize(synchronizer: LayerSynchronizer, layer: int) -> None:
    answer = synchronizer.synchronize_layer(layer, None)
    if not answer:
        raise ParamInvalid(f"synchronize_layer({layer}, None) gave a {type(answer).__name__} that is false")


def _code_of(error: BaseException) -> LLMStatusCode:
    """What a failure shows: never LLM_SUCCESS, although a bare LLMException carries it."""
    if isinstance(error, LLMException):
        return error.status_code or LLMStatusCode.LLM_FAILED
    return LLMStatusCode.LLM_TIMEOUT if isinstance(error, TimeoutError) else LLMStatusCode.LLM_FAILED
