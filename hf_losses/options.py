"""Fields of argument classes, and the number of cores for each process."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any

# The number of processes on this machine, which launchers such as torchrun set.
LOCAL_PROCESSES = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
CORES = max(1, (os.cpu_count() or 1) // LOCAL_PROCESSES)


def option(default: Any, text: str) -> Any:
    """A field of an argument class, with the help text shown by `--help`."""
    return field(default=default, metadata={"help": text})
