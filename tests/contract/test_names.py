"""Sections 2 and 18: names, module layout, install(), what an import does."""

from __future__ import annotations

import _thread
import pickle
import sys
import time
from importlib import import_module
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from ray_kvfabric.errors import ConfigError
from ray_kvfabric.integrations import llm_datadist as package
from ray_kvfabric.integrations.llm_datadist import _options, install, uninstall
from ray_kvfabric.integrations.llm_datadist.deviations import DEVIATIONS
from ray_kvfabric.integrations.llm_datadist.utils import log
from tests.contract.conftest import deviates, python, refused

HOME = package.__name__
NAMES = [
    "LLMClusterInfo",
    "LLMStatusCode",
    "LLMException",
    "LLMRole",
    "LlmConfig",
    "LLMConfig",
    "DataType",
    "Status",
    "CacheDesc",
    "CacheKey",
    "CacheKeyByIdAndIndex",
    "KvCache",
    "Cache",
    "BlocksCacheKey",
    "LLMDataDist",
    "Placement",
    "RegisterMemStatus",
    "LayerSynchronizer",
    "TransferConfig",
    "CacheTask",
    "TransferWithCacheKeyConfig",
    "Memtype",
    "MemInfo",
    "TensorDesc",
    "Tensor",
    "KvCacheManager",
]
V1_NAMES = NAMES[-3:]
MODULES = [
    "configs",
    "status",
    "data_type",
    "utils",
    "utils.utils",
    "utils.log",
    "v2",
    "v2.llm_types",
    "v2.llm_utils",
    "v2.cache_manager",
    "v2.llm_datadist",
    "v2.config",
    "llm_datadist_wrapper",
    "metadef_wrapper",
]


class TestNames:
    def test_all_has_26_names_in_order(self, llm_datadist: ModuleType) -> None:
        assert llm_datadist.__all__ == NAMES

    def test_v2_list_is_the_first_23(self, llm_datadist: Any) -> None:
        assert llm_datadist.v2_list == NAMES[:23]

    def test_every_v2_name_is_there(self, llm_datadist: Any) -> None:
        assert [name for name in llm_datadist.v2_list if not hasattr(llm_datadist, name)] == []

    def test_llm_config_has_two_names(self, llm_datadist: Any) -> None:
        assert llm_datadist.LLMConfig is llm_datadist.LlmConfig

    def test_cache_manager_is_not_exported(self, llm_datadist: ModuleType) -> None:
        assert not hasattr(llm_datadist, "CacheManager")

    @pytest.mark.parametrize("name", V1_NAMES)
    def test_v1_names_are_import_errors_without_their_package(self, llm_datadist: ModuleType, name: str) -> None:
        with pytest.raises(ModuleNotFoundError, match="llm_datadist_v1"):
            getattr(llm_datadist, name)
        with pytest.raises(ImportError):
            exec(f"from llm_datadist import {name}")

    @pytest.mark.parametrize("name", V1_NAMES)
    def test_v1_names_are_those_of_their_package(
        self, llm_datadist: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        v1 = ModuleType("llm_datadist_v1")
        setattr(v1, name, object())
        monkeypatch.setitem(sys.modules, "llm_datadist_v1", v1)
        assert getattr(llm_datadist, name) is getattr(v1, name)

    def test_another_name_is_an_attribute_error(self, llm_datadist: Any) -> None:
        with refused(AttributeError, "module 'llm_datadist' has no attribute 'Nothing'"):
            _ = llm_datadist.Nothing

    def test_star_import_fails_on_the_v1_names(self, llm_datadist: ModuleType) -> None:
        with pytest.raises(ModuleNotFoundError, match="llm_datadist_v1"):
            exec("from llm_datadist import *", {})


class TestModules:
    @pytest.mark.parametrize("name", MODULES)
    def test_a_module_is_one_object_under_both_names(self, llm_datadist: ModuleType, name: str) -> None:
        public = import_module(f"llm_datadist.{name}")
        assert public is import_module(f"{HOME}.{name}")
        assert sys.modules[f"llm_datadist.{name}"] is public

    @pytest.mark.parametrize("name", MODULES)
    def test_a_module_is_an_attribute_of_its_parent(self, llm_datadist: ModuleType, name: str) -> None:
        reached: Any = llm_datadist
        for part in name.split("."):
            reached = getattr(reached, part)
        assert reached is sys.modules[f"{HOME}.{name}"]

    def test_modules_beyond_the_listed_ones_are_not_loaded_twice(self, llm_datadist: ModuleType) -> None:
        assert import_module("llm_datadist._options") is _options

    def test_an_unknown_module_is_not_found(self, llm_datadist: ModuleType) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"llm_datadist\.v2\.nothing"):
            import_module("llm_datadist.v2.nothing")

    @pytest.mark.parametrize("name", ["utils", "v2", "data_type"])
    def test_modules_have_no_other_attributes(self, llm_datadist: ModuleType, name: str) -> None:
        with refused(AttributeError, f"module 'llm_datadist.{name}' has no attribute 'nothing'"):
            _ = import_module(f"llm_datadist.{name}").nothing

    def test_import_as(self, llm_datadist: ModuleType) -> None:
        import llm_datadist.v2.llm_types as types

        assert types.CacheDesc is llm_datadist.CacheDesc

    @pytest.mark.parametrize("name", ["v2.config", "v2.llm_datadist"])
    def test_a_patch_by_the_public_name_reaches_the_code(self, llm_datadist: ModuleType, name: str) -> None:
        with mock.patch(f"llm_datadist.{name}.EngineConfig") as patched:
            assert import_module(f"{HOME}.{name}").EngineConfig is patched

    def test_the_native_modules_can_be_imported(self, llm_datadist: ModuleType) -> None:
        from llm_datadist import llm_datadist_wrapper, metadef_wrapper

        assert llm_datadist_wrapper.kSuccess == 0
        assert metadef_wrapper.__doc__

    def test_a_pickle_loads_where_nothing_was_installed(self, llm_datadist: Any) -> None:
        desc = llm_datadist.CacheDesc(2, [4, 8], llm_datadist.DataType.DT_INT8)
        load = f"import pickle; print(pickle.loads({pickle.dumps(desc)!r}))"
        assert python(load) == repr(desc)


class TestInstall:
    @pytest.fixture(autouse=True)
    def _afresh(self) -> Any:
        uninstall()
        yield
        uninstall()

    def test_says_true_and_makes_the_name_ours(self) -> None:
        assert install() is True
        assert import_module("llm_datadist") is package

    def test_may_be_called_again(self) -> None:
        assert install()
        assert install()
        uninstall()
        with pytest.raises(ModuleNotFoundError, match="llm_datadist"):
            import_module("llm_datadist")

    def test_the_last_call_s_options_count(self) -> None:
        install(absent_peers="loopback")
        assert _options.current() == _options.Options(absent_peers="loopback")
        install(emulated_device="host")
        assert _options.current() == _options.Options(emulated_device="host")

    def test_uninstall_takes_every_name_and_the_options(self) -> None:
        install(absent_peers="loopback")
        import_module("llm_datadist.v2.llm_types")
        uninstall()
        assert [name for name in sys.modules if name.split(".")[0] == "llm_datadist"] == []
        assert _options.current() == _options.Options()

    @pytest.mark.parametrize(
        ("argument", "value"),
        [("absent_peers", "yes"), ("emulated_device", "yes"), ("fabric", ""), ("fabric", "a:b"), ("fabric", None)],
    )
    def test_an_unknown_option_is_named_and_changes_nothing(self, argument: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=argument):
            install(**{argument: value})
        assert "llm_datadist" not in sys.modules
        assert _options.current() == _options.Options()

    def test_a_real_package_that_was_imported_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ModuleType("llm_datadist")
        monkeypatch.setitem(sys.modules, "llm_datadist", real)
        assert install(absent_peers="loopback") is False
        assert import_module("llm_datadist") is real
        assert _options.current() == _options.Options()

    def test_a_real_package_on_the_path_stays_unless_replaced(self, tmp_path: Any) -> None:
        (tmp_path / "llm_datadist").mkdir()
        (tmp_path / "llm_datadist" / "__init__.py").touch()
        told = python(
            f"import os; from {HOME} import install\n"
            "def who(): import llm_datadist; return hasattr(llm_datadist, 'v2_list')\n"
            "print(install(), 'AUTO_USE_UC_MEMORY' in os.environ, who(), install(replace=True), who())",
            tmp_path,
        )
        assert told == "False False False True True"


class TestSideEffects:
    def test_importing_starts_nothing(self) -> None:
        told = python(
            f"import sys, os, threading, atexit, {HOME}\n"
            "print([each for each in ('ray', 'torch', 'llm_datadist') if each in sys.modules], "
            "threading.active_count(), 'AUTO_USE_UC_MEMORY' in os.environ)"
        )
        assert told == "[] 1 False"

    @pytest.mark.parametrize(("given", "seen"), [({}, "0"), ({"AUTO_USE_UC_MEMORY": "1"}, "1")])
    def test_installing_defaults_auto_use_uc_memory(self, given: dict[str, str], seen: str) -> None:
        code = f"import os; from {HOME} import install; install(); print(os.environ['AUTO_USE_UC_MEMORY'])"
        assert python(code, **given) == seen


LOG = f"""
import logging
from {HOME}.utils import log
assert not logging.getLogger("LLM_DATADIST").handlers
for say in (log.debug, log.info, log.warning, log.error):
    say("%s", say.__name__)
"""


class TestLog:
    @pytest.mark.parametrize(
        ("level", "heard"),
        [("0", 4), ("1", 3), ("2", 2), ("3", 1), ("4", 1), ("", 1), ("debug", 1), (None, 1)],
    )
    def test_the_level_is_ascend_s(self, level: str | None, heard: int) -> None:
        told = python(LOG, **({} if level is None else {"ASCEND_GLOBAL_LOG_LEVEL": level}))
        lines = told.splitlines()
        assert [line.split()[-1] for line in lines] == ["debug", "info", "warning", "error"][-heard:]
        assert all("LLM_DATADIST" in line for line in lines)

    def test_a_line_names_who_logged_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        log.error("here")
        assert "[test_names.py:" in capsys.readouterr().out

    def test_find_caller_returns_at_the_top_of_a_stack(self) -> None:
        """list.extend and map have no frames: _find_caller's is the thread's only one."""
        found: list[tuple[object, ...]] = []
        _thread.start_new_thread(found.extend, (map(log._find_caller, [False]),))
        until = time.monotonic() + 5
        while not found and time.monotonic() < until:
            time.sleep(0.001)
        assert [each[2] for each in found] == ["_find_caller"]

    def test_find_caller_knows_the_stack(self) -> None:
        assert "test_find_caller_knows_the_stack" in (log._find_caller(stack_info=True)[3] or "")

    def test_a_refusal_is_not_logged(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert deviates("unlogged_refusals")
        with pytest.raises(TypeError):
            package.LlmConfig().listen_ip_info = 1  # type: ignore[assignment]
        assert capsys.readouterr().out == ""


class TestDeviations:
    def test_names_are_unique(self) -> None:
        names = [each.name for each in DEVIATIONS]
        assert sorted(set(names)) == sorted(names)

    @pytest.mark.parametrize("name", [each.name for each in DEVIATIONS])
    def test_a_test_meets_each(self, name: str, request: pytest.FixtureRequest) -> None:
        tests = (request.config.rootpath / "tests").rglob("test_*.py")
        assert any(f'deviates("{name}")' in path.read_text() for path in tests)
