"""Every package that is imported is declared, and what is optional is imported where it is used."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What a module is called whose package has another name.
PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}
LOWEST = ROOT / "constraints-lowest.txt"


def names(requirements):
    return {re.split(r"[><=\[ ]", text)[0].replace("_", "-").lower() for text in requirements}


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(found) for extra, found in PROJECT["optional-dependencies"].items()}


def imported():
    """By package: whether it is imported at the top of a file, and the files."""
    found = defaultdict(set)
    for path in [*ROOT.glob("hf_losses/**/*.py"), *ROOT.glob("recipes/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in (name.partition(".")[0] for name in modules):
                if module not in sys.stdlib_module_names and module != "hf_losses":
                    package = PACKAGES.get(module, module).replace("_", "-").lower()
                    found[package].add((node.col_offset == 0, str(path.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("package", sorted(imported()))
def test_it_is_declared(package):
    if package in BASE:
        return
    extras = [extra for extra, packages in EXTRAS.items() if package in packages]
    assert set(extras) - {"dev"}, f"{package} is neither a dependency nor in an extra"
    at_the_top = {file for top, file in imported()[package] if top}
    # Whoever reads images has pillow.
    assert all(file.startswith("hf_losses/data/images/") for file in at_the_top)


def test_the_lowest_versions_are_those_of_the_project():
    extras = chain.from_iterable(PROJECT["optional-dependencies"].values())
    bounds = [*PROJECT["dependencies"], *extras]
    lowest = {re.sub(r"\[.*\]", "", text).replace(">=", "==") for text in bounds if ">=" in text}
    lines = [line.partition("#")[0].strip() for line in LOWEST.read_text().splitlines()]
    held = {line for line in lines if line}
    assert {line.partition("==")[0] for line in lowest} == {
        line.partition("==")[0] for line in held
    }
    assert lowest - held == {line for line in lowest if line.startswith("torch==")}
