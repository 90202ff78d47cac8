"""A comparison over several tasks: for each task a comparison in a folder of its own.

The folder holds `tasks.json` (the names of the tasks), `tasks/NAME` (a comparison each, see
`experiment`), and the files of the report over all tasks.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_losses.compare.experiment import LOCK, collect
from hf_losses.compare.plan import PLAN
from hf_losses.compare.results import RESULTS, Results
from hf_losses.compare.runs import folder_name
from hf_losses.files import write_json
from hf_losses.messages import UsageError

TASKS = "tasks.json"
FOLDERS = "tasks"
SECTION = "--"


def task_commands(
    script: str, arguments: Sequence[str], grid: str | None = None
) -> dict[str, list[str]]:
    """The script and its flags for each task.

    Args:
        script: The script of the first section.
        arguments: Its flags, perhaps followed by further sections, each of which begins with `--`
            and a script.
        grid: `FLAG=VALUE,VALUE,…`, a task for each value of this flag of the script; None for a
            task per section.

    Returns:
        By name of the task: the value of the flag, or what distinguishes its section from the
        others. A single task has the script's name.

    Raises:
        UsageError: If the tasks are ambiguous, or two of them are the same.
    """
    sections: list[list[str]] = [[script]]
    for word in arguments:
        if word == SECTION:
            sections.append([])
        else:
            sections[-1].append(word)
    for section in sections:
        if not section:
            raise UsageError("there is nothing behind a --; each one begins with a script")
        _refuse_several_values(section)
    if grid is not None:
        return _from_grid(sections, grid)
    shared = set.intersection(*map(set, sections)) if len(sections) > 1 else set()
    rests = [[word for word in section if word not in shared] for section in sections]
    pairs = zip(rests, sections, strict=True)
    names = [shlex.join(rest) or Path(section[0]).stem for rest, section in pairs]
    if len(sections) == 1:
        return {Path(script).stem: sections[0]}
    if len(set(names)) < len(names):
        names = [shlex.join(section) for section in sections]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two sections behind -- are the same task: {name}")
    return dict(zip(names, sections, strict=True))


def _from_grid(sections: Sequence[list[str]], grid: str) -> dict[str, list[str]]:
    name, equals, text = grid.removeprefix("--").partition("=")
    values = [value.strip() for value in text.split(",")]
    if not (name and equals and all(values)):
        raise UsageError(
            f"--tasks takes FLAG=VALUE,VALUE, such as task_name=mrpc,rte; got {grid!r}"
        )
    if len(set(values)) < max(2, len(values)):
        raise UsageError(f"--tasks takes two different values or more, got {text}")
    if len(sections) > 1:
        raise UsageError("give either --tasks or several sections behind --, not both")
    (section,) = sections
    if any(word.partition("=")[0] == f"--{name}" for word in section):
        raise UsageError(f"--tasks gives --{name} to the script; leave it out behind --")
    return {value: [*section, f"--{name}", value] for value in values}


def _refuse_several_values(section: Sequence[str]) -> None:
    """Refuses `--task_name mrpc rte`: one task of two data sets, or two tasks?"""
    if "--task_name" not in section:
        return
    values = []
    for word in section[section.index("--task_name") + 1 :]:
        if word.startswith("-"):
            break
        values.append(word)
    if len(values) > 1:
        raise UsageError(
            f"--task_name {' '.join(values)} behind -- is one task for compare: for a task per "
            f"value, put --tasks task_name={','.join(values)} before --"
        )


def task_folder(folder: Path, name: str) -> Path:
    """The folder of the comparison on one task.

    Args:
        folder: Folder of the whole comparison.
        name: Name of the task.
    """
    return folder / FOLDERS / folder_name(name)


def open_tasks(folder: Path, names: Sequence[str]) -> None:
    """Begins or continues a comparison over several tasks.

    Args:
        folder: Folder of the comparison; it is created if it is missing.
        names: Names of the tasks.

    Raises:
        UsageError: If the folder holds a comparison over other tasks, or something else. Tasks
            without any run may be replaced: their flags may have been corrected.
    """
    path = folder / TASKS
    if path.exists():
        stored = read_tasks(folder)
        begun = {name for name in stored if (task_folder(folder, name) / PLAN).exists()}
        if len(stored) != len(names) or not begun <= {*names}:
            raise UsageError(
                f"{folder} holds a comparison over the tasks {', '.join(stored)}, and not over "
                f"{', '.join(names)}. Take those to continue it, or another --output_dir"
            )
    elif folder.is_file():
        raise UsageError(f"{folder} is a file; choose another --output_dir")
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} holds something else; choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, list(names))


def discard_tasks(folder: Path) -> None:
    """Removes a comparison over several tasks of which none has begun.

    Args:
        folder: The comparison's folder.
    """
    if any((task_folder(folder, name) / PLAN).exists() for name in read_tasks(folder)):
        return
    for name in (TASKS, LOCK):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        (folder / FOLDERS).rmdir()
        folder.rmdir()


def has_tasks(folder: Path) -> bool:
    """Whether a folder holds a comparison over several tasks.

    Args:
        folder: The folder of any comparison.

    Raises:
        UsageError: If it holds one task of such a comparison: its verdicts depend on the others.
    """
    if folder.absolute().parent.name == FOLDERS and has_tasks(folder.absolute().parents[1]):
        whole = folder.absolute().parents[1]
        raise UsageError(f"{folder} is one task of a comparison: hf-losses report {whole}")
    return (folder / TASKS).exists() or FOLDERS in _stored(folder)


def _stored(folder: Path) -> dict[str, Any]:
    """The content of `results.json`; empty if it cannot be read, which `read_results` reports."""
    try:
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_tasks(folder: Path) -> list[str]:
    """The names of the tasks of a comparison that has begun.

    Args:
        folder: The comparison's folder.

    Raises:
        UsageError: If `tasks.json` cannot be read.
    """
    path = folder / TASKS
    try:
        return [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); begin anew in another folder") from None


def task_results(folder: Path) -> dict[str, Results | None]:
    """The results by task: of the runs, or of `results.json` if it has been published alone.

    Args:
        folder: The comparison's folder.

    Returns:
        The results; None for a task that has not begun.

    Raises:
        UsageError: If they cannot be read.
    """
    if (folder / TASKS).exists():
        folders = {name: task_folder(folder, name) for name in read_tasks(folder)}
        return {
            name: collect(path) if (path / PLAN).exists() else None
            for name, path in folders.items()
        }
    try:
        return {
            name: content and Results.from_json(content)
            for name, content in _stored(folder)[FOLDERS].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / RESULTS} cannot be read ({error!r})") from None


def check_none_lost(folder: Path) -> None:
    """Raises a UsageError if `results.json` holds finished runs that are no longer under `runs`.

    Args:
        folder: The folder of a comparison, perhaps over several tasks.
    """
    content = _stored(folder)
    for name, task in content.get(FOLDERS, {"": content}).items():
        path, begun = folder, folder / PLAN
        if name:
            path, begun = task_folder(folder, name), folder / TASKS
        if not (task and "runs" in task and begun.exists() and (path / PLAN).exists()):
            continue
        there = [_identity(run.entry()) for run in collect(path).runs if run.finished]
        finished = [_identity(run) for run in task["runs"] if run.get("status") == "finished"]
        if lost := sum(run not in there for run in finished):
            raise UsageError(
                f"{folder / RESULTS} would lose {lost} finished runs, which are no longer in "
                f"{path / 'runs'}: put them back, or delete {begun} to report what "
                f"{RESULTS} holds"
            )


def _identity(run: Mapping[str, Any]) -> list[Any]:
    return [run.get(key) for key in ("loss", "stage", "seed", "parameters")]


def write_task_results(
    folder: Path,
    results: Mapping[str, Results | None],
    statistics: Mapping[str, Any],
    over_tasks: Any,
) -> None:
    """Writes `results.json` of a comparison over several tasks.

    Args:
        folder: The comparison's folder.
        results: The results by task; None for a task that has not begun.
        statistics: The `Statistics` of each task that has begun.
        over_tasks: The `OverTasks`.
    """
    tasks = {
        name: task and task.to_json() | {"statistics": asdict(statistics[name])}
        for name, task in results.items()
    }
    write_json(folder / RESULTS, {FOLDERS: tasks, "statistics": asdict(over_tasks)})
