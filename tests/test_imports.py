"""Packages import in one direction, files are short, and the losses need only torch."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_losses
from hf_losses.lazy import lazy

PACKAGE = Path(hf_losses.__file__).parent
RECIPES = Path(__file__).parents[1] / "recipes"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOOR = {"files", "messages", "citation", "markdown", "options", "lazy"}
# What each package may import in addition to itself and the floor.
MAY_IMPORT = {
    "losses": set(),
    "data": {"losses"},
    "models": {"losses", "data"},
    "metrics": {"losses", "models"},
    "hub": {"losses"},
    "training": {"losses", "data", "models", "metrics", "hub"},
    "integrations": {"losses", "models", "hub", "training"},
    "script": {"losses", "models", "training", "integrations"},
    "compare": {"losses", "metrics"},
    "search": {"losses", "training"},
    "cli": {"losses", "hub", "script", "compare"},
}
# What a recipe may import from, apart from names of their `__all__`.
PUBLIC = ("hf_losses", "hf_losses.data", "hf_losses.models", "hf_losses.metrics")
PUBLIC += ("hf_losses.options", "hf_losses.search", "hf_losses.training")
MODULES_FOR_RECIPES = {"models", "output_folder", "study"}
LINES = 400
FILES_IN_A_PACKAGE = 12


def package_of(module):
    """The top-level package of a module, or the module itself if it is at the top level."""
    return module.split(".")[0]


def imports(module):
    """The modules of `hf_losses` and the third-party packages that a module imports anywhere."""
    internal, external = set(), set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, rest in (name.partition(".") for name in names):
            if package == "hf_losses":
                parts = rest.split(".")
                while parts and not {".".join(parts), ".".join([*parts, "__init__"])} & {*FILES}:
                    parts.pop()
                name = ".".join(parts)
                internal.add(name if name in FILES else f"{name}.__init__".removeprefix("."))
            elif package not in sys.stdlib_module_names:
                external.add(package)
    return internal, external


@pytest.mark.parametrize("module", [m for m in FILES if m not in ("__init__", "__main__")])
def test_every_module_imports_what_its_package_may(module):
    package = package_of(module)
    internal, external = imports(module)
    imported = {package_of(name) for name in internal} - {"__init__"}
    if package in FLOOR:
        assert not internal
        assert external <= ({"joblib"} if module == "options" else set())
    else:
        assert imported <= MAY_IMPORT[package] | FLOOR | {package}
    if package == "losses":
        assert external <= {"torch", "triton", "matplotlib", "rich"}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_which_may_be_copied_imports_public_names_alone(recipe):
    for node in ast.parse(recipe.read_text(encoding="utf-8")).body:
        module = getattr(node, "module", None) or ""
        if isinstance(node, ast.ImportFrom) and module.startswith("hf_losses"):
            assert module in PUBLIC
            public = getattr(importlib.import_module(module), "__all__", ("option", "cores"))
            assert {alias.name for alias in node.names} <= {*public, *MODULES_FOR_RECIPES}


def test_nothing_lies_outside_the_packages_of_the_table():
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    folders = {path.relative_to(PACKAGE).parts[0] for path in files if path.parent != PACKAGE}
    assert folders == set(MAY_IMPORT)
    top_level = {path.stem for path in files if path.parent == PACKAGE}
    assert top_level == FLOOR | {"__init__", "__main__", "py"}  # py.typed


def test_no_import_is_circular():
    graph = {module: imports(module)[0] - {"__init__"} for module in FILES if module != "__init__"}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("module", FILES)
def test_no_file_is_too_long(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LINES


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES.values()}), ids=str)
def test_no_package_is_too_large(folder):
    assert len([*folder.glob("*.py")]) <= FILES_IN_A_PACKAGE


def test_using_a_loss_loads_torch_and_nothing_else():
    program = """
import sys, torch
before = {name.partition(".")[0] for name in sys.modules}
import hf_losses
hf_losses.get_loss("liberal_exp", label_smoothing=0.1)(torch.zeros(1, 2), torch.tensor([0]))
hf_losses.get_loss("smae")(torch.zeros(1), torch.zeros(1))
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - sys.stdlib_module_names))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["hf_losses"]


def test_every_public_name_exists_and_no_other():
    for name in hf_losses.__all__:
        assert getattr(getattr(hf_losses, name), "__module__", "hf_losses.").startswith(
            "hf_losses."
        )
    with pytest.raises(AttributeError, match="no attribute 'get_los'"):
        _ = hf_losses.get_los


@pytest.mark.parametrize("package", ["data", "metrics", "models", "search", "training"])
def test_what_a_package_exports_exists(package):
    module = importlib.import_module(f"hf_losses.{package}")
    for name in module.__all__:
        home = getattr(getattr(module, name), "__module__", module.__name__)  # Or a constant's.
        assert f"{home}.".startswith(f"hf_losses.{package}.")


def test_a_lazy_module_is_loaded_by_its_first_use_even_if_it_deletes_its_own_names(
    tmp_path, monkeypatch
):
    # As torch does, which importlib's own lazy loader cannot load since Python 3.12.
    source = "import sys\nspare = 1\ndelattr(sys.modules[__name__], 'spare')\nvalue = 2\n"
    (tmp_path / "lazily_loaded.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module = lazy("lazily_loaded")
    assert "lazily_loaded" not in sys.modules
    assert (module.value, module.value) == (2, 2)
    with pytest.raises(AttributeError, match="spare"):
        _ = module.spare
    assert sys.modules.pop("lazily_loaded").value == 2
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        lazy("no_such_module")
