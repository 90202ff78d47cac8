"""Modules that are loaded when they are first used: `hf-losses list` shall not wait for torch."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


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
