"""The plan of a comparison: what `hf-losses compare` was asked for, checked before any run."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from hf_losses.compare.ranges import parse_ranges
from hf_losses.files import write_json
from hf_losses.losses.registry import get_spec, list_losses, match_losses, neutral_loss
from hf_losses.messages import UsageError
from hf_losses.metrics import direction
from hf_losses.options import cores

PLAN = "plan.json"
RESERVED = ("loss", "seed", "output_dir")  # The flags that compare itself gives to the script.
TUNING_SEED, FIRST_SEED = 0, 1  # Test results come from seeds 1, 2, …
FURTHER_TUNING_SEEDS = 1_000_000  # Far from the others, of which there may be more later.


@dataclass(frozen=True)
class Plan:
    """Everything that decides what a comparison measures, fixed until the comparison is complete.

    Attributes:
        script: The script.
        arguments: Flags that are passed on to the script.
        losses: Registered names, each perhaps followed by further flags of the script.
        baseline: The loss that the others are compared with.
        launcher: The command that starts the script instead of this Python, such as
            `accelerate launch`.
        seeds: Number of paired runs of every loss; None with `screen`.
        screen: Number of screening runs of every loss.
        confirm: Number of runs on fresh seeds of the baseline and the best losses.
        top: Number of losses that are confirmed.
        tune: Lowest and highest value of each tuned flag.
        trials: Number of trials of each loss.
        tuning_seeds: Number of runs of each trial, by whose mean it is judged.
        metric: The compared metric; None for the one that the script names.
        lower_is_better: Whether a smaller value is better; None lets the metric's name decide.
        threads: CPU threads of every run.
        margin: Differences of the metric within it do not matter; None for the standard deviation
            that a change of seed alone makes to the baseline.
        added: Numbers of seeds added after each look at the results.
        tasks: Number of tasks of the comparison of which this is one.
    """

    script: str
    arguments: list[str]
    losses: list[str]
    baseline: str
    launcher: list[str] = field(default_factory=list)
    seeds: int | None = None
    screen: int | None = None
    confirm: int | None = None
    top: int | None = None
    tune: dict[str, list[float]] = field(default_factory=dict)
    trials: int = 0
    tuning_seeds: int = 1
    metric: str | None = None
    lower_is_better: bool | None = None
    threads: int = 1
    margin: float | None = None
    added: list[int] = field(default_factory=list)
    tasks: int = 1

    def __post_init__(self) -> None:
        """Checks everything that can be checked before a run."""
        self._check_flags(self.arguments)
        if len(self.losses) < 2:
            raise UsageError(f"a comparison needs two losses or more, got {', '.join(self.losses)}")
        if self.baseline not in self.losses:
            raise UsageError(
                f"the baseline {self.baseline!r} is not among the losses: add it to --losses, or "
                f"choose one by --baseline: {', '.join(self.losses)}"
            )
        direction.check_comparable(self.metric, self.losses)
        self._check_seeds()
        self._check_tuning()
        if self.margin is not None and not (0 < self.margin < math.inf):
            raise UsageError(
                f"--margin must be a positive number in units of the metric, such as 0.005, got "
                f"{self.margin:g}"
            )

    def _check_flags(self, arguments: Iterable[str]) -> None:
        given = {_flag(name) for name in (*RESERVED, *self.tune)}
        for argument in arguments:
            if argument.startswith("--") and _flag(argument) in given:
                raise UsageError(
                    f"compare itself gives --{_flag(argument)} to the script; leave it out behind "
                    "-- and in --losses"
                )

    def _check_seeds(self) -> None:
        stages = {"screen": self.screen, "confirm": self.confirm, "top": self.top}
        staged = [name for name, value in stages.items() if value is not None]
        if bool(staged) == (self.seeds is not None):
            raise UsageError("give either --seeds K, or --screen K --confirm K --top N")
        for name, value in {"seeds": self.seeds, **stages}.items():
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}")
        if staged and len(staged) < 3:
            missing = ", ".join(f"--{name}" for name in stages if name not in staged)
            raise UsageError(f"--screen, --confirm and --top go together; add {missing}")
        if self.top is not None and self.top >= len(self.losses) - 1:
            raise UsageError(
                f"--top {self.top} of {len(self.losses) - 1} losses beside the baseline leaves "
                "none out: use --seeds, or a smaller --top"
            )

    def _check_tuning(self) -> None:
        if bool(self.tune) != bool(self.trials):
            raise UsageError("--tune and --trials go together")
        if self.trials < 0:
            raise UsageError(f"--trials must be at least 1, got {self.trials}")
        if self.tuning_seeds < 1:
            raise UsageError(f"--tuning_seeds must be at least 1, got {self.tuning_seeds}")
        if self.tuning_seeds > 1 and not self.tune:
            raise UsageError("--tuning_seeds is for --tune")
        for name, (low, high) in self.tune.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise UsageError(f"--tune {name}={low}:{high} is no range; give LOW:HIGH")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in order, without the tuning."""
        return ("screen", "confirm") if self.screen else ("main",)

    @property
    def tested_seeds(self) -> int:
        """The number of paired runs of every tested loss."""
        return len(self.seeds_of(self.stages[-1]))

    @property
    def looks(self) -> list[int]:
        """The number of paired runs of every tested loss at each look at the results."""
        return list(accumulate([self.seeds or self.confirm or 0, *self.added]))

    @property
    def look(self) -> int:
        """Which look at the results the next one is, or the last one was."""
        return len(self.looks)

    @property
    def comparisons(self) -> int:
        """The number of tests: of losses against the baseline, on all tasks together."""
        return (self.top or len(self.losses) - 1) * self.tasks

    def minimizes(self, metric: str) -> bool:
        """Whether a smaller value of the compared metric is the better one.

        Args:
            metric: The script's name for the metric; empty as long as no run has finished.
        """
        if self.lower_is_better is not None:
            return self.lower_is_better
        return direction.lower_is_better(self.metric or metric)

    def command(
        self, loss: str, seed: int, parameters: Mapping[str, float], output_dir: Path
    ) -> list[str]:
        """The command of a run: program and arguments.

        Args:
            loss: A loss, perhaps with flags.
            seed: The script's seed.
            parameters: Values of the tuned flags.
            output_dir: The run's folder.

        Raises:
            UsageError: If the launcher's program is missing.
        """
        program = [sys.executable]
        if self.launcher:
            program = [find_program(self.launcher[0]), *self.launcher[1:]]
        name, *flags = shlex.split(loss)
        for key, value in parameters.items():
            flags += [f"--{key}", repr(value)]
        flags += ["--seed", str(seed), "--output_dir", str(output_dir)]
        return [*program, self.script, *self.arguments, "--loss", name, *flags]

    def seeds_of(self, stage: str) -> list[int]:
        """The seeds of a stage; those of `tune` are its own, `screen` and `confirm` share none."""
        if stage == "tune":
            further = range(FURTHER_TUNING_SEEDS, FURTHER_TUNING_SEEDS + self.tuning_seeds - 1)
            return [TUNING_SEED, *further]
        start = FIRST_SEED + (self.screen or 0 if stage == "confirm" else 0)
        count = (self.screen or 0) if stage == "screen" else self.looks[-1]
        return list(range(start, start + count))

    @property
    def runs(self) -> int:
        """The number of all runs of this task."""
        tested = 1 + self.comparisons // self.tasks
        chosen = len(self.losses) * ((self.screen or 0) + self.trials * self.tuning_seeds)
        return tested * self.tested_seeds + chosen


def make_plan(
    script: str,
    arguments: Sequence[str],
    losses: Sequence[str],
    *,
    baseline: str | None = None,
    launcher: str = "",
    tune: Sequence[str] = (),
    jobs: int = 1,
    **settings: Any,
) -> Plan:
    """Makes a plan of what a user typed.

    Args:
        script: The script.
        arguments: Flags that are passed on to the script.
        losses: Names or wildcards, each perhaps followed by flags for the script.
        baseline: One of the losses; by default the baseline of the task.
        launcher: The command line that starts the script; empty for this Python.
        tune: `NAME=LOW:HIGH`, or `learning_rate`.
        jobs: Number of parallel runs, among which the cores are divided.
        **settings: Further fields of `Plan`.

    Raises:
        ValueError: If anything does not fit; the message names the value and the valid ones.
    """
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    if not Path(script).is_file():
        raise UsageError(f"there is no script {script!r}; it stands behind --, its flags after it")
    command = split(launcher, "--launcher")
    if command:
        find_program(command[0])
    names, baseline = expand(losses, baseline)
    plan = Plan(
        script=script,
        arguments=list(arguments),
        losses=names,
        baseline=baseline,
        launcher=command,
        tune=parse_ranges(tune),
        threads=max(1, cores() // jobs),
        **settings,
    )
    # Not in `Plan`: earlier comparisons, which can still be reported, were not checked so.
    plan._check_flags(flag for name in names for flag in shlex.split(name)[1:])
    return plan


def _flag(argument: str) -> str:
    """The name of a flag, however it is written: `--learning-rate=1` is `learning_rate`."""
    return argument.partition("=")[0].removeprefix("--").replace("-", "_")


def split(text: str, flag: str) -> list[str]:
    """The words of a value of a flag, as the shell takes them; a UsageError if quotes stay open."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r}: {error}".replace("No c", "no c")) from None


def expand(losses: Sequence[str], baseline: str | None) -> tuple[list[str], str]:
    """Replaces wildcards by the names that match, and finds the baseline.

    Args:
        losses: Names or wildcards, each perhaps followed by flags for the script.
        baseline: One of the losses; None stands for the baseline of the task.

    Returns:
        The losses, with the baseline first, and the baseline.

    Raises:
        ValueError: If a loss is unknown or for another task than the baseline.
    """
    entries = [split(entry, "--losses") for entry in losses]
    if not all(entries):
        raise UsageError(f"--losses has an empty entry; choose from: {', '.join(list_losses())}")
    if baseline is None:
        regression = not any(list_losses(name, task="classification") for name, *_ in entries)
        baseline = neutral_loss("regression" if regression else "classification")
    task = get_spec((split(baseline, "--baseline") or [""])[0]).task
    expanded = []
    for pattern, *flags in entries:
        try:
            names = match_losses([pattern], task=task)
        except UsageError as error:
            raise UsageError(f"{error}; the baseline is {baseline}") from None
        expanded += [shlex.join([name, *flags]) for name in names]
    baseline = shlex.join(shlex.split(baseline))
    return sorted(dict.fromkeys(expanded), key=lambda loss: loss != baseline), baseline


def open_folder(folder: Path, plan: Plan, replaceable: Collection[str] = ()) -> Plan:
    """Begins or continues a comparison.

    Args:
        folder: Folder of the comparison; it is created if it is missing.
        plan: The plan of this command.
        replaceable: Losses of a comparison in the folder without any result, which the plan may
            leave out or replace: their flags may have been corrected.

    Returns:
        The plan to continue with, with the number of threads of the first start, if there are as
        many, and the seeds that have been added since.

    Raises:
        ValueError: If the folder holds a comparison with other flags, or something else.
    """
    path = folder / PLAN
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds something else; choose another --output_dir")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(plan))
        return plan
    stored = first = read_plan(folder)
    stored = replace(stored, threads=min(stored.threads, plan.threads))
    if stored.lower_is_better is None and not (stored.tune or stored.screen):
        stored = replace(stored, lower_is_better=plan.lower_is_better)  # Nothing was chosen by it.
    plan = replace(plan, threads=stored.threads, added=stored.added)
    added, left_out = {*plan.losses} - {*stored.losses}, {*stored.losses} - {*plan.losses}
    corrected = left_out <= {*replaceable} and len(added) <= len(left_out)
    if corrected and plan == replace(stored, losses=plan.losses):
        write_json(path, asdict(replace(plan, threads=first.threads)))
        return plan
    differences = [
        f"{field.name} was {old!r} and is {new!r}"
        for field in fields(Plan)
        if (old := getattr(stored, field.name)) != (new := getattr(plan, field.name))
    ]
    more = ", --add_seeds K for more seeds" if plan.looks[0] > stored.looks[0] else ""
    raise UsageError(
        f"{folder} holds a comparison with other flags: {'; '.join(differences)}. Take those "
        f"to continue it{more}, or another --output_dir"
    )


def add_seeds(folder: Path, plan: Plan, count: int) -> Plan:
    """Adds seeds to a comparison whose results have been seen: the next look at them.

    Args:
        folder: Folder of the comparison.
        plan: Its plan.
        count: Number of further paired runs of every tested loss.

    Returns:
        The plan with these seeds, which the folder now holds.

    Raises:
        UsageError: If the number is not positive.
    """
    if count < 1:
        raise UsageError(f"--add_seeds must be at least 1, got {count}")
    plan = replace(plan, added=[*plan.added, count])
    write_json(folder / PLAN, asdict(replace(plan, threads=read_plan(folder).threads)))
    return plan


def read_plan(folder: Path) -> Plan:
    """Reads the plan of a comparison that has begun.

    Args:
        folder: Folder of the comparison.

    Raises:
        ValueError: If there is no plan, or it cannot be read.
    """
    path = folder / PLAN
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no comparison: there is no {PLAN}") from None
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); begin anew in another folder") from None


def find_program(name: str) -> str:
    """Finds the program of a launcher.

    It is first searched for beside this Python, whose environment may not be activated.

    Args:
        name: Name or path of the program.

    Raises:
        ValueError: If there is no such program.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if program := shutil.which(name, path=path):
        return program
    raise UsageError(f"there is no program {name!r} for --launcher, which takes a command line")
