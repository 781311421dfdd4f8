"""kvfabric doctor: a healthy machine, and what it says of a broken one."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ray_kvfabric.bench.endpoints import Target
from ray_kvfabric.bench.worker import Local
from ray_kvfabric.cli import check_copies, check_host, check_ray
from ray_kvfabric.cli import doctor as doctor_module
from ray_kvfabric.cli.findings import Finding
from ray_kvfabric.cli.main import main
from ray_kvfabric.errors import ConfigError, LinkFailed
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
    finding = check_copies._check(create("shared_memory"))
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


def test_an_npu_is_named_with_what_is_stated_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_host, "device_chip_name", lambda: "Ascend910B3")
    chip = check_host._chip()
    assert "Atlas A2" in chip.detail
    assert "not in the A2 training series" in chip.detail


def test_a_strict_ptrace_scope_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "scope").write_text("2\n")
    monkeypatch.setattr(check_host, "_PTRACE_SCOPE", tmp_path / "scope")
    assert check_host._ptrace().state == "note"


def test_findings_of_one_name_do_not_hide_each_other() -> None:
    findings = [*check_copies.check_kernel(), *check_host.check_host(), *check_host.check_devices()]
    assert len({(finding.area, finding.name) for finding in findings}) == len(findings)
    assert doctor_module.is_healthy(findings)
