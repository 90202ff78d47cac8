"""Errors that a user can correct, and the nearest valid name for a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The caller's input does not fit; the message says which input does, or what to do.

    Scripts show it as one line. Every other error is a bug and keeps its traceback.
    """


class MissingExtra(UsageError, ImportError):
    """A package of one of the extras is not installed; the message says how to install it."""


def nearest(value: str, valid: Iterable[str]) -> str:
    """Suggests one of the valid names, for the end of an error message.

    Args:
        value: What the user wrote.
        valid: The names to choose from.

    Returns:
        A sentence that begins with a space; empty if no name is near.
    """
    match = difflib.get_close_matches(value, list(valid), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
