"""The compatibility page against the package: what it lists is there, and what is there is listed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ray_kvfabric.integrations.llm_datadist import compatibility
from ray_kvfabric.integrations.llm_datadist.compatibility import ADDITIONS, CLASSES, ENUMS, OTHERS, V1
from ray_kvfabric.integrations.llm_datadist.deviations import DEVIATIONS

MEMBERS = [(name, member) for names in (CLASSES, ENUMS, OTHERS) for name, listed in names.items() for member in listed]
SHOWN = {f"{name.rpartition('.')[2]}.{member}" for name, member in MEMBERS} | {
    name.rpartition(".")[2] for name in (*CLASSES, *ENUMS, *OTHERS)
}


@pytest.fixture
def instances(llm_datadist: Any) -> dict[str, Any]:
    """Of the classes whose listed names are not all in the class itself."""
    return {
        "LLMDataDist": llm_datadist.LLMDataDist(llm_datadist.LLMRole.MIX, 1),
        "LlmConfig": llm_datadist.LlmConfig(),
        "TransferConfig": llm_datadist.TransferConfig(1, []),
        "TransferWithCacheKeyConfig": llm_datadist.TransferWithCacheKeyConfig(
            llm_datadist.BlocksCacheKey(1), range(1), range(1)
        ),
    }


def reach(package: ModuleType, name: str) -> Any:
    """llm_datadist.<name>, a module of that name included."""
    try:
        return import_module(f"llm_datadist.{name}")
    except ModuleNotFoundError:
        home, _, last = name.rpartition(".")
        return getattr(import_module(f"llm_datadist.{home}") if home else package, last)


def test_the_page_is_what_the_tables_say() -> None:
    path = Path(compatibility.__file__).with_name("COMPATIBILITY.md")
    assert path.read_text() == compatibility.page(), (
        f"write it anew: python -m {compatibility.__name__} > {path.name}, beside the package"
    )


@pytest.mark.parametrize(("name", "member"), MEMBERS, ids=[f"{name}.{member}" for name, member in MEMBERS])
def test_a_listed_member_is_there(llm_datadist: ModuleType, instances: dict[str, Any], name: str, member: str) -> None:
    found = instances.get(name, reach(llm_datadist, name))
    assert member in dir(found) or hasattr(found, member)  # a property that raises is there; a lazy table is not in dir


def test_every_exported_name_is_listed(llm_datadist: Any) -> None:
    shown = {*CLASSES, *ENUMS, *OTHERS, *V1}
    assert [name for name in llm_datadist.__all__ if name not in shown] == []


@pytest.mark.parametrize("name", [*CLASSES, *ENUMS])
def test_what_a_class_has_is_listed(llm_datadist: ModuleType, name: str) -> None:
    found = reach(llm_datadist, name)
    if name in ENUMS:
        assert [each.name for each in found] == list(ENUMS[name])
        return
    public = {each for kind in found.__mro__ for each in vars(kind) if kind is not object and each[0] != "_"}
    inherited = {"args", "with_traceback", "add_note"}  # of every exception
    assert sorted(public - inherited - set(CLASSES[name])) == sorted(ADDITIONS.get(name, ()))


@pytest.mark.parametrize("name", V1)
def test_what_is_not_here_is_an_import_error(llm_datadist: ModuleType, name: str) -> None:
    with pytest.raises(ImportError):
        reach(llm_datadist, name)


@pytest.mark.parametrize("name", compatibility.INTERNALS)
def test_what_is_not_here_is_not_found(llm_datadist: ModuleType, name: str) -> None:
    with pytest.raises(AttributeError):
        reach(llm_datadist, name)


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda each: each.name)
def test_a_deviation_shows_in_names_that_are_listed(deviation: Any) -> None:
    assert set(deviation.names) - SHOWN == set()
