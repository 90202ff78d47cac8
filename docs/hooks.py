"""What MkDocs adds to the documents: the README as first page, a page per loss, the reference."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import hf_losses
from hf_losses import get_spec, list_losses
from hf_losses.citation import linked
from hf_losses.losses.plots import plot_losses
from hf_losses.losses.registry import LossSpec, neutral_loss

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("list", "plot", "run", "compare", "publish")


def loss_page(spec: LossSpec) -> str:
    """The page of a loss, from its record."""
    variable = "p" if spec.task == "classification" else "e"
    lines = [f"# {spec.name}", "", f"A {spec.kind} {spec.task} loss.", ""]
    lines += [f"![{spec.name} beside {neutral_loss(spec.task)}]({spec.name}.svg)", ""]
    lines += ["## Formula", "", f"ℓ({variable}) = `{spec.full_formula}`", ""]
    if spec.weight_formula:
        lines += [
            f"Its gradient with respect to the logits is cross-entropy's times w(p) = "
            f"`{spec.weight_formula}`.",
            "",
        ]
    for name, parameter in spec.parameters.items():
        lines += [f"- `{name}` = {parameter.default:g} ({parameter.bound}): {parameter.help}"]
    lines += ["", "## When to use it", "", linked(spec.use), ""]
    lines += ["## When not", "", linked(spec.avoid), ""]
    lines += ["## Use", "", "```python", "from hf_losses import get_loss", ""]
    lines += [f'loss = get_loss("{spec.name}")', "```", ""]
    lines += [f'In a training: `--loss {spec.name}`, or `LossTrainer(…, loss="{spec.name}")`.', ""]
    lines += ["## Source", "", linked(spec.reference) or "–", ""]
    return "\n".join(lines)


def index_of_losses() -> str:
    """Links to the pages of all losses."""
    names = [f"- [`{name}`]({name}.md): {get_spec(name).kind}" for name in list_losses()]
    return "\n".join(["# A page for each loss", "", *names, ""])


def python_reference() -> str:
    """The public names, as their docstrings describe them."""
    lines = ["# Python", ""]
    for name, module in sorted(hf_losses._MODULES.items()):
        lines += [f"::: hf_losses.{module}.{name}", "    options:"]
        lines += [f"      heading: hf_losses.{name}", ""]
    return "\n".join(lines)


def command_reference() -> str:
    """The help texts of the command."""
    lines = ["# Command line", ""]
    for command in ("", *COMMANDS):
        arguments = [sys.executable, "-m", "hf_losses", *command.split(), "--help"]
        shown = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        lines += [f"## hf-losses {command}".rstrip(), "", "```text", shown.rstrip(), "```", ""]
    return "\n".join(lines)


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    add("index.md", readme.replace("](docs/", "]("))
    for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"):
        add(f"{name}.md", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("results/which_loss/*/table.md")):
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
    add("reference/python.md", python_reference())
    add("reference/command_line.md", command_reference())
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of docs/ lead to what `on_files` has added."""
    return markdown.replace("](../results/", "](results/")
