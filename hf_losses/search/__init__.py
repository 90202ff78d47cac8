"""A search for the loss and the learning rate: its space, and its study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.search.space import SearchArguments

# The module of each public name, imported with the first use of the name.
_MODULES = {"SearchArguments": "search.space"}

__all__ = ["SearchArguments"]

__getattr__ = attributes(__name__, _MODULES)
