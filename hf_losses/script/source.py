"""Whether a script trains in a loop of its own, as far as its source shows that."""

from __future__ import annotations

import ast
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Libraries that use no Trainer unless the script names it. Any other library might use one.
WITHOUT_TRAINER = {
    "PIL",
    "accelerate",
    "aiohttp",
    "albumentations",
    "cv2",
    "datasets",
    "deepspeed",
    "evaluate",
    "filelock",
    "huggingface_hub",
    "matplotlib",
    "nltk",
    "numpy",
    "packaging",
    "pandas",
    "peft",
    "requests",
    "safetensors",
    "scipy",
    "seqeval",
    "sklearn",
    "timm",
    "tokenizers",
    "torch",
    "torchaudio",
    "torchmetrics",
    "torchvision",
    "tqdm",
    "transformers",
    "wandb",
    "yaml",
}
# Functions and modules that look up others by name, so that the source does not show which.
BY_NAME = {
    "__import__",
    "eval",
    "exec",
    "getattr",
    "importlib",
    "pickle",
    "pkgutil",
    "pydoc",
    "runpy",
}


def trains_without_trainer(script: Path, root: Path) -> bool:
    """Whether neither a script nor what it imports can build a `Trainer`.

    If in doubt it returns False: if a name with "Trainer" in it occurs, a library is imported that
    is not listed here, something is imported by name, or a file cannot be read as Python.

    Args:
        script: The script's file.
        root: The folder in which Python finds the script's modules.

    Returns:
        True only for a script that uses PyTorch, and so trains in a loop of its own.
    """
    files, imported = [script], set[str]()
    for file in files:  # The list grows as the loop finds more files.
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, ValueError, SyntaxError):
            return False
        if any("Trainer" in name or name in BY_NAME for name in _names(tree)):
            return False
        for level, module in _imports(tree):
            folder = file.parents[level - 1] if level else root
            local_files = list(_files(folder, module))
            files += [path for path in local_files if path not in files]
            if not level and not local_files:
                imported.add(module.partition(".")[0])
    known = WITHOUT_TRAINER | sys.stdlib_module_names
    return bool(imported & {"torch", "accelerate"}) and imported <= known


LAUNCHERS = ("torchrun", "accelerate", "deepspeed")
LAUNCHING = ("torch.distributed.", "accelerate.commands.", "deepspeed.launcher.")


def starts_processes(script: Path) -> str | None:
    """The name of the function by which a script starts processes that train, if it does so.

    Args:
        script: The script's file.
    """
    try:
        tree = ast.parse(script.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return None
    modules = {module for _, module in _imports(tree)}
    starting = {"notebook_launcher", "debug_launcher"}
    if any(module.startswith("torch.multiprocessing") for module in modules):
        starting |= {"spawn", "start_processes"}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in starting:
                return name
    return None


def starts_training(command: Any) -> str | None:
    """What a command starts that may train, in a process that knows nothing of the loss.

    Args:
        command: Its words, as the audit events of Python have them.

    Returns:
        A script or a launcher; None for any other program, and for workers of PyTorch.
    """
    if isinstance(command, str | bytes) or not command:
        return None
    program, *words = (os.fsdecode(word) for word in command)
    name = os.path.basename(program)
    if "hf_losses" in words:
        return None
    if name in LAUNCHERS and (name != "accelerate" or "launch" in words):
        return name
    options = [*itertools.takewhile(lambda word: word.startswith("-"), words)]
    rest = words[len(options) :]
    if not name.startswith("python") or "-c" in options or not rest:
        return None
    if "-m" in options:
        return rest[0] if rest[0].startswith(LAUNCHING) else None
    worker = f"{os.sep}torch{os.sep}" in rest[0]
    return rest[0] if rest[0].endswith(".py") and not worker else None


def _names(tree: ast.Module) -> Iterator[str]:
    """Names and strings in a source that may stand for a Trainer, or for a way to look one up."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name != "getattr":
                yield name
            case ast.Call(func=ast.Name(id="getattr"), args=[_, attribute, *_]):
                if not isinstance(attribute, ast.Constant):
                    yield "getattr"
            case ast.alias(name=module) | ast.ImportFrom(module=str(module)):
                yield from module.split(".")
            case ast.Attribute(attr=text) | ast.Constant(value=str(text)):
                # `model.eval` looks nothing up, unlike `eval`; a sentence is no name.
                if "Trainer" in text and not text.strip().count(" "):
                    yield text


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module that may be imported, after the number of dots before its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, f"{node.module}.{alias.name}" if node.module else alias.name


def _files(folder: Path, module: str) -> Iterator[Path]:
    """The files of a module and of the packages above it that lie in a folder."""
    for part in module.split("."):
        if (file := folder / f"{part}.py").is_file():
            yield file
            return
        folder /= part
        if (file := folder / "__init__.py").is_file():
            yield file
