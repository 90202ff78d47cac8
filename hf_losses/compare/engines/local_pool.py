"""Runs as processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
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
        self.launcher: list[str] = []
        self.running: dict[int, tuple[Run, subprocess.Popen[bytes], float]] = {}  # By slot.

    def prepare(
        self, plan: Plan, folder: Path, *, keep_models: bool, say: Callable[[str], None]
    ) -> None:
        """See `Engine`."""
        self.environments = environments(plan, self.parallel)
        self.launcher = plan.launcher

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
            process = guard.start(
                run.command if self.parallel == 1 else beside_others(run.command, self.launcher),
                log,
                self.environments[slot],
            )
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

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count or "--use_cpu" in plan.arguments:
        return [threads_of(plan.threads)] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(count)))
    if all(map(str.isdecimal, gpus)):
        gpus = gpus[:count]  # A list from elsewhere may name more than there are.
    if plan.launcher and jobs > len(gpus):
        raise RunsRefused(f"--jobs {jobs} leaves some without a GPU; there are {len(gpus)}")
    shares = [gpus[job::jobs] if plan.launcher else [gpus[job % len(gpus)]] for job in range(jobs)]
    return [
        # A launcher starts a process for each GPU.
        {"CUDA_VISIBLE_DEVICES": ",".join(share)} | threads_of(plan.threads, len(share))
        for share in shares
    ]


def beside_others(command: Sequence[str], launcher: Sequence[str]) -> list[str]:
    """The command of a run while others go on: Accelerate keeps to its GPUs and takes a free port.

    Without that its file of settings may name GPUs of other runs, and all runs take one port.

    Args:
        command: Program and arguments, of which the first are the launcher's.
        launcher: Those of `Plan`.
    """
    given = {word.partition("=")[0] for word in launcher}
    flags = {"--gpu_ids": "all", "--main_process_port": "0"}
    accelerate = launcher and Path(launcher[0]).stem in ("accelerate", "accelerate-launch")
    more = [word for flag in flags if flag not in given for word in (flag, flags[flag])]
    end = len(launcher)
    return [*command[:end], *(more if accelerate else ()), *command[end:]]
