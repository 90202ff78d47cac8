"""What is loaded when it is first used: `hf-losses list` shall not wait for torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy(name: str) -> ModuleType:
    """A module that is imported when something of it is asked for.

    Args:
        name: Its name, without dots.

    Returns:
        The module; as it is, if it has been imported already.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    # As the documentation of importlib has it.
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for a package whose public names are imported with their first use.

    Args:
        package: Its `__name__`.
        modules: By public name, the module below `hf_losses` that it stands in.
    """

    def __getattr__(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(f"hf_losses.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
