"""What MkDocs adds to the documents: the README as first page, a page per loss, the reference."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sympy
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import hf_losses
from hf_losses import get_spec, list_losses, markdown
from hf_losses.citation import SUMMARY, linked
from hf_losses.losses.plots import plot_losses
from hf_losses.losses.registry import LossSpec, neutral_loss

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("list", "plot", "run", "compare", "report", "publish")
# The public packages: the title of their page in the reference.
PACKAGES = {
    "hf_losses": "Python",
    "hf_losses.data": "Data",
    "hf_losses.models": "Models",
    "hf_losses.metrics": "Metrics",
    "hf_losses.training": "Training",
    "hf_losses.search": "Search",
}


def loss_page(spec: LossSpec) -> str:
    """The page of a loss, from its record."""
    variable = "p" if spec.task == "classification" else "e"
    lines = [f"# {spec.name}", "", f"A {spec.kind} {spec.task} loss.", ""]
    lines += [f"![{spec.name} beside {neutral_loss(spec.task)}]({spec.name}.svg)", ""]
    lines += ["## Formula", "", f"ℓ({variable}) = `{spec.full_formula}`", ""]
    lines += [*gradient(spec), ""]
    for name, parameter in spec.parameters.items():
        lines += [f"- `{name}` = {parameter.default:g} ({parameter.bound}): {parameter.help}"]
    lines += ["", "## When to use it", "", linked(spec.use), ""]
    lines += ["## When not", "", linked(spec.avoid), ""]
    lines += ["## Use", "", "```python", "from hf_losses import get_loss", ""]
    lines += [f'loss = get_loss("{spec.name}")', "```", ""]
    lines += [f'In a training: `--loss {spec.name}`, or `LossTrainer(…, loss="{spec.name}")`.', ""]
    lines += ["## Source", "", linked(spec.reference) or "–", ""]
    return "\n".join(lines)


def gradient(spec: LossSpec) -> list[str]:
    """What the page says of the gradient; nothing where the record does not tell it."""
    if spec.task == "regression":
        return [f"Its derivative by the prediction is dℓ/de = `{derivative(spec.formula, 'e')}`."]
    # A full form treats the true class as its sparse form does.
    alike = [spec, *map(get_spec, list_losses(task=spec.task))]
    known = (other.weight_formula for other in alike if other.function is spec.function)
    weight = next(filter(None, known), "")
    lines = []
    if weight:
        whose = "The true class's part of its" if spec.is_full else "Its"
        lines += [
            f"{whose} gradient with respect to the logits is cross-entropy's times "
            f"w(p) = `{weight}`."
        ]
    if spec.is_full:
        lines += [
            "Every wrong class adds a part of its own: the derivative by its "
            "[margin](../strict_and_liberal.md#the-margin) is "
            f"`{derivative(spec.wrong_class_formula, 'q', by_margin=True)}`."
        ]
    return lines


def derivative(formula: str, variable: str, by_margin: bool = False) -> str:
    """The derivative of a record's formula, in the same syntax.

    Args:
        formula: In Python syntax; may be `A if CONDITION else B`.
        variable: `e`, or a probability.
        by_margin: By the margin m of which the variable is the sigmoid: dq/dm = q·(1 − q).
    """
    first, conditional, rest = formula.partition(" if ")
    if conditional:
        condition, _, second = rest.partition(" else ")
        parts = (derivative(part, variable, by_margin) for part in (first, second))
        return f" if {condition} else ".join(parts)
    x = sympy.Symbol(variable, real=True)
    found = sympy.diff(sympy.sympify(formula, {variable: x, "abs": sympy.Abs}), x)
    if not by_margin:
        return min(str(found), str(sympy.simplify(found)), key=len)
    over, under = sympy.simplify(found * x * (1 - x)).as_numer_denom()
    if under.subs(x, 0.5) < 0:  # Not -q/(q - 1).
        over, under = -over, -under
    return f"{over}/{under}" if under.is_Atom or under.is_Pow else f"{over}/({under})"


def index_of_losses() -> str:
    """Links to the pages of all losses."""
    names = [f"- [`{name}`]({name}.md): {get_spec(name).kind}" for name in list_losses()]
    return "\n".join(["# A page for each loss", "", *names, ""])


def python_reference(package: str) -> str:
    """The public names of a package, as their docstrings describe them.

    Raises:
        PluginError: If one of them has no docstring.
    """
    names = importlib.import_module(package)._MODULES
    lines = [f"# {PACKAGES[package]}", ""]
    shared = [] if package == "hf_losses" else sorted(names.keys() & hf_losses._MODULES.keys())
    if shared:
        listed = ", ".join(f"`{name}`" for name in shared)
        lines += [f"`{package}` has these too: {listed} (see [Python](python.md)).", ""]
    for name, module in sorted(names.items()):
        if name in shared:
            continue
        item = getattr(importlib.import_module(package), name)
        check_docstrings(f"{package}.{name}", item)
        lines += [f"::: hf_losses.{module}.{name}", "    options:"]
        lines += [f"      heading: {package}.{name}", "", *options(item), ""]
    return "\n".join(lines)


def options(item: Any) -> list[str]:
    """The fields that an argument class adds, with their help texts; nothing for anything else."""
    own = [
        field
        for field in (dataclasses.fields(item) if dataclasses.is_dataclass(item) else ())
        if field.name in vars(item)["__annotations__"] and "help" in field.metadata
    ]
    rows = [
        [f"`{field.name}`", f"`{field.default!r}`", field.metadata["help"].replace("|", "\\|")]
        for field in own
    ]
    return [markdown.table(["field", "default", "what it is"], rows)] if rows else []


def check_docstrings(name: str, item: Any) -> None:
    """Raises a PluginError if a public function or class, or a method of it, has no docstring."""
    written = item.__doc__ or ""
    # A dataclass without a docstring gets its signature for one.
    if not written or (inspect.isclass(item) and written.startswith(f"{item.__name__}(")):
        raise PluginError(f"{name} has no docstring")
    for member, value in vars(item).items() if inspect.isclass(item) else ():
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            check_docstrings(f"{name}.{member}", value)


def command_reference() -> str:
    """The help texts of the command."""
    lines = ["# Command line", ""]
    for command in ("", *COMMANDS):
        arguments = [sys.executable, "-m", "hf_losses", *command.split(), "--help"]
        shown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        lines += [f"## hf-losses {command}".rstrip(), "", "```text", shown.rstrip(), "```", ""]
    return "\n".join(lines)


def on_config(config: Any) -> None:
    """Describes the site in the words of the package."""
    config.site_description = SUMMARY


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    add("index.md", readme.replace("](docs/", "]("))
    for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"):
        add(f"{name}.md", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("results/*/*/table.md")):
        add(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("results/**/*.png")):
        add(str(path.relative_to(ROOT)), path.read_bytes())
    add("losses/index.md", index_of_losses())
    with tempfile.TemporaryDirectory() as folder:
        for name in list_losses():
            spec = get_spec(name)
            add(f"losses/{name}.md", loss_page(spec))
            picture = Path(folder) / f"{name}.svg"
            plot_losses(list(dict.fromkeys([neutral_loss(spec.task), name])), picture)
            add(f"losses/{name}.svg", picture.read_bytes())
    for package, title in PACKAGES.items():
        add(f"reference/{title.lower()}.md", python_reference(package))
    add("reference/command_line.md", command_reference())
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ lead to what `on_files` has added."""
    return markdown.replace("](../results/", "](results/")
