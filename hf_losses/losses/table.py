"""The registry as a table: for a terminal, for the README and for other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from hf_losses import markdown
from hf_losses.citation import linked
from hf_losses.losses.registry import KINDS, TASKS, LossSpec, get_spec

CAPTIONS = {
    "classification": "Classification: p is the probability of the true class, q that of a wrong "
    "one (sums run over the wrong classes); the gradient weight is w(p) = p·|ℓ′(p)|. "
    "By kind; `paper` marks the eight of Noel et al. 2023.",
    "regression": "Regression: e is prediction minus target.",
}


def as_json(names: Sequence[str]) -> str:
    """What the registry knows of these losses, except their code.

    Args:
        names: Registered names.

    Returns:
        A JSON list with one object per loss. `weight` is null where there is no single gradient
        weight; `above` is a parameter's exclusive lower bound.
    """
    losses = [
        {
            "name": spec.name,
            "task": spec.task,
            "kind": spec.kind,
            "paper": spec.is_of_paper,
            "formula": spec.full_formula,
            "weight": spec.weight_formula or None,
            "parameters": {name: vars(parameter) for name, parameter in spec.parameters.items()},
            "reference": spec.reference,
            "use": spec.use,
            "avoid": spec.avoid,
        }
        for spec in map(get_spec, names)
    ]
    return json.dumps(losses, indent=2, ensure_ascii=False)


def as_markdown(names: Sequence[str]) -> str:
    """One Markdown table per task, below its caption.

    Args:
        names: Registered names.

    Returns:
        Text without a final line break.
    """
    blocks = []
    for task, specs in _by_task(names):
        records = [_record(spec) for spec in specs]
        rows = []
        for record in records:
            code = ("name", *_formulas(record))
            cells = [f"`{v}`" if k in code and v else linked(v) for k, v in record.items()]
            rows.append([cell.replace("|", "\\|") for cell in cells])
        blocks.append(f"{CAPTIONS[task]}\n\n{markdown.table([*records[0]], rows)}")
    return "\n\n".join(blocks)


def as_text(names: Sequence[str]) -> str:
    """One table per task, fit for the terminal's width.

    In a pipe each loss is one line, however long, unless the environment sets COLUMNS.

    Args:
        names: Registered names.

    Returns:
        Text for stdout: with its colours if it is a terminal, without a final line break.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 10_000
    with console.capture() as capture:
        for task, specs in _by_task(names):
            records = [_record(spec) for spec in specs]
            whole = ("name", "kind", "paper", *_formulas(records[0]))
            wide = console.width >= _least_width(records, whole)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, leading=not wide)
            for header in records[0] if wide else ("name", "loss"):
                style = "bold" if header == "name" else ""
                table.add_column(header, style=style, no_wrap=header in whole)
            for record in records:
                table.add_row(*map(Text, record.values() if wide else _block(record)))
            console.print(Text(CAPTIONS[task]), table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


FORMATS = {"text": as_text, "markdown": as_markdown, "json": as_json}


def _by_task(names: Sequence[str]) -> list[tuple[str, list[LossSpec]]]:
    specs = [get_spec(name) for name in names]
    specs.sort(key=lambda spec: KINDS.index(spec.kind))
    tasks = [(task, [spec for spec in specs if spec.task == task]) for task in TASKS]
    return [(task, of_task) for task, of_task in tasks if of_task]


def _record(spec: LossSpec) -> dict[str, str]:
    """A row of a table: text by column."""
    columns = {"ℓ(e)": spec.formula}
    if spec.task == "classification":
        columns = {
            "paper": "yes" if spec.is_of_paper else "",
            "ℓ(p)": spec.full_formula,
            "w(p)": spec.weight_formula,
        }
    parameters = [
        f"{name}={parameter.default:g} ({parameter.bound}): {parameter.help}"
        for name, parameter in spec.parameters.items()
    ]
    return {
        "name": spec.name,
        "kind": spec.kind,
        **columns,
        "parameters": "; ".join(parameters),
        "reference": spec.reference,
    }


def _formulas(record: dict[str, str]) -> list[str]:
    return [column for column in record if "(" in column]


def _least_width(records: list[dict[str, str]], whole: Sequence[str]) -> int:
    """Width at which names and formulas stay whole and each column of prose gets 20 characters."""
    widths = [
        max(len(record[column]) for record in records) if column in whole else 20
        for column in records[0]
    ]
    return sum(widths) + 3 * len(widths)


def _block(record: dict[str, str]) -> tuple[str, str]:
    """A row of two columns, for a narrow terminal."""
    lines = [f"{column} = {record[column]}" for column in _formulas(record) if record[column]]
    lines += [record[column] for column in ("parameters", "reference") if record[column]]
    kind = record["kind"] + " (paper)" * bool(record.get("paper"))
    return f"{record['name']}\n{kind}", "\n".join(lines)
