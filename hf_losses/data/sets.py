"""Files and folders that are called after a set: train, val2017, Test_images."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from hf_losses.messages import UsageError

SETS = ("train", "validation", "test")
# What `datasets` takes for a set where it stands in small letters.
NAMES = dict.fromkeys(("train", "training"), "train")
NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
NAMES |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
NAME = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])")


def set_of(path: Path) -> str | None:
    """The set that a file or folder is called after; None if it is not called after one.

    Args:
        path: Of which the last name counts.
    """
    match = NAME.search(re.sub("(?<=[a-z])(?=[A-Z])", "_", path.name).lower())  # TrainData
    return NAMES[match[1]] if match else None


def folders_of_sets(folder: Path) -> dict[str, Path]:
    """The folders of sets in a folder of images, which are no classes.

    Args:
        folder: Where to look, at any depth.

    Returns:
        One by the name of each set: those that hold folders, or are all that there is.
    """
    # Those that are hidden hold no images, such as .ipynb_checkpoints.
    every = [path for path in sorted(folder.rglob("*/")) if not _hidden(path, folder)]
    inner = {path.parent for path in every}
    found = [path for path in every if set_of(path) and path in inner]
    first = [path for path in every if path.parent == folder]
    # Beside other folders, such as unlabeled, those count whose name is that of a set alone.
    plain = [path for path in first if path.name.lower() in NAMES]
    sets = first if all(map(set_of, first)) else plain
    if len(set(map(set_of, sets))) > 1:
        found += sets
    return {name: path for path in reversed(found) if (name := set_of(path))}


def files_and_folders(folder: Path, endings: Collection[str]) -> list[Path]:
    """The files of a dataset in a folder, and the folders that they are in.

    Args:
        folder: Where to look, at any depth.
        endings: Of the files' names, such as `.csv`.
    """
    files = [path for path in folder.rglob("*.*") if path.suffix in endings]
    found = {path for file in files for path in (file, *file.parents) if folder in path.parents}
    return sorted(path for path in found if not _hidden(path, folder))


def check_seen(paths: Iterable[Path], seen: Collection[str]) -> None:
    """Raises a ValueError if there is a training set alone, though other sets have files.

    Args:
        paths: Files and folders of the dataset.
        seen: The sets that `datasets` has made of them.
    """
    for path in paths if set(seen) == {"train"} else ():
        if (name := set_of(path)) not in ("train", None):
            raise UsageError(
                f"{path} is called after the {name} set, but not as `datasets` knows it, which "
                f"sees a training set alone: call it {name}{path.suffix}, or name each set by an "
                "argument of its own (--help)"
            )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
