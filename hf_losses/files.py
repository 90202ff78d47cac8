"""Files that are written completely or not at all, and strict JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a temporary file that replaces `path` when the block ends without an error.

    Args:
        path: The file; its folder must exist.

    Yields:
        The temporary file, in the same folder.

    Raises:
        OSError: If it cannot be written; the error names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file)  # Else a machine without power may have renamed what it never wrote.
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, completely or not at all.

    Args:
        path: The file.
        content: JSON values; numbers that are not finite become null.
    """
    text = json.dumps(strict(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())


def strict(value: Any) -> Any:
    """Replaces numbers that are not finite, which JSON does not have, by None.

    Args:
        value: Dicts, lists, tuples, text and numbers; not changed themselves.
    """
    if isinstance(value, Mapping):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
