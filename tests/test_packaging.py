"""Imported packages are declared, lower bounds and CI agree, and the wheel is complete."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Modules whose distribution has another name.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def distribution(name):
    """The name of a module, distribution or requirement as PyPI compares names."""
    return re.split(r"[><=\[ ]", DISTRIBUTIONS.get(name, name))[0].replace("_", "-").lower()


# PyTorch for GPUs depends on it; elsewhere only the tests run the kernels.
BY_TORCH = {"triton"}
BASE = {distribution(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {
    extra: {distribution(requirement) for requirement in requirements}
    for extra, requirements in PROJECT["optional-dependencies"].items()
}


def third_party_imports():
    """Maps each distribution to the pairs (file, whether the import is at module level)."""
    imports = defaultdict(set)
    patterns = ("hf_losses/**/*.py", "recipes/*.py", "docs/*.py")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                continue
            for module in (name.partition(".")[0] for name in modules):
                if module not in sys.stdlib_module_names and module != "hf_losses":
                    file = path.relative_to(ROOT).as_posix()
                    imports[distribution(module)].add((file, node.col_offset == 0))
    return imports


IMPORTS = third_party_imports()


def pins(name):
    """The lines `name==version` of a constraints file."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line for line in lines if line}


@pytest.mark.parametrize("package", sorted(IMPORTS))
def test_every_import_is_declared(package):
    if package in BASE | BY_TORCH:
        return
    extras = {extra for extra, packages in EXTRAS.items() if package in packages}
    if all(file.startswith("docs/") for file, _ in IMPORTS[package]):
        assert "docs" in extras
        return
    assert extras - {"dev", "docs"}, f"{package} is neither a dependency nor in an extra"
    # Optional packages are imported inside functions; reading images needs pillow in any case.
    at_module_level = {file for file, module_level in IMPORTS[package] if module_level}
    assert all(file.startswith("hf_losses/data/images/") for file in at_module_level)


def test_the_lowest_versions_are_those_of_the_project():
    requirements = [*PROJECT["dependencies"]]
    requirements += chain.from_iterable(PROJECT["optional-dependencies"].values())
    bounds = {re.sub(r"\[.*\]|;.*", "", text) for text in requirements if ">=" in text}
    lowest = {bound.replace(">=", "==") for bound in bounds}
    (torch_bound,) = (pin for pin in lowest if pin.startswith("torch=="))
    (torch_tested,) = (pin for pin in pins("constraints.txt") if pin.startswith("torch=="))
    # The first two differ on purpose, as the file says; the third is matplotlib's.
    assert lowest - pins("constraints-lowest.txt") == {torch_bound}
    assert pins("constraints-lowest.txt") - lowest == {torch_tested, "pyparsing==3.2.5"}


def test_ci_runs_every_supported_python():
    minor = r"Programming Language :: Python :: (3\.\d+)"
    supported = re.findall(minor, "\n".join(PROJECT["classifiers"]))
    assert f">={supported[0]}" == PROJECT["requires-python"]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    versions = ", ".join(f'"{version}"' for version in supported)
    assert workflow.count(f"python: [{versions}]") == workflow.count("python: [") == 1


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_works_alone(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", "--target", target, wheel], check=True)
    tracked = subprocess.run(
        ["git", "ls-files", "hf_losses"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    installed = {path.relative_to(target).as_posix() for path in target.rglob("hf_losses/**/*")}
    assert set(tracked.stdout.split()) <= installed
    program = """
import hf_losses
from hf_losses.compare.report import files
from hf_losses.data.movie_reviews import load_movie_reviews
from hf_losses.hub import card
assert files.TEMPLATE.read_text() and card.TEMPLATE.read_text()
print(hf_losses.__file__, len(load_movie_reviews("movie_reviews")["train"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    file, count = done.stdout.split()
    assert Path(file).is_relative_to(target)
    assert int(count) > 1000
