"""Runs as processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hf_losses.compare.engines import guard
from hf_losses.compare.engines.run import POLL, Ended, Run, RunsRefused
from hf_losses.compare.plan import Plan
from hf_losses.options import threads_of


class LocalPool:
    """Processes of this machine, each with its share of the cores or GPUs.

    They end with this process, even if it is killed.

    Args:
        parallel: Number of parallel runs.
    """

    def __init__(self, parallel: int) -> None:
        self.parallel = parallel
        self.environments: list[dict[str, str]] = []
        self.running: dict[int, tuple[Run, subprocess.Popen[bytes], float]] = {}  # By slot.

    def prepare(
        self, plan: Plan, folder: Path, *, keep_models: bool, say: Callable[[str], None]
    ) -> None:
        """See `Engine`."""
        self.environments = environments(plan, self.parallel)

    def has_room(self) -> bool:
        """See `Engine`."""
        return len(self.running) < self.parallel

    def start(self, run: Run) -> None:
        """See `Engine`."""
        slot = next(slot for slot in range(self.parallel) if slot not in self.running)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with guard.open_log(run.beside("log")) as log:
            shutil.rmtree(run.folder, ignore_errors=True)
            process = guard.start(run.command, log, self.environments[slot])
        self.running[slot] = run, process, started

    def ended(self) -> list[Ended]:
        """See `Engine`."""
        ended = []
        for slot, (run, process, started) in list(self.running.items()):
            if (code := process.poll()) is not None:
                del self.running[slot]
                guard.end([process])
                ended.append(Ended(run, code, time.monotonic() - started))
        if not ended:
            time.sleep(POLL)
        return ended

    def stop(self) -> None:
        """See `Engine`."""
        guard.end(process for _, process, _ in self.running.values())
        self.running.clear()


def environments(plan: Plan, jobs: int) -> list[dict[str, str]]:
    """The environment variables of each parallel run: its share of the cores, and its GPUs.

    Args:
        plan: The plan.
        jobs: Number of parallel runs.

    Raises:
        RunsRefused: If a launcher's job would have no GPU.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if not gpus or not torch.cuda.is_available():
        return [threads_of(plan.threads)] * jobs
    if plan.launcher and jobs > len(gpus):
        raise RunsRefused(f"--jobs {jobs} leaves some without a GPU; there are {len(gpus)}")
    shares = [gpus[job::jobs] if plan.launcher else [gpus[job % len(gpus)]] for job in range(jobs)]
    return [
        # A launcher starts a process for each GPU.
        {"CUDA_VISIBLE_DEVICES": ",".join(share)} | threads_of(max(1, plan.threads // len(share)))
        for share in shares
    ]
