"""Reads stored images: idx files, folders, parquet files and datasets of the Hub."""

from __future__ import annotations

import glob
import gzip
from pathlib import Path

import datasets
import numpy as np
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from hf_losses.data.images.pictures import Images, Pixels
from hf_losses.data.labels import class_names, encode
from hf_losses.data.splits import UNREADABLE, check_recognised, folders_of_sets
from hf_losses.messages import UsageError, nearest

DIGITS = "digits"
# Names of splits on the Hub, and the set that each of them is.
SPLITS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}

# Prefixes of the names of idx files, and the set that each of them is.
IDX = {"train": "train", "t10k": "test"}

IMAGES = set(ImageFolder.EXTENSIONS)
# What telephones and cameras write. `datasets` passes over them, and over whole classes of them.
OTHER_IMAGES = {".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"} - IMAGES

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")

IDX_BYTES = 0x08  # The type of the numbers: unsigned bytes.


def idx_files(name: str) -> dict[str, Path]:
    """The idx files of a folder, by their names without `.gz`; empty if it is no folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {}
    return {
        path.name.removesuffix(".gz"): path
        for path in sorted(folder.iterdir())
        if path.name.removesuffix(".gz").endswith("-ubyte")
    }


def load_idx(folder: str) -> tuple[dict[str, Images], list[str]]:
    """Reads MNIST's files, or those of another dataset in the same format."""
    files = {name.replace(".idx", "-idx"): path for name, path in idx_files(folder).items()}
    arrays = {}
    for prefix, split in IDX.items():
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        missing = [name for name in names if name not in files]
        if len(missing) == 2 and split == "test":
            continue
        if missing:
            raise UsageError(f"{folder} needs {missing[0]} (or .gz); found: {', '.join(files)}")
        pixels, labels = (read_idx(files[name]) for name in names)
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise UsageError(
                f"{folder}: {names[0]} holds {pixels.shape} numbers and {names[1]} {labels.shape}; "
                "images [N, H, W] and labels [N] are needed"
            )
        arrays[split] = pixels, labels
    classes = class_names(arrays["train"][1].tolist(), folder)
    splits = {}
    for prefix, split in IDX.items():
        if split in arrays:
            pixels, labels = arrays[split]
            encoded = encode(labels.tolist(), classes, f"{folder}, {prefix} labels")
            splits[split] = Images(Pixels(pixels), np.array(encoded, dtype=np.int64))
    return splits, classes


def read_idx(path: Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes.

    Args:
        path: The file; `.gz` is unpacked.

    Returns:
        Its array, uint8, read-only.

    Raises:
        ValueError: If it is no such file, or cut short.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, IDX_BYTES)):
        raise UsageError(f"{path} is no idx file of unsigned bytes: it begins {content[:4]!r}")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").astype(int).tolist())
    if len(content) != start + int(np.prod(shape)):
        raise UsageError(
            f"{path} says that it holds {shape} numbers, but there are {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def is_path(name: str) -> bool:
    """Whether a name means a folder of this machine rather than a dataset of the Hub."""
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def load_from_hub(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    """Every split of a dataset of the Hub, or of a folder with the layout of one."""
    if is_path(name) and not Path(name).expanduser().is_dir():
        raise UsageError(f"no folder {name!r}")
    folder = Path(name).expanduser()
    try:
        splits = dict(datasets.load_dataset(str(folder), config))
    except UNREADABLE as error:
        raise UsageError(
            f"cannot load {name!r}: {str(error).splitlines()[0]}. --dataset_name takes a name of "
            "the Hub or a folder; without the Hub: a copy in a folder, --train_dir, --train_file "
            f"or {DIGITS}"
        ) from error
    sets = {SPLITS[split] for split in splits if split in SPLITS}
    check_recognised(folders_of_sets(folder).values(), sets)
    return splits


def load_folder(folder: str) -> datasets.Dataset:
    """The images of a folder that has a folder for every class."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no folder {folder!r}.{nearest(path.name, siblings)}")
    files = {"train": f"{glob.escape(str(path))}/**"}
    images = (p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in IMAGES)
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in OTHER_IMAGES)
    if others := [p for p in found if not _is_hidden(p.relative_to(path))]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"{folder} has images in formats that cannot be read: "
            f"{', '.join(str(p.relative_to(path)) for p in others[:3])}{more}; convert them to "
            ".jpg or .png, or take them out"
        )
    # `datasets` passes over the hidden ones.
    shown = (image for image in images if not _is_hidden(image))
    by_depth = {len(image.parts): image for image in shown}
    named = any((path / name).exists() for name in ImageFolder.METADATA_FILENAMES)
    if len(by_depth) > 1 and not named:
        raise UsageError(
            f"{folder}: {' and '.join(map(str, by_depth.values()))} lie at different depths; the "
            "class of an image is the folder that it lies in, as in train/cat/1.jpg"
        )
    # Left to itself, `datasets` takes no labels from folders of which there is only one.
    drop_labels = False if min(by_depth, default=1) > 1 else None
    try:
        return datasets.load_dataset(
            "imagefolder", data_files=files, split="train", drop_labels=drop_labels
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{folder}: no images found ({str(error).splitlines()[0]}); every class needs a "
            "folder of its own, as in train/cat/1.jpg"
        ) from error


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def check_disjoint(folders: dict[str, str]) -> None:
    """Raises a ValueError if the folder of a set holds folders of other sets.

    The class of an image is the folder that it lies in, whatever the folders above are, so that all
    of these sets would be one.

    Args:
        folders: The folder of each set, by the set's name.
    """
    paths = {name: Path(folder).expanduser().resolve() for name, folder in folders.items()}
    for name, path in paths.items():
        flag = f"--{name}_dir {folders[name]}"
        if sets := folders_of_sets(path):
            shown = {n: Path(folders[name]) / p.relative_to(path) for n, p in sets.items()}
            raise UsageError(
                f"{flag} holds folders of sets, and the images of all of them would be one set: "
                f"name each set ({' '.join(f'--{n}_dir {p}' for n, p in shown.items())}), or "
                f"what holds them (--dataset_name {next(iter(shown.values())).parent})"
            )
        for other, other_path in paths.items():
            if path in other_path.parents:
                raise UsageError(
                    f"{flag} holds --{other}_dir {folders[other]}, whose images would be in both "
                    "sets: give each set a folder of its own"
                )


def load_parquet(file: str) -> datasets.Dataset:
    """The rows of a parquet file."""
    path = Path(file).expanduser()
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no file {file!r}.{nearest(path.name, siblings)}")
    try:
        return datasets.Dataset.from_parquet(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{file} is no parquet file: {str(error).splitlines()[0]}") from error


def need_column(rows: datasets.Dataset, column: str, where: str) -> None:
    """Raises a ValueError that names the nearest column if one is missing."""
    if column not in rows.column_names:
        raise UsageError(
            f"{where} has no column {column!r}.{nearest(column, rows.column_names)} "
            f"Columns: {', '.join(rows.column_names)}"
        )


def image_column(rows: datasets.Dataset, requested: str | None, where: str) -> str:
    """Name of the column of images: the one that the user named, or the only one there is."""
    if requested:
        need_column(rows, requested, where)
        return requested
    typed = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    candidates = typed or [name for name in ("image", "img") if name in rows.column_names]
    if len(candidates) != 1:
        raise UsageError(
            f"{where}: name the column of images by --image_column; columns: "
            f"{', '.join(rows.column_names)}"
        )
    name: str = candidates[0]
    return name


def label_column(rows: datasets.Dataset, requested: str | None, where: str) -> str:
    """Name of the column of labels: the one that the user named, or else one of the usual names."""
    if requested:
        need_column(rows, requested, where)
        return requested
    candidates = [name for name in LABEL_COLUMNS if name in rows.column_names]
    if not candidates:
        if rows.column_names == ["image"]:
            raise UsageError(
                f"{where}: no labels; every class needs a folder of its own, as in train/cat/1.jpg"
            )
        raise UsageError(
            f"{where}: name the column of labels by --label_column; columns: "
            f"{', '.join(rows.column_names)}"
        )
    return candidates[0]
