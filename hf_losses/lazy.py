"""Modules that are loaded at their first use, so that `hf-losses list` does not wait for torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy(name: str) -> ModuleType:
    """A module whose code runs when one of its attributes is first read.

    Args:
        name: The module's name, without dots.

    Returns:
        The module; if it has been imported already, that one.

    Raises:
        ModuleNotFoundError: If the module is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _Lazy(name)


class _Lazy(ModuleType):
    """Stands for a module that is imported when one of its attributes is first read.

    Since Python 3.12 importlib's LazyLoader cannot load a module that deletes its own attributes,
    as torch does.
    """

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # From now on as fast as the module itself.
        return value


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package whose public names are imported with their first use.

    Args:
        package: The package's `__name__`.
        modules: For each public name its module, without the leading `hf_losses.`.
    """

    def __getattr__(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"hf_losses.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
