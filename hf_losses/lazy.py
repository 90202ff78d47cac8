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
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    # This is the recipe in the documentation of importlib.
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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
