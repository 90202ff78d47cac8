"""The error for what a user did, and the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """What the caller gave does not fit; the message says what does, and the way out.

    Scripts show it as one line. Every other error is a fault of a program and keeps its traceback.
    """


class MissingExtra(UsageError, ImportError):
    """A package of one of the extras is not installed; the message says how to install it."""


def nearest(value: str, valid: Iterable[str]) -> str:
    """Says which of the valid names is meant, for the end of an error message.

    Args:
        value: What the user wrote.
        valid: The names to choose from.

    Returns:
        A sentence that begins with a space; empty if no name is near.
    """
    match = difflib.get_close_matches(value, list(valid), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
