"""What a comparison holds: the record of every run, and the content of `results.json`.

The fields are those of the files, in the same order. Only this module reads and writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_losses.compare.plan import Plan
from hf_losses.files import write_json
from hf_losses.messages import UsageError

RESULTS = "results.json"
# Only a run that wrote a valid result.json has these in its record.
MEASURED = ("value", "metric", "metrics", "history", "steps", "seconds", "predictions", "facts")


def is_number(value: Any) -> bool:
    """Whether what a script reports is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Metric:
    """The compared metric: its evaluation set and its name."""

    set: str
    name: str


@dataclass(frozen=True)
class Facts:
    """What a script reports about itself; None where it reports nothing.

    Attributes:
        task: Name of the task.
        model: Name of the model.
        versions: Version by library.
        hardware: Entries such as `cpu_count` and `gpu`.
        classes: Names of the classes by id.
        inputs: A digest of the script and of the sizes of the files that its flags name, as they
            were when the run had ended; not of the script's making.
    """

    task: str | None = None
    model: str | None = None
    versions: Mapping[str, str] | None = None
    hardware: Mapping[str, Any] | None = None
    classes: Sequence[str] | None = None
    inputs: str | None = None


@dataclass(frozen=True)
class RunSettings:
    """What distinguishes a run from the others of its comparison.

    Attributes:
        loss: A loss, perhaps with flags.
        stage: `main`, `screen`, `confirm` or `tune`.
        seed: The script's seed.
        parameters: Values of the tuned flags.
    """

    loss: str
    stage: str
    seed: int
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class RunRecord(RunSettings):
    """How a run ended.

    Attributes:
        status: `finished`; `diverged` if the metric is not finite; `failed` if the script crashed
            or wrote no valid result.
        reason: Why the run has no value; None for a finished run.
        value: The compared metric; None unless the run finished.
        metric: Name and set of the compared metric; None for a failed run.
        metrics: All metrics by evaluation set.
        history: Evaluations during training, each with `step` and its metrics.
        steps: Number of optimizer steps.
        seconds: Duration of the training without its evaluations.
        predictions: Counts of the predictions on the compared set, by bin of probability and by
            class; see `EvaluationLosses.prediction_counts`. Empty where the script has none.
        facts: What the script reports about itself; None for a failed run.
        wall_seconds: Duration of the whole process.
    """

    status: str
    reason: str | None = None
    value: float | None = None
    metric: Metric | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    steps: int | None = None
    seconds: float | None = None
    predictions: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    facts: Facts | None = None
    wall_seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the run has a value."""
        return self.status == "finished"

    def to_json(self) -> dict[str, Any]:
        """The content of the run's own file."""
        content = asdict(self)
        if self.facts is None:
            content = {key: value for key, value in content.items() if key not in MEASURED}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunRecord:
        """Reads what `to_json` returned, or an entry of `runs` in `results.json`."""
        metric, facts = content.get("metric"), content.get("facts")
        nested = {"metric": metric and Metric(**metric), "facts": facts and Facts(**facts)}
        return cls(**{**content, **nested})

    def entry(self) -> dict[str, Any]:
        """The run's entry in `results.json`, which states metric and facts once for all runs."""
        content = asdict(self)
        del content["metric"], content["facts"]
        if not self.predictions:
            del content["predictions"]
        leading = ("value", "metrics", "history", "steps", "seconds")
        return {key: content[key] for key in leading} | content


@dataclass(frozen=True)
class Tuning:
    """The best trial of a loss: its parameters and its value on the validation set."""

    parameters: Mapping[str, float]
    value: float


@dataclass(frozen=True)
class Trial:
    """A finished trial of a loss.

    Attributes:
        parameters: Values of the tuned flags.
        values: The compared metric on the validation set by tuning seed.
    """

    parameters: Mapping[str, float]
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """What the trial is judged by."""
        return fmean(self.values.values())


def finished_trials(plan: Plan, loss: str, runs: Iterable[RunRecord]) -> list[Trial]:
    """The trials of a loss that finished with every tuning seed.

    Args:
        plan: The plan.
        loss: The loss.
        runs: Any runs.
    """
    values: dict[tuple[tuple[str, float], ...], dict[int, float]] = {}
    for run in runs:
        if (run.stage, run.loss) == ("tune", loss) and run.value is not None:
            values.setdefault(tuple(run.parameters.items()), {})[run.seed] = run.value
    trials = [Trial(dict(parameters), by_seed) for parameters, by_seed in values.items()]
    return [trial for trial in trials if len(trial.values) == plan.tuning_seeds]


@dataclass(frozen=True)
class Results:
    """Everything that a comparison has measured so far.

    Attributes:
        plan: The plan, with `lower_is_better` set.
        task: Name of the task, where a run reports it.
        model: Name of the model, where a run reports it.
        metric: The compared metric; None until a run has finished.
        versions: Version of each library in the first run.
        hardware: Hardware of the first run.
        same_everywhere: Whether all runs report the same versions and hardware, and had the same
            script and files.
        same_inputs: Whether they all had the same script and files.
        classes: Names of the classes by id; empty where no run reports them.
        tuned: The best trial of each tuned loss.
        runs: The records in the order of the plan, whatever order they ended in.
    """

    plan: Plan
    task: str | None
    model: str | None
    metric: Metric | None
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    same_everywhere: bool
    tuned: Mapping[str, Tuning]
    runs: Sequence[RunRecord]
    classes: Sequence[str] = ()
    same_inputs: bool = True

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value of the compared metric is the better one."""
        return bool(self.plan.lower_is_better)

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json` without the statistics."""
        plan = asdict(self.plan)
        if self.plan.tasks == 1:
            del plan["tasks"]
        if self.plan.tuning_seeds == 1:
            del plan["tuning_seeds"]
        further: dict[str, Any] = {"classes": self.classes} if self.classes else {}
        if not self.same_inputs:
            further["same_inputs"] = False
        return {
            "plan": plan,
            "task": self.task,
            "model": self.model,
            "metric": self.metric and asdict(self.metric),
            "versions": self.versions,
            "hardware": self.hardware,
            "same_everywhere": self.same_everywhere,
            **further,
            "tuned": {loss: asdict(tuning) for loss, tuning in self.tuned.items()},
            "runs": [run.entry() for run in self.runs],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Results:
        """Reads the content of `results.json`; the statistics are left out, as they follow from it.

        Raises:
            KeyError: If a field is missing.
            TypeError: If a field is of another type, or unknown.
            UsageError: If the plan is invalid.
        """
        metric = content["metric"]
        return cls(
            plan=Plan(**content["plan"]),
            task=content["task"],
            model=content["model"],
            metric=metric and Metric(**metric),
            versions=content["versions"] or {},
            hardware=content["hardware"] or {},
            same_everywhere=content.get("same_everywhere", True),
            tuned={loss: Tuning(**tuning) for loss, tuning in content["tuned"].items()},
            runs=[RunRecord.from_json(run) for run in content["runs"]],
            classes=content.get("classes", ()),
            same_inputs=content.get("same_inputs", True),
        )


def read_results(folder: Path) -> Results:
    """Reads `results.json` of a comparison.

    Args:
        folder: The comparison's folder.

    Raises:
        UsageError: If the file is missing or does not hold the results of a comparison.
    """
    path = folder / RESULTS
    advice = "hf-losses compare writes it, and hf-losses report again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not {"plan", "runs"} <= set(content):
            raise UsageError("it holds no comparison")
        return Results.from_json(content)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no {RESULTS}: {advice}") from None
    except KeyError as error:
        raise UsageError(f"{path} cannot be read (it lacks {error}): {advice}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): {advice}") from None


def write_results(
    folder: Path, results: Results, statistics: Mapping[str, Any] | None = None
) -> None:
    """Writes `results.json` of a comparison.

    Args:
        folder: The comparison's folder.
        results: The results.
        statistics: The fields of `Statistics`; None if they have not been computed.
    """
    content = results.to_json()
    if statistics is not None:
        content["statistics"] = statistics
    write_json(folder / RESULTS, content)
