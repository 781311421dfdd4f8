"""kvfabric doctor: a healthy machine, and what it says of a broken one."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ray_kvfabric.bench.endpoints import Target
from ray_kvfabric.bench.worker import Local
from ray_kvfabric.cli import check_copies, check_devices, check_host, check_ray
from ray_kvfabric.cli import doctor as doctor_module
from ray_kvfabric.cli.check_devices import DevicePair, check_device_transport
from ray_kvfabric.cli.device_end import Seen
from ray_kvfabric.cli.findings import Finding
from ray_kvfabric.cli.main import main
from ray_kvfabric.cli.wire import Wire
from ray_kvfabric.deadline import Deadline
from ray_kvfabric.errors import ConfigError, LinkFailed, NotLinked, PeerLost, TransferTimeout
from ray_kvfabric.transport.loopback import LoopbackLink
from ray_kvfabric.transport.registry import create
from ray_kvfabric.transport.shared_memory import SharedMemoryLink

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look for a running Ray is tried in the integration tests."""
    monkeypatch.setattr(check_ray, "_cluster", lambda: Finding("ray", "cluster", "note", "none runs here"))


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_a_healthy_machine() -> None:
    answer = doctor("--json")
    found = json.loads(answer.stdout)
    assert answer.exit_code == 0
    assert found["healthy"] is True
    assert set(found) == {"healthy", "kernel", "transports", "devices", "ray", "host"}
    assert {"loopback", "shared_memory", "process_vm"} <= set(found["transports"])
    for name in ("loopback", "shared_memory"):
        assert found["transports"][name]["detail"].startswith("works")
    assert {"memlock", "ptrace_scope", "boot id", "huge pages", "/dev/shm", "pidfd_open"} <= set(found["host"])


def test_it_fits_a_screen() -> None:
    answer = doctor()
    assert answer.exit_code == 0
    assert len(answer.stdout.splitlines()) <= 40
    assert answer.stdout.endswith("nothing needed is missing\n")


def test_an_impossible_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFABRIC_COPY", "magic")
    answer = doctor("--json")
    found = json.loads(answer.stdout)
    assert answer.exit_code == 1
    assert found["healthy"] is False
    assert found["kernel"]["native"]["state"] == "ok"
    assert found["kernel"]["chosen"]["state"] == "missing"
    assert "KVFABRIC_COPY" in found["kernel"]["chosen"]["remedy"]


def test_a_kernel_that_was_not_built_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ConfigError(f"the {name} copy kernel cannot be loaded")

    monkeypatch.setattr(check_copies, "load", refuse)
    answer = doctor()
    assert answer.exit_code == 1
    assert "MISSING native" in answer.stdout
    assert "reinstall" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("missing: native, chosen")


def test_the_twin_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFABRIC_COPY", "python")
    assert [finding.state for finding in check_copies.check_kernel()] == ["ok", "note"]


def test_a_transport_that_fails_its_trial_is_missing_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise LinkFailed("a seccomp profile forbids it")

    monkeypatch.setattr(SharedMemoryLink, "open_cache", refuse)
    finding = check_copies._check(create("shared_memory"), DevicePair(Seen()))
    assert finding.state == "missing"
    assert finding.detail == "not available: a seccomp profile forbids it"
    assert finding.remedy


def test_a_transport_that_moves_nothing_fails_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoopbackLink, "_write", lambda *_: (0, 1, 0))
    target = Local(Target(2))
    assert "holds other bytes" in str(check_copies.try_push(create("loopback"), target))
    target.close()


@pytest.mark.parametrize(("version", "state"), [("2.60.0", "ok"), ("2.101.1", "ok"), ("2.9.3", "missing")])
def test_versions_of_ray(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    monkeypatch.setattr(check_ray, "version", lambda _: version)
    assert check_ray.check_ray()[0].state == state


def test_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(check_ray, "version", absent)
    (finding,) = check_ray.check_ray()
    assert (finding.state, finding.remedy) == ("missing", "pip install 'ray>=2.60'")


def test_a_strict_ptrace_scope_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "scope").write_text("2\n")
    monkeypatch.setattr(check_host, "_PTRACE_SCOPE", tmp_path / "scope")
    assert check_host._ptrace().state == "note"


def test_findings_of_one_name_do_not_hide_each_other() -> None:
    findings = [*check_copies.check_kernel(), *check_host.check_host(), *check_devices.check_devices(Seen())]
    assert len({(finding.area, finding.name) for finding in findings}) == len(findings)
    assert doctor_module.is_healthy(findings)


# ---- devices


TWO_NPUS = Seen("npu", ("4", "6"), "Ascend910B3", "torch 2.13.0")


class Good:
    """An End without a device, in a child of its own."""

    def __init__(self, cluster_id: int, kind: str, number: str, pipe: object) -> None:
        self.about = f"{cluster_id} on {kind} {number}"

    def open_device(self) -> None:
        return

    def open(self, transport: str) -> str:
        return f"{transport} of {self.about}"

    def push(self, target: str) -> None:
        assert target == "hccl of 2 on npu 6"

    def first_wrong(self) -> str | None:
        return None

    def close(self) -> None:
        return


class Shut(Good):
    def open_device(self) -> None:
        raise RuntimeError("Unsupported soc version\nand a long story")


class Wrong(Good):
    def first_wrong(self) -> str | None:
        return "tensor 0, block 7 holds other bytes"


class Deadly(Good):
    def push(self, target: str) -> None:
        os._exit(3)


class DeadlyLook:
    def seen(self) -> Seen:
        os._exit(3)

    def close(self) -> None:
        return


@pytest.fixture
def devices() -> Iterator[DevicePair]:
    with DevicePair(TWO_NPUS) as pair:
        yield pair


def test_without_a_device_its_transports_are_notes_and_nobody_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_devices, "Spawned", None)
    assert check_devices.look_at_devices() == Seen()
    finding = check_device_transport(create("device_ipc"), DevicePair(Seen()))
    assert (finding.state, finding.detail) == ("note", "installed; not tried: no device was found")


def test_a_look_that_ends_its_process_is_told_and_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_devices, "find_spec", lambda _: True)
    monkeypatch.setattr(check_devices, "Look", DeadlyLook)
    seen = check_devices.look_at_devices()
    assert "exit code 3" in str(seen.error)
    assert [finding.state for finding in check_devices.check_devices(seen)] == ["note", "ok", "note"]
    assert "exit code 3" in check_device_transport(create("device_ipc"), DevicePair(seen)).detail


def test_each_end_is_pinned_to_a_device_and_bytes_that_arrive_are_ok(
    monkeypatch: pytest.MonkeyPatch, devices: DevicePair
) -> None:
    monkeypatch.setattr(check_devices, "End", Good)
    monkeypatch.setattr("ray_kvfabric.transport.hccl.find_spec", lambda _: True)
    finding = check_device_transport(create("hccl"), devices)
    assert (finding.state, finding.detail) == ("ok", "works: from npu 4 to 6")


@pytest.mark.parametrize(
    ("end", "said"),
    [(Wrong, "tensor 0, block 7 holds other bytes"), (Deadly, "exit code 3"), (Shut, "Unsupported soc version")],
)
def test_a_push_that_fails_is_told_and_the_next_one_is_tried_anew(
    monkeypatch: pytest.MonkeyPatch, devices: DevicePair, end: type[Good], said: str
) -> None:
    monkeypatch.setattr(check_devices, "End", end)
    told = devices.try_push("hccl")
    assert str(told).endswith(said)
    if end is Shut:  # the device's own fault: nothing else is tried on it
        monkeypatch.setattr(check_devices, "Spawned", None)
        assert devices.try_push("device_ipc") == told
    elif end is Deadly:
        monkeypatch.setattr(check_devices, "End", Good)
        assert devices.try_push("hccl") is None


def test_what_needs_two_npus_is_not_tried_on_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_kvfabric.transport.hccl.find_spec", lambda _: True)
    for seen in (Seen("npu", ("0",)), Seen("cuda", ("0", "1"))):
        assert "it needs two NPUs" in check_device_transport(create("hccl"), DevicePair(seen)).detail


@pytest.mark.parametrize(
    ("chip", "state", "said"),
    [
        ("Ascend910_9391", "ok", "stated as supported"),
        ("Ascend910B3", "note", "not in the A2 training series"),
        ("Ascend310B1", "note", "Atlas 200I/500 A2): push_blocks is stated as not supported"),
        ("Ascend310P3", "note", "Atlas inference series): push_blocks is stated as not supported"),
        ("Ascend910A", "note", "Atlas training series): push_blocks is stated as not supported"),
        (None, "ok", "none known"),
    ],
)
def test_a_chip_that_nobody_vouches_for_is_a_note(chip: str | None, state: str, said: str) -> None:
    finding = check_devices.check_devices(Seen("npu", ("0",), chip))[1]
    assert finding.state == state
    assert said in finding.detail


# ---- questions between the two ends


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    pipes = multiprocessing.Pipe()
    wires = Wire(pipes[0]), Wire(pipes[1])
    yield wires
    for wire in wires:
        wire.close()


def ask(wire: Wire, question: str, seconds: float = 10.0, **arguments: object) -> object:
    return wire.ask(None, question, arguments, Deadline.after(seconds))  # type: ignore[arg-type]  # there is one peer


def test_an_answer_may_ask_back_while_its_question_waits(wires: tuple[Wire, Wire]) -> None:
    here, there = wires
    here.answer = lambda question, arguments: arguments["number"] + 1
    there.answer = lambda question, arguments: (question, ask(there, "back", **arguments))
    assert ask(here, "out", number=4) == ("out", 5)


def test_slow_answers_do_not_hold_up_others(wires: tuple[Wire, Wire]) -> None:
    here, there = wires
    go_on = threading.Event()
    there.answer = lambda question, _: go_on.wait(10) if question == "slow" else go_on.set()
    told: list[object] = []
    slow = threading.Thread(target=lambda: told.append(ask(here, "slow")))
    slow.start()
    time.sleep(0.05)
    assert ask(here, "quick") is None
    slow.join(10)
    assert told == [True]


def test_errors_cross_the_wire_and_silence_has_an_end(wires: tuple[Wire, Wire]) -> None:
    here, there = wires

    def answer(question: str, arguments: dict[str, Any]) -> object:
        if question == "silent":
            time.sleep(0.5)
        raise NotLinked("nobody") if question == "known" else KeyError("odd")

    there.answer = answer
    with pytest.raises(NotLinked, match="nobody"):
        ask(here, "known")
    with pytest.raises(Exception, match="KeyError: 'odd'"):
        ask(here, "unknown")
    with pytest.raises(TransferTimeout):
        ask(here, "silent", 0.1)


def test_who_asks_a_process_that_dies_learns_it(wires: tuple[Wire, Wire]) -> None:
    ours, theirs = multiprocessing.Pipe()
    wire = Wire(ours)
    threading.Timer(0.1, theirs.close).start()
    with pytest.raises(PeerLost):
        ask(wire, "anything")
