"""The commands `compare` and `report`: arguments, progress, and interruption."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hf_losses.cli.display import Display
from hf_losses.compare.engines.local_pool import LocalPool
from hf_losses.compare.engines.run import Engine, LossesRefused, RunsRefused
from hf_losses.compare.experiment import LOCK, collect, compare, discard
from hf_losses.compare.looks import check_begun, next_look
from hf_losses.compare.plan import PLAN, Plan, make_plan, open_folder
from hf_losses.compare.results import RESULTS, write_results
from hf_losses.compare.runs import forget_failed, losses_without_result
from hf_losses.compare.tasks import (
    check_none_lost,
    discard_tasks,
    has_tasks,
    open_tasks,
    task_commands,
    task_folder,
)
from hf_losses.messages import MissingExtra, UsageError

FORMATS = ("md", "html", "csv", "latex")
INTERRUPTED = 130  # The shell's exit code for Ctrl-C.
PACKAGES = ("statsmodels", "matplotlib")


def add_command(commands: Any) -> None:
    """Adds both commands.

    Args:
        commands: What `add_subparsers` returned.
    """
    command = commands.add_parser(
        "compare",
        help="find the best loss: paired seeds, intervals and tests",
        usage="hf-losses compare --losses LOSS [LOSS …] --seeds K --output_dir D [options] "
        "-- SCRIPT [its own arguments] [-- SCRIPT [...]]",
        description="Runs a training script with several losses on the same seeds and says what "
        "differs beyond the noise. The script takes --loss, --seed and --output_dir and writes "
        "result.json, as recipes/glue.py does (see docs/compare.md). Interrupt it at any time; "
        "the same command continues.",
    )
    command.add_argument(
        "--losses",
        nargs="+",
        action="extend",
        required=True,
        metavar="LOSS",
        help="names or wildcards, such as 'strict_*'; in quotes, flags of the script may follow "
        "a name: 'liberal_exp --loss_warmup_ratio 0.1'",
    )
    command.add_argument(
        "--baseline", metavar="LOSS", help="what the others are compared with; cross_entropy, mse"
    )
    command.add_argument("--seeds", type=int, metavar="K", help="paired runs of every loss")
    command.add_argument(
        "--screen", type=int, metavar="K", help="instead: choose on so many seeds the best …"
    )
    command.add_argument("--top", type=int, metavar="N", help="… N losses …")
    command.add_argument(
        "--confirm", type=int, metavar="K", help="… and test these alone, on K fresh seeds"
    )
    command.add_argument(
        "--add_seeds",
        type=int,
        metavar="K",
        help="with the flags of a finished comparison: K more seeds, and a further look at the "
        "results, which the tests allow for",
    )
    command.add_argument(
        "--margin",
        type=float,
        metavar="M",
        help="a difference in the metric below which losses are equivalent; default: the standard "
        "deviation of the baseline over the seeds",
    )
    command.add_argument(
        "--tasks",
        action="append",
        metavar="FLAG=V,V",
        help="compare on several tasks, one for each value of this flag of the script, such as "
        "task_name=mrpc,rte; or give each task a section of its own: -- SCRIPT ... -- SCRIPT ...",
    )
    command.add_argument("--output_dir", required=True, type=Path, metavar="D", help="folder")
    command.add_argument("--metric", metavar="M", help="compared metric; default: the task's")
    command.add_argument(
        "--lower_is_better",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="default: known for usual metrics, such as mse",
    )
    command.add_argument(
        "--tune",
        nargs="+",
        action="extend",
        default=[],
        metavar="FLAG=LOW:HIGH",
        help="flags that Optuna tunes for every loss on the validation set, such as "
        "learning_rate=1e-5:1e-3, or learning_rate alone",
    )
    command.add_argument("--trials", type=int, default=0, metavar="N", help="of each loss")
    command.add_argument(
        "--tuning_seeds",
        type=int,
        default=1,
        metavar="K",
        help="runs of each trial, which is judged by their mean; default: 1",
    )
    command.add_argument(
        "--launcher", default="", metavar="CMD", help="such as 'accelerate launch'; default: none"
    )
    command.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time; default: 1, or all that --cluster has",
    )
    command.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="make the runs on the Ray cluster with this head, such as 10.0.0.1:6379; auto: on the "
        "cluster of this machine",
    )
    command.add_argument(
        "--cpus_per_run", type=int, metavar="N", help="of --cluster; default: 1, or a GPU's share"
    )
    command.add_argument(
        "--gpus_per_run", type=float, metavar="N", help="of --cluster; default: 1 if it has any"
    )
    command.add_argument("--keep_models", action="store_true", help="keep weights, checkpoints too")
    command.add_argument("--retry_failed", action="store_true", help="run again what crashed")
    command.add_argument("script", metavar="SCRIPT", help="behind --")
    command.add_argument("arguments", metavar="…", nargs=argparse.REMAINDER, help="its arguments")
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "report", help="make the table, report and pictures of a comparison again"
    )
    command.add_argument("folder", type=Path, metavar="D", help="output_dir of compare")
    command.add_argument(
        "--format",
        choices=FORMATS,
        help="instead: print the comparison in this format, and write nothing",
    )
    command.set_defaults(run=_report)


def _compare(arguments: argparse.Namespace) -> Callable[[], int] | None:
    for package in (*PACKAGES, "optuna") if arguments.tune else PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"compare needs {package}: pip install 'hf-losses[compare]'")
    settings = {name: value for name, value in vars(arguments).items() if name in _SETTINGS}
    jobs, cpus, gpus = arguments.jobs, arguments.cpus_per_run, arguments.gpus_per_run
    tasks, *more = arguments.tasks or [None]
    if more:
        raise UsageError("--tasks was given twice; give all values of one flag, or sections")
    commands = task_commands(arguments.script, arguments.arguments, tasks)
    plans = {}
    for name, (script, *flags) in commands.items():
        settings |= {"script": script, "arguments": flags, "tasks": len(commands)}
        plans[name] = make_plan(jobs=1 if jobs is None else jobs, **settings)
    if len(plans) > 1 and arguments.screen:
        raise UsageError("--screen is for one task; for several, use --seeds")
    if arguments.cluster is None:
        if cpus is not None or gpus is not None:
            raise UsageError("--cpus_per_run and --gpus_per_run are for --cluster; use --jobs")
        return _begin(plans, arguments, LocalPool(jobs or 1))
    if cpus is not None and cpus < 1:
        raise UsageError(f"--cpus_per_run must be at least 1, got {cpus}")
    if gpus is not None and not (0 <= gpus < 1 or (gpus > 0 and gpus.is_integer())):
        raise UsageError(f"--gpus_per_run takes a whole number, or less than 1, got {gpus:g}")
    from hf_losses.compare.engines.cluster import Cluster

    with Cluster(arguments.cluster, cpus, gpus, jobs) as cluster:
        plans = {name: replace(plan, threads=cluster.cpus) for name, plan in plans.items()}
        return _begin(plans, arguments, cluster)


def _begin(
    plans: Mapping[str, Plan], arguments: argparse.Namespace, engine: Engine
) -> Callable[[], int] | None:
    """Makes the runs of one task in the folder itself, and of several tasks one after another."""
    from filelock import FileLock, Timeout

    folder = arguments.output_dir
    if len(plans) == 1:
        return _in_folder(next(iter(plans.values())), folder, arguments, engine)
    folders = {task_folder(folder, name): plan for name, plan in plans.items()}
    if arguments.add_seeds is not None:
        check_begun(*folders)
    open_tasks(folder, list(plans))
    try:
        with FileLock(folder / LOCK, timeout=0):
            if arguments.add_seeds is not None:
                stored = {path: open_folder(path, plan) for path, plan in folders.items()}
                next_look(folder, stored, arguments.add_seeds)
            refused = []
            for name, plan in plans.items():
                print(f"Task {name}", flush=True)
                try:
                    if stop := _in_folder(plan, task_folder(folder, name), arguments, engine):
                        return stop
                except LossesRefused as error:  # The others are compared on the next tasks, too.
                    refused.append(f"task {name}: {error}")
    except Timeout:
        raise UsageError(f"another hf-losses compare is at work in {folder}") from None
    except RunsRefused as error:
        discard_tasks(folder)
        raise RunsRefused(f"task {name}: {error}") from None
    _write_report(folder)
    if refused:
        raise LossesRefused("\n".join(refused))
    return None


def _in_folder(
    plan: Plan, folder: Path, arguments: argparse.Namespace, engine: Engine
) -> Callable[[], int] | None:
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --output_dir")
    new = not (folder / PLAN).exists()
    if arguments.add_seeds is not None:
        check_begun(folder)
    plan = open_folder(folder, plan) if new else plan
    try:
        with FileLock(folder / LOCK, timeout=0):
            if not new:  # Another compare at work there must not find a plan that is not its own.
                plan = open_folder(folder, plan, losses_without_result(folder))
            if arguments.retry_failed:
                forget_failed(plan, folder)
            if arguments.add_seeds is not None and plan.tasks == 1:
                (plan,) = next_look(folder, {folder: plan}, arguments.add_seeds)
            return _make_runs(plan, folder, engine, arguments)
    except Timeout:
        raise UsageError(f"another hf-losses compare is at work in {folder}") from None
    except RunsRefused:
        if new:  # No run succeeded: the corrected command must be able to use the same folder.
            discard(folder)
        raise


# The arguments that `make_plan` takes besides `jobs` and `tasks`.
_SETTINGS = {field.name for field in fields(Plan)} - {"threads", "added", "tasks"}


def _make_runs(
    plan: Plan, folder: Path, engine: Engine, arguments: argparse.Namespace
) -> Callable[[], int] | None:
    previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Display(plan, folder, engine.parallel) as display:
            refused = compare(
                plan,
                folder,
                engine,
                keep_models=arguments.keep_models,
                progress=display.done,
                say=display.say,
            )
    except KeyboardInterrupt:
        if plan.tasks == 1:
            write_results(folder, collect(folder))
        print(
            f"interrupted; finished runs are kept in {folder}. The same command continues, and "
            f"hf-losses report {shlex.quote(str(arguments.output_dir))} shows what there is.",
            file=sys.stderr,
        )
        return lambda: INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    if plan.tasks == 1:  # The report over several tasks is written when all have ended.
        _write_report(folder)
    if refused:
        losses = "".join(f"\n{loss}: {reason}" for loss, reason in refused.items())
        raise LossesRefused(
            f"the script refused {len(refused)} of {len(plan.losses)} losses, which are not "
            f"compared. With corrected --losses, the same command adds them in "
            f"{arguments.output_dir}.{losses}"
        )
    return None


def _report(arguments: argparse.Namespace) -> None:
    if arguments.format is None:
        check_none_lost(arguments.folder)
        return _write_report(arguments.folder)
    from hf_losses.compare.report.formats import formatted

    return print(formatted(arguments.folder, arguments.format), end="")


def _write_report(folder: Path) -> None:
    from hf_losses.compare.report.files import write_report
    from hf_losses.compare.report.tasks import write_tasks_report
    from hf_losses.compare.report.terminal import text_table, text_tables

    if has_tasks(folder):
        summary, files = write_tasks_report(folder)
        text = text_tables([("", summary.rows)], [" ".join([*summary.findings, *summary.ranking])])
        print(f"{text}\n\nIn {folder}: {', '.join(path.name for path in files)}")
        return
    # A published comparison holds no plan, only results.json, which then stays as it is.
    if (folder / PLAN).exists() or not (folder / RESULTS).exists():
        write_results(folder, collect(folder))
    view, files = write_report(folder)
    print(text_table(view))
    print(f"\nIn {folder}: {', '.join(path.name for path in files)}")
