"""The package's two names, and attributes that are imported when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

NAME = "llm_datadist"  # what programs import
HOME = "ray_kvfabric.integrations.llm_datadist"  # where it lies, and what the classes' __module__ says


def home_of(public: str) -> str:
    """The real name of the module that programs import as `public`."""
    return HOME + public.removeprefix(NAME)


def no_attribute(module: str, name: str) -> AttributeError:
    """For the module of that real name; programs look for its public one in the text."""
    return AttributeError(f"module {NAME + module.removeprefix(HOME)!r} has no attribute {name!r}")


def lazy_submodules(package: str, *names: str) -> Callable[[str], ModuleType]:
    """A `__getattr__` for a package: these submodules are its attributes without having been imported."""

    def load(name: str) -> ModuleType:
        if name not in names:
            raise no_attribute(package, name)
        return import_module(f"{package}.{name}")

    return load
