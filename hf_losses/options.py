"""Fields of argument classes, and the number of cores for each process."""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any

# The number of processes on this machine, which launchers such as torchrun set.
LOCAL_PROCESSES = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
# The cores of a run, all its processes together. Beside OMP_NUM_THREADS it says that the number is
# meant, and is not a launcher's default of 1.
THREADS = "HF_LOSSES_THREADS"


def cores() -> int:
    """The cores for this process: its share of those that a run, or the container, may use."""
    from joblib import cpu_count  # Knows affinity and control groups.

    return max(1, int(os.environ.get(THREADS) or cpu_count()) // LOCAL_PROCESSES)


def threads_of(number: int, processes: int = 1) -> dict[str, str]:
    """The environment of a run that is to compute with so many threads, all processes together."""
    return {"OMP_NUM_THREADS": str(max(1, number // processes)), THREADS: str(number)}


def option(default: Any, text: str) -> Any:
    """A field of an argument class, with the help text shown by `--help`."""
    return field(default=default, metadata={"help": text})
