"""How far a comparison is, on the terminal."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from hf_losses.compare.plan import Plan
from hf_losses.compare.results import RunRecord


class Display:
    """Progress on the terminal: a line per finished run, and below them how much is left.

    Args:
        plan: The plan.
        folder: The comparison's folder.
        jobs: Runs at a time.
    """

    def __init__(self, plan: Plan, folder: Path, jobs: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self.plan, self.folder, self.jobs = plan, folder, jobs
        # Lines are not wrapped, so that a file of them stays readable.
        self.console = Console(soft_wrap=True, highlight=False)
        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=plan.runs, left="")
        self.seconds: list[float] = []
        self.ended = self.kept = 0

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._say_kept()
        self.progress.stop()

    def say(self, text: str) -> None:
        """Prints a text above the progress bar.

        Args:
            text: Plain text.
        """
        self._say_kept()
        self.console.print(text, markup=False)

    def done(self, record: RunRecord, new: bool) -> None:
        """Shows a run that has ended.

        Args:
            record: Its record.
            new: False if an earlier start of the same command made the run.
        """
        self.seconds.append(record.wall_seconds)
        ended = 1
        run = f"seed {record.seed}"
        if record.stage == "tune":
            seeds = self.plan.seeds_of("tune")
            run = f"trial of {record.parameters}" + (f", {run}" if len(seeds) > 1 else "")
            if not record.finished:  # The trial has failed: its other seeds are not run.
                ended = len(seeds) - seeds.index(record.seed)
        self.ended += ended
        mean = sum(self.seconds) / len(self.seconds)
        left = timedelta(seconds=round(mean * (self.plan.runs - self.ended) / self.jobs))
        self.progress.update(self.task, advance=ended, left=f"about {left} left")
        if not new:
            self.kept += 1
            return
        self._say_kept()
        if record.finished and record.metric:
            outcome = f"{record.metric.name} {record.value:.4f} ({record.metric.set})"
        else:
            outcome = f"{record.status}: {record.reason}"
        self.console.print(
            f"{self.ended}/{self.plan.runs} {record.loss}, {run}: {outcome}, "
            f"{record.wall_seconds:.0f} s",
            markup=False,
        )

    def _say_kept(self) -> None:
        if self.kept:
            text = "1 finished run is" if self.kept == 1 else f"{self.kept} finished runs are"
            self.console.print(f"{text} kept from before")
            self.kept = 0
