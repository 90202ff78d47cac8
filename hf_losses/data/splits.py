"""Files and folders that are named after a split, a set of data: train, val2017, Test_images."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from datasets.exceptions import DatasetsError

from hf_losses.messages import UsageError

# What `load_dataset` raises if it cannot read a dataset. For names of splits and columns, and for
# broken files, that may be a plain ValueError; for a dataset with a script it is a RuntimeError.
UNREADABLE = (OSError, ValueError, RuntimeError, DatasetsError)

SETS = ("train", "validation", "test")
# The words by which `datasets` recognises a set; it does so in lower case alone.
NAMES = dict.fromkeys(("train", "training"), "train")
NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
NAMES |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
NAME = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])")


def set_of(path: Path) -> str | None:
    """The set that a file or folder is named after; None if it is not named after one.

    Args:
        path: The file or folder; only the last part of its path counts.
    """
    match = NAME.search(re.sub("(?<=[a-z])(?=[A-Z])", "_", path.name).lower())  # TrainData
    return NAMES[match[1]] if match else None


def folders_of_sets(folder: Path) -> dict[str, Path]:
    """The folders in a folder of images that hold sets, where folders of classes are expected.

    Args:
        folder: The folder, searched at any depth.

    Returns:
        One folder by the name of each set. A folder that is named after a set holds one if it has
        folders of its own, or lies beside the folder of another set.
    """
    # Hidden folders, such as .ipynb_checkpoints, hold no images.
    folders = [path for path in sorted(folder.rglob("*/")) if not _hidden(path, folder)]
    parents = {path.parent for path in folders}
    sets = [path for path in folders if set_of(path) and path in parents]
    top_level = [path for path in folders if path.parent == folder]
    # Beside other folders, such as unlabeled, only exact names of sets count.
    exact = [path for path in top_level if path.name.lower() in NAMES]
    siblings = top_level if all(map(set_of, top_level)) else exact
    if len(set(map(set_of, siblings))) > 1:
        sets += siblings
    return {name: path for path in reversed(sets) if (name := set_of(path))}


def files_and_folders(folder: Path, endings: Collection[str]) -> list[Path]:
    """The files of a dataset in a folder, and the folders that hold them.

    Args:
        folder: The folder, searched at any depth.
        endings: Endings of the files' names, such as `.csv`.
    """
    files = [path for path in folder.rglob("*.*") if path.suffix in endings]
    paths = {path for file in files for path in (file, *file.parents) if folder in path.parents}
    return sorted(path for path in paths if not _hidden(path, folder))


def check_recognised(paths: Iterable[Path], sets: Collection[str]) -> None:
    """Raises a ValueError if `datasets` took the files of several sets for one training set.

    Args:
        paths: Files and folders of the dataset.
        sets: The sets that `datasets` has made of them.
    """
    for path in paths if set(sets) == {"train"} else ():
        if (name := set_of(path)) not in ("train", None):
            raise UsageError(
                f"{path} is called after the {name} set, but not as `datasets` knows it, which "
                f"sees a training set alone: call it {name}{path.suffix}, or name each set by an "
                "argument of its own (--help)"
            )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
