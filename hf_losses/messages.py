"""Parts of error messages: the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
