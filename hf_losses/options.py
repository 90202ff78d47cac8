"""Fields of argument classes, and the number of cores for each process."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any

# The number of processes on this machine, which launchers such as torchrun set.
LOCAL_PROCESSES = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
CORES = max(1, (os.cpu_count() or 1) // LOCAL_PROCESSES)
# Beside OMP_NUM_THREADS it says that the number is meant, and is not a launcher's default of 1.
THREADS = "HF_LOSSES_THREADS"


def threads_of(number: int) -> dict[str, str]:
    """The environment of a process that is to compute with so many threads."""
    return {"OMP_NUM_THREADS": str(number), THREADS: str(number)}


def option(default: Any, text: str) -> Any:
    """A field of an argument class, with the help text shown by `--help`."""
    return field(default=default, metadata={"help": text})
