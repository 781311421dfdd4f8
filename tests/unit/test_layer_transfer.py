"""transfer_cache_async without its bytes: configs, argument checks, steps, and the task that runs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ray_kvfabric.cache.handle import Cache
from ray_kvfabric.cache.keys import BlocksCacheKey, CacheKeyByIdAndIndex
from ray_kvfabric.cache.layer_transfer import (
    LayerConfig,
    LayerSynchronizer,
    TransferConfig,
    TransferWithCacheKeyConfig,
)
from ray_kvfabric.cache.types import CacheDesc, DataType, Placement
from ray_kvfabric.endpoint.layer_requests import LayerOrder, LayerPart, check_layer_transfer, steps
from ray_kvfabric.endpoint.layer_task import CacheTask, run_layers
from ray_kvfabric.errors import LLMException, LLMStatusCode, PeerLost, TransferTimeout

OK = LLMStatusCode.LLM_SUCCESS
FAILED = LLMStatusCode.LLM_FAILED
INVALID = LLMStatusCode.LLM_PARAM_INVALID
TIMEOUT = LLMStatusCode.LLM_TIMEOUT
BOTH = (TransferWithCacheKeyConfig, TransferConfig)
KEY = BlocksCacheKey(2, 0)
ID_KEY = CacheKeyByIdAndIndex(3, 1)
LIMIT_S = 20  # of every wait here; reached only when the code is wrong


class Answers(LayerSynchronizer):
    """Answers with what `answer` gives for the layer; records its calls."""

    def __init__(self, answer: Callable[[int], Any] = lambda layer: True) -> None:
        self.answer = answer
        self.calls: list[tuple[int, int | None]] = []

    def synchronize_layer(self, layer_index: int, timeout_in_millis: int | None) -> bool:
        self.calls.append((layer_index, timeout_in_millis))
        return self.answer(layer_index)  # type: ignore[no-any-return]


class Moves:
    """A `move` that records its parts and fails on (position, source layer) of `fail_at`."""

    def __init__(self, fail_at: tuple[int, int] | None = None, error: BaseException | None = None) -> None:
        self.fail_at = fail_at
        self.error = error
        self.parts: list[LayerPart] = []

    def __call__(self, part: LayerPart) -> None:
        self.parts.append(part)
        if self.error is not None and (part.position, part.source_layer) == self.fail_at:
            raise self.error

    @property
    def seen(self) -> list[tuple[int, int]]:
        return [(part.position, part.source_layer) for part in self.parts]


def device_cache(num_tensors: int = 8, cache_id: int = 1, placement: Placement = Placement.DEVICE) -> Cache:
    desc = CacheDesc(num_tensors, (4, 16), DataType.DT_FLOAT16, placement)
    return Cache(cache_id, desc, list(range(1, num_tensors + 1)), is_blocks_cache=True)


def keyed(source: range, target: range | None = None, key: Any = KEY) -> TransferWithCacheKeyConfig:
    return TransferWithCacheKeyConfig(key, source, source if target is None else target)


def addressed(layers: range | None, first: int = 100, count: int = 4) -> TransferConfig:
    return TransferConfig(2, list(range(first, first + 2 * (count if layers is None else len(layers)))), layers)


def order_of(*configs: LayerConfig, synchronizer: LayerSynchronizer | None = None, **changes: Any) -> LayerOrder:
    given: dict[str, Any] = {
        "src_cache": device_cache(),
        "layer_synchronizer": synchronizer or Answers(),
        "transfer_configs": list(configs),
        "src_block_indices": None,
        "dst_block_indices": None,
        "dst_block_memory_size": None,
        "kinds": BOTH,
    }
    return check_layer_transfer(**{**given, **changes})


def ended(task: CacheTask) -> list[LLMStatusCode | None]:
    """The results of a task that must end by itself."""
    results = task.get_results(LIMIT_S * 1000)
    assert task.get_results(LIMIT_S * 1000) == results
    return results


def _check_code(error: Exception) -> None:
    if isinstance(error, LLMException):
        assert error.status_code is INVALID


# ---- the arguments ---------------------------------------------------------------------------------------------


def shrunk(config: TransferWithCacheKeyConfig) -> TransferWithCacheKeyConfig:
    config.src_layer_range = range(1, 2)
    return config


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"src_cache": None}, TypeError, "src_cache"),
    ({"src_cache": 1}, TypeError, "src_cache"),
    ({"src_cache": device_cache(placement=Placement.HOST)}, LLMException, "src_cache 1 must be placed on DEVICE"),
    ({"src_cache": device_cache(cache_id=-1)}, TypeError, "src_cache.cache_id must be a uint64, got -1"),
    ({"src_block_indices": range(1)}, TypeError, "src_block_indices"),
    ({"src_block_indices": [0.0]}, TypeError, r"src_block_indices\[0\]"),
    ({"src_block_indices": [0, -1]}, ValueError, r"src_block_indices\[1\]"),
    ({"dst_block_indices": {1}}, TypeError, "dst_block_indices"),
    ({"dst_block_indices": [None]}, TypeError, r"dst_block_indices\[0\]"),
    ({"dst_block_indices": [2**64]}, ValueError, r"dst_block_indices\[0\]"),
    ({"dst_block_memory_size": 1.0}, TypeError, "dst_block_memory_size"),
    ({"dst_block_memory_size": -1}, ValueError, "dst_block_memory_size"),
    ({"src_block_indices": [0]}, LLMException, "src_block_indices has 1 entries, dst_block_indices none"),
    (
        {"src_block_indices": [0], "dst_block_indices": []},
        LLMException,
        "src_block_indices has 1 entries, dst_block_indices none",
    ),
    (
        {"src_block_indices": [0], "dst_block_indices": [1, 2]},
        LLMException,
        "src_block_indices has 1 entries, dst_block_indices has 2",
    ),
    ({"dst_block_indices": [1]}, LLMException, "dst_block_memory_size"),
    ({"dst_block_indices": [1], "dst_block_memory_size": 0}, LLMException, "dst_block_memory_size.*got 0"),
    ({"dst_block_memory_size": 64}, LLMException, "dst_block_memory_size is 64, dst_block_indices"),
    ({"dst_block_memory_size": 64, "dst_block_indices": ()}, LLMException, "dst_block_memory_size is 64"),
    ({"layer_synchronizer": None}, TypeError, "layer_synchronizer"),
    ({"layer_synchronizer": lambda layer, timeout: True}, TypeError, "layer_synchronizer"),
    ({"transfer_configs": None}, TypeError, "transfer_configs"),
    ({"transfer_configs": keyed(range(1))}, TypeError, "transfer_configs"),
    ({"transfer_configs": [keyed(range(1)), None]}, TypeError, r"transfer_configs\[1\]"),
    ({"transfer_configs": [addressed(range(1))], "kinds": BOTH[:1]}, TypeError, r"\[0\] must be a .*WithCacheKey"),
    ({"transfer_configs": [keyed(range(1))], "kinds": BOTH[1:]}, TypeError, r"\[0\] must be a TransferConfig here"),
    ({"src_cache": device_cache(7)}, LLMException, "7 tensors"),
    (
        {
            "src_block_indices": [0],
            "dst_block_indices": [0],
            "transfer_configs": [keyed(range(1)), TransferWithCacheKeyConfig(ID_KEY, range(1), range(1), 1)],
        },
        LLMException,
        r"transfer_configs\[1\].src_batch_index must be 0.*got 1",
    ),
    (
        {"transfer_configs": [keyed(range(1, 5))]},
        LLMException,
        r"transfer_configs\[0\].src_layer_range range\(1, 5\) ends beyond the 4 layers",
    ),
    (
        {"transfer_configs": [TransferConfig(2, [1, 2, 3], range(2))]},
        LLMException,
        r"transfer_configs\[0\].dst_addrs has 3 entries, its 2 layers .* need 4",
    ),
    ({"transfer_configs": [TransferConfig(2, [1, 2])]}, LLMException, r"dst_addrs has 2 entries.*need 8"),
    (
        {"transfer_configs": [shrunk(keyed(range(2)))]},
        LLMException,
        r"transfer_configs\[0\].src_layer_range has 1 layers .*dst_layer_range has 2",
    ),
]


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED)
def test_a_wrong_argument_is_refused_with_its_class_code_and_name(
    change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        order_of(keyed(range(1)), **change)
    _check_code(caught.value)


def test_a_cpu_cache_is_refused_for_its_placement() -> None:
    """LLM-DataDist would refuse its id with a TypeError, but looks at the placement first, and that is HOST."""
    desc = CacheDesc(2, (4, 16), DataType.DT_FLOAT16, Placement.HOST)
    with pytest.raises(LLMException, match="src_cache -1 must be placed on DEVICE") as caught:
        order_of(keyed(range(1)), src_cache=Cache.create_cpu_cache(desc, [1, 2]))
    assert caught.value.status_code is INVALID


IN_ORDER: list[tuple[dict[str, Any], str]] = [
    ({"src_cache": device_cache(7, placement=Placement.HOST)}, "placed on DEVICE"),
    ({"src_block_indices": ["0"]}, "src_block_indices"),
    ({"dst_block_indices": ["0"]}, "dst_block_indices"),
    ({"dst_block_memory_size": "0"}, "dst_block_memory_size"),
    ({"src_block_indices": [0, 1]}, "src_block_indices has 2"),
    ({"layer_synchronizer": 1}, "layer_synchronizer"),
    ({"transfer_configs": [None]}, "transfer_configs"),
    ({"src_cache": device_cache(7)}, "7 tensors"),
    ({"transfer_configs": [keyed(range(9))]}, "src_layer_range"),
]


@pytest.mark.parametrize("position", range(len(IN_ORDER)))
def test_of_two_wrong_arguments_the_earlier_check_speaks(position: int) -> None:
    change, words = IN_ORDER[position]
    later: dict[str, Any] = {}
    for wrong, _ in reversed(IN_ORDER[position:]):
        later |= wrong
    with pytest.raises((TypeError, LLMException), match=words):
        order_of(keyed(range(1)), **{**later, **change})


def test_an_order_holds_what_was_asked() -> None:
    cache, synchronizer = device_cache(), Answers()
    order = check_layer_transfer(cache, synchronizer, (keyed(range(1)),), (3, 1), [0, True], None, BOTH)
    assert (order.src_cache, order.synchronizer) == (cache, synchronizer)
    assert (order.source_blocks, order.target_blocks) == ((3, 1), (0, 1))
    assert (order.piece_nbytes, order.num_layers, order.source_layers) == (0, 4, (range(1),))
    cut = order_of(keyed(range(1)), dst_block_indices=[5], dst_block_memory_size=64)
    assert (cut.source_blocks, cut.target_blocks, cut.piece_nbytes) == (None, (5,), 64)
    whole = order_of(keyed(range(1)), src_block_indices=[], dst_block_indices=())
    assert (whole.source_blocks, whole.target_blocks, whole.piece_nbytes) == (None, None, 0)


def test_a_range_left_out_becomes_every_layer_in_the_callers_own_object() -> None:
    config = addressed(None)
    assert order_of(config).source_layers == (range(4),)
    assert config.src_layer_range == range(4)


def test_what_the_caller_changes_later_does_not_reach_the_order() -> None:
    config, other = addressed(range(1)), keyed(range(1))
    order = order_of(config, other)
    config.dst_addrs[0] = 7  # type: ignore[index]
    config.src_layer_range, config.dst_cluster_id = range(2, 3), 9
    other.dst_layer_range, other.src_layer_range = range(3, 4), range(2, 3)
    (step,) = steps(order)
    assert step.parts == (LayerPart(0, 0, None, (100, 101), True), LayerPart(1, 0, 0, None, True))
    assert order.configs[0].dst_cluster_id == 2


# ---- the steps -------------------------------------------------------------------------------------------------


def test_destination_layers_count_from_the_start_of_the_source_range() -> None:
    order = order_of(keyed(range(2, 4), range(5, 7)))
    assert [(step.layer, step.parts) for step in steps(order)] == [
        (2, (LayerPart(0, 2, 5, None, False),)),
        (3, (LayerPart(0, 3, 6, None, True),)),
    ]


def test_each_layer_has_its_two_addresses() -> None:
    order = order_of(addressed(range(1, 3), first=10))
    assert [part for step in steps(order) for part in step.parts] == [
        LayerPart(0, 1, None, (10, 11), False),
        LayerPart(0, 2, None, (12, 13), True),
    ]


def test_overlapping_configs_share_a_step_in_their_order_and_unwanted_layers_have_none() -> None:
    order = order_of(keyed(range(2, 4), range(2)), keyed(range(1)), addressed(range(2, 3)))
    assert [(step.layer, [(part.position, part.is_last) for part in step.parts]) for step in steps(order)] == [
        (0, [(1, True)]),
        (2, [(0, False), (2, True)]),
        (3, [(0, True)]),
    ]


# ---- the task --------------------------------------------------------------------------------------------------


def test_every_wanted_layer_is_synchronized_once_then_moved_for_each_config() -> None:
    happened: list[object] = []
    synchronizer = Answers(lambda layer: not happened.append(f"ready {layer}"))  # type: ignore[func-returns-value]
    order = order_of(keyed(range(1)), keyed(range(3)), keyed(range(2, 3)), synchronizer=synchronizer)
    task = run_layers(order, lambda part: happened.append((part.position, part.source_layer)))
    assert ended(task) == [OK, OK, OK]
    assert task.synchronize() is OK
    assert task.errors == [None, None, None]
    assert happened == ["ready 0", (0, 0), (1, 0), "ready 1", (1, 1), "ready 2", (1, 2), (2, 2)]
    assert synchronizer.calls == [(0, None), (1, None), (2, None)]


def test_a_layer_that_nobody_wants_is_not_synchronized() -> None:
    synchronizer = Answers(lambda layer: layer != 1)
    assert ended(run_layers(order_of(keyed(range(2, 4)), synchronizer=synchronizer), Moves())) == [OK]
    assert [layer for layer, _ in synchronizer.calls] == [2, 3]


def test_no_configs_are_a_success_without_results() -> None:
    synchronizer = Answers(lambda layer: False)
    task = run_layers(order_of(synchronizer=synchronizer), Moves())
    assert task.get_results() == []
    assert task.synchronize() is OK
    assert synchronizer.calls == []


@pytest.mark.parametrize("answer", [False, None, 0])
def test_a_false_answer_is_a_wrong_parameter_of_the_configs_that_want_the_layer(answer: object) -> None:
    synchronizer = Answers(lambda layer: layer < 1 or answer)
    order = order_of(
        keyed(range(1)), keyed(range(1, 3)), keyed(range(2, 3)), addressed(range(1, 2)), synchronizer=synchronizer
    )
    moves = Moves()
    task = run_layers(order, moves)
    assert ended(task) == [OK, INVALID, None, INVALID]
    assert task.synchronize() is INVALID
    assert moves.seen == [(0, 0)]
    assert [layer for layer, _ in synchronizer.calls] == [0, 1]
    assert "synchronize_layer(1, None)" in str(task.errors[1])


class Undecidable:
    def __bool__(self) -> bool:
        raise ZeroDivisionError


ERRORS: list[tuple[BaseException, LLMStatusCode]] = [
    (ZeroDivisionError("x"), FAILED),
    (TypeError("x"), FAILED),
    (TimeoutError("x"), TIMEOUT),
    (TransferTimeout("x"), TIMEOUT),
    (PeerLost("x"), LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR),
    (LLMException("x", status_code=LLMStatusCode.LLM_NOT_YET_LINK), LLMStatusCode.LLM_NOT_YET_LINK),
    (LLMException("the default code is LLM_SUCCESS"), FAILED),
    (KeyboardInterrupt(), FAILED),
    (SystemExit(0), FAILED),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_of_the_synchronizer_is_never_a_success(error: BaseException, code: LLMStatusCode) -> None:
    def answer(layer: int) -> bool:
        if layer:
            raise error
        return True

    order = order_of(keyed(range(1)), keyed(range(2)), keyed(range(3, 4)), synchronizer=Answers(answer))
    task = run_layers(order, Moves())
    assert ended(task) == [OK, code, None]
    assert task.synchronize() is code
    assert task.errors == [None, error, None]


def test_an_answer_without_a_truth_is_an_error() -> None:
    task = run_layers(order_of(keyed(range(1)), synchronizer=Answers(lambda layer: Undecidable())), Moves())
    assert ended(task) == [FAILED]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_failing_move_ends_the_whole_job(error: BaseException, code: LLMStatusCode) -> None:
    synchronizer = Answers()
    order = order_of(
        keyed(range(1)), keyed(range(3)), keyed(range(1, 3)), keyed(range(3, 4)), synchronizer=synchronizer
    )
    moves = Moves(fail_at=(1, 1), error=error)
    task = run_layers(order, moves)
    assert ended(task) == [OK, code, None, None]
    assert task.synchronize() is code
    assert moves.seen == [(0, 0), (1, 0), (1, 1)]
    assert [layer for layer, _ in synchronizer.calls] == [0, 1]


def test_a_config_with_layers_left_stays_undecided_when_another_fails() -> None:
    task = run_layers(order_of(keyed(range(3)), keyed(range(1, 2))), Moves(fail_at=(1, 1), error=PeerLost("gone")))
    assert ended(task) == [None, LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR]


def test_two_configs_of_one_cluster_have_a_result_each() -> None:
    order = order_of(keyed(range(1)), keyed(range(1)))
    task = run_layers(order, Moves(fail_at=(1, 0), error=PeerLost("gone")))
    assert ended(task) == [OK, LLMStatusCode.LLM_SUSPECT_REMOTE_ERROR]


def test_an_error_is_logged_with_its_trace_and_kept_without(caplog: pytest.LogCaptureFixture) -> None:
    def move(part: LayerPart) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise PeerLost("gone") from cause

    with caplog.at_level(logging.ERROR, "ray_kvfabric.endpoint.layer_task"):
        task = run_layers(order_of(keyed(range(2, 3))), move)
        ended(task)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "layer 2" in record.getMessage()
    assert "LLM_SUSPECT_REMOTE_ERROR" in record.getMessage()
    (error,) = task.errors
    assert isinstance(error, PeerLost)
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)


def test_the_logged_trace_names_the_line_and_the_cause() -> None:
    text: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text.append(self.format(record))

    def move(part: LayerPart) -> None:
        raise PeerLost("gone") from KeyError("the cause")

    log, handler = logging.getLogger("ray_kvfabric.endpoint.layer_task"), Keep()
    log.addHandler(handler)
    try:
        ended(run_layers(order_of(keyed(range(1))), move))
    finally:
        log.removeHandler(handler)
    assert "in move" in text[0]
    assert "the cause" in text[0]


def test_the_thread_is_named_and_is_no_daemon() -> None:
    found: list[threading.Thread] = []
    ended(run_layers(order_of(keyed(range(1))), lambda part: found.append(threading.current_thread())))
    assert found[0].name == "kvfabric-layers"
    assert not found[0].daemon
    assert found[0] is not threading.current_thread()


def test_a_passed_time_is_a_timeout_of_every_config_and_the_job_goes_on() -> None:
    started, ready = threading.Event(), threading.Event()

    def answer(layer: int) -> bool:
        started.set()
        return ready.wait(LIMIT_S)

    task = run_layers(order_of(keyed(range(1)), keyed(range(1, 2)), synchronizer=Answers(answer)), Moves())
    try:
        assert started.wait(LIMIT_S)
        for timeout in (0, 1, False):
            assert task.get_results(timeout) == [TIMEOUT, TIMEOUT]
            assert task.synchronize(timeout_in_millis=timeout) is TIMEOUT
        assert repr(task) == "<CacheTask: 2 configs, running>"
    finally:
        ready.set()
    assert task.synchronize(None) is OK
    assert ended(task) == [OK, OK]
    assert repr(task) == "<CacheTask: LLM_SUCCESS, LLM_SUCCESS>"


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [(1.0, TypeError), ("1", TypeError), (np.int64(1), TypeError), (-1, ValueError), (2**32, ValueError)],
)
def test_a_timeout_is_a_uint32(timeout: Any, kind: type[Exception]) -> None:
    task = run_layers(order_of(keyed(range(1))), Moves())
    for wait in (task.synchronize, task.get_results):
        with pytest.raises(kind, match="timeout_in_millis"):
            wait(timeout)
    assert task.synchronize(2**32 - 1) is OK


def test_a_timeout_counts_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    task = run_layers(order_of(keyed(range(1))), Moves())
    assert task.synchronize() is OK
    waits: list[float | None] = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: waits.append(timeout))
    task.synchronize(2500)
    task.get_results(True)
    assert waits == [2.5, 0.001]


def test_results_are_the_callers_to_change() -> None:
    task = run_layers(order_of(keyed(range(1))), Moves())
    task.get_results().clear()
    task.errors.clear()
    assert task.get_results() == [OK]
    assert task.errors == [None]
