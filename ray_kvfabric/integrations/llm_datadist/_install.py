"""install(): makes `import llm_datadist` this package, under both names the very same module objects."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from ray_kvfabric.config import set_environment_default
from ray_kvfabric.integrations.llm_datadist import _options
from ray_kvfabric.integrations.llm_datadist._lazy import HOME, NAME, home_of


class _Alias(MetaPathFinder, Loader):
    """Answers every import of `llm_datadist...` with the module of the same place in this package.

    It stands first in sys.meta_path. After it the path of the parent would be searched, which is this folder too,
    and the same file would become a second module.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_public(fullname) or find_spec(home_of(fullname)) is None:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands out what stands in sys.modules when this returns.
        sys.modules[module.__name__] = import_module(home_of(module.__name__))


_alias = _Alias()


def install(
    *,
    replace: bool = False,
    fabric: str = NAME,
    absent_peers: str | None = None,
    emulated_device: str | None = None,
) -> bool:
    """True when `import llm_datadist` is this package from now on, in this process.

    A real llm_datadist, imported or importable, stays unless `replace`: the answer is then False and nothing
    changed. Programs meet in the Ray cluster's fabric of that name. Calling again replaces the options. Raises
    ConfigError for an option that is unknown.
    """
    options = _options.Options(fabric=fabric, absent_peers=absent_peers, emulated_device=emulated_device)
    if _alias not in sys.meta_path:
        if not replace and _is_real_present():
            return False
        _forget_modules()
        sys.meta_path.insert(0, _alias)
        import_module(NAME)
        set_environment_default("AUTO_USE_UC_MEMORY", "0")  # as importing LLM-DataDist does (contract 2.2)
    _options.choose(options)
    return True


def uninstall() -> None:
    """Takes the name `llm_datadist` back and forgets the options. Objects that were made stay good."""
    if _alias in sys.meta_path:
        sys.meta_path.remove(_alias)
        _forget_modules()
    _options.choose(_options.Options())


def _is_public(name: str) -> bool:
    return name == NAME or name.startswith(f"{NAME}.")


def _is_real_present() -> bool:
    imported = sys.modules.get(NAME)
    if imported is not None:
        return imported.__name__ != HOME
    return find_spec(NAME) is not None


def _forget_modules() -> None:
    for name in [each for each in sys.modules if _is_public(each)]:
        del sys.modules[name]
