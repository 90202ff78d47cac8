"""Images with labels: from the Hub, folders, parquet and idx files, or scikit-learn's digits.

Whatever does not fit raises a ValueError that names file or row, before a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from sklearn.datasets import load_digits

from hf_losses.data.images.files import (
    DIGITS,
    LABEL_COLUMNS,
    SPLITS,
    check_disjoint,
    idx_files,
    image_column,
    is_path,
    label_column,
    load_folder,
    load_from_hub,
    load_idx,
    load_parquet,
    need_column,
)
from hf_losses.data.images.pictures import Images, Pixels, Stored
from hf_losses.data.labels import (
    check_class_count,
    check_complete,
    check_two_classes,
    class_names,
    encode,
)
from hf_losses.data.splits import SETS
from hf_losses.messages import UsageError
from hf_losses.options import option

ABOUT_DIGITS = (
    "the 1,797 handwritten digits of 8 × 8 pixels that scikit-learn ships (test set of the UCI's "
    "Optical Recognition of Handwritten Digits), a fifth of them as test set"
)


@dataclass
class ImageArguments:
    """The data: a dataset, or folders or files of one's own."""

    dataset_name: str | None = option(
        None,
        "Hub name such as cifar10, beans or food101, or a folder: MNIST's idx files, "
        f"parquet files, or SPLIT/CLASS/image files; without one: {DIGITS} (scikit-learn's)",
    )
    dataset_config_name: str | None = option(
        None, "configuration of the dataset, if it has several"
    )
    train_dir: str | None = option(None, "folder with one folder of images per class")
    validation_dir: str | None = option(None, "goes with --train_dir")
    test_dir: str | None = option(None, "goes with --train_dir; its labels are optional")
    train_file: str | None = option(None, "parquet file with images and labels")
    validation_file: str | None = option(None, "goes with --train_file")
    test_file: str | None = option(None, "goes with --train_file; its labels are optional")
    image_column: str | None = option(None, "without one: the column of images")
    label_column: str | None = option(None, f"without one: {', '.join(LABEL_COLUMNS)}")
    train_val_split: float = option(
        0.1, "share of the training set that is held out where there is no validation set; 0: none"
    )
    max_train_samples: int | None = option(None, "train on a fixed random sample of this size")
    max_eval_samples: int | None = option(None, "the same for every validation and test set")
    skip_corrupt: bool = option(False, "leave out images that cannot be read, and list them")

    def __post_init__(self) -> None:
        """Checks what can be checked before anything is read."""
        flags = {
            kind: [n for n in vars(self) if n.endswith(f"_{kind}") and getattr(self, n)]
            for kind in ("dir", "file")
        }
        used = [names for names in flags.values() if names]
        if self.dataset_name:
            used.append(["dataset_name"])
        if len(used) > 1:
            raise UsageError(f"--{used[1][0]} and --{used[0][0]} contradict each other; keep one")
        for kind, names in flags.items():
            if names and f"train_{kind}" not in names:
                raise UsageError(f"--{names[0]} goes with --train_{kind}")
        if not 0 <= self.train_val_split < 1:
            raise UsageError(f"--train_val_split must be in [0, 1), got {self.train_val_split}")
        for name in ("max_train_samples", "max_eval_samples"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise UsageError(f"--{name} must be at least 1, got {limit}")
        if not used:
            self.dataset_name = DIGITS

    @property
    def on_hub(self) -> bool:
        """Whether the data come from the Hub."""
        return bool(self.dataset_name) and not (
            self.dataset_name == DIGITS or is_path(str(self.dataset_name))
        )

    @property
    def name(self) -> str:
        """The dataset, or the training folder or file, without what leads to it."""
        path = self.dataset_name or self.train_dir or self.train_file or ""
        if self.on_hub:
            return path.replace("/", "_")
        return Path(path).resolve().stem

    def load(self) -> ImageData:
        """Reads and checks the data.

        Raises:
            ValueError: If it cannot be read, or an image, column or label does not fit.
        """
        names: dict[str, str] = {}
        if self.dataset_name == DIGITS:
            splits, classes = _digits()
        elif self.dataset_name and idx_files(self.dataset_name):
            splits, classes = load_idx(self.dataset_name)
        else:
            splits, classes, names = self._stored()
        if "validation" not in splits and self.train_val_split:
            splits["train"], splits["validation"] = splits["train"].split(self.train_val_split)
            names["validation"] = names.get("train", "")
        for name, split in splits.items():
            limit = self.max_train_samples if name == "train" else self.max_eval_samples
            splits[name] = split = split.sample(limit)
            if not self.skip_corrupt:
                split.check_images()
            else:
                splits[name] = split.readable()
                if not len(splits[name]):
                    raise UsageError(f"none of the {len(split)} {name} images can be read")
        labels = splits["train"].labels
        assert labels is not None  # A training set with missing labels has been refused.
        check_two_classes(labels, classes)
        order = [name for name in SETS if name in splits]
        origin = self._origin()
        if self.on_hub:
            origin["splits"] = {name: names[name] for name in order}
            origin["partial"] = [n for n in order if len(splits[n]) < len(splits[n].source)]
        return ImageData({name: splits[name] for name in order}, classes, origin)

    def _origin(self) -> dict[str, Any]:
        """Where the data come from; of files and folders the names alone."""
        if self.dataset_name == DIGITS:
            return {"name": "scikit-learn's digits", "about": ABOUT_DIGITS}
        if self.on_hub:
            config = self.dataset_config_name
            return {"name": self.dataset_name, "id": self.dataset_name, "config": config}
        if self.dataset_name:
            return {"name": self.name, "about": f"files of the folder `{self.name}`"}
        paths = [self.train_dir, self.validation_dir, self.test_dir]
        paths += [self.train_file, self.validation_file, self.test_file]
        kind = "folders" if self.train_dir else "files"
        names = [f"`{Path(path).resolve().name}`" for path in paths if path]
        return {"name": self.name, "about": f"the {kind} {', '.join(names)}"}

    def _stored(self) -> tuple[dict[str, Images], list[str], dict[str, str]]:
        """The sets that `datasets` reads, the classes, and the dataset's own names of the sets."""
        stored, split_names = {}, {}
        if self.dataset_name:
            for split, rows in load_from_hub(self.dataset_name, self.dataset_config_name).items():
                if split in SPLITS:
                    stored[SPLITS[split]] = f"{self.dataset_name}, {split} set", rows
                    split_names[SPLITS[split]] = split
        else:
            check_disjoint({n: p for n in SETS if (p := getattr(self, f"{n}_dir"))})
            for name in SETS:
                folder, file = getattr(self, f"{name}_dir"), getattr(self, f"{name}_file")
                if folder:
                    stored[name] = folder, load_folder(folder)
                elif file:
                    stored[name] = file, load_parquet(file)
        if "train" not in stored:
            raise UsageError(
                f"{self.dataset_name} has no training set; it needs a split or folder 'train'"
            )
        where, train = stored["train"]
        image = image_column(train, self.image_column, where)
        label = label_column(train, self.label_column, where)
        feature = train.features[label]
        if not isinstance(feature, datasets.Value | datasets.ClassLabel):
            raise UsageError(f"{where}: column {label!r} holds {feature}, not labels")
        if self.train_dir and isinstance(feature, datasets.ClassLabel):  # Not from a metadata.csv.
            check_class_count([feature.int2str(label) for label in train[label][:]], where)
        classes = getattr(feature, "names", None) or class_names(train[label][:], where)
        splits = {}
        for name, (where, rows) in stored.items():
            column = image_column(rows, self.image_column or image, where)
            rows = rows.cast_column(column, datasets.Image())
            is_test = name == "test"
            if is_test and label not in rows.column_names:
                encoded: list[Any] = [None] * len(rows)
            else:
                need_column(rows, label, where)
                names = getattr(rows.features[label], "names", None)
                encoded = encode(
                    rows[label][:], classes, where, names, unknown=-1 if names else None
                )
            check_complete(encoded, where, is_test=is_test)
            labels = None if None in encoded else np.array(encoded, dtype=np.int64)
            splits[name] = Images(Stored(rows, column, where), labels)
        return splits, classes, split_names


@dataclass
class ImageData:
    """Data that has been checked.

    Attributes:
        splits: `train`, perhaps `validation` and `test`.
        classes: Class names by id.
        origin: Where the data come from, see `outputs.dataset_facts`.
    """

    splits: dict[str, Images]
    classes: list[str]
    origin: dict[str, Any] = field(default_factory=dict)
    options = "--dataset_name, --train_dir, --train_file"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the first training image."""
        return self.splits["train"].image(0).size

    @property
    def skipped(self) -> list[str]:
        """Names of the images that were left out, with the name of their set."""
        return [f"{name}: {image}" for name, s in self.splits.items() for image in s.skipped]

    @property
    def drawn(self) -> bool:
        """Whether the images are drawings such as digits, which must not be mirrored."""
        return isinstance(self.splits["train"].source, Pixels)

    @property
    def inputs(self) -> str:
        """The images in words."""
        width, height = self.size
        return f"{width}×{height} images" if self.drawn else f"images such as {width}×{height}"

    def sets(self, kind: str) -> dict[str, Images]:
        """The `validation` or the `test` set by name, if there is one."""
        return {name: split for name, split in self.splits.items() if name == kind}


def _digits() -> tuple[dict[str, Images], list[str]]:
    """The 1,797 digits of 8 × 8 pixels that scikit-learn ships; a fifth of them is the test set."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    everything = Images(Pixels(pixels), digits.target.astype(np.int64))
    train, test = everything.split(0.2)
    return {"train": train, "test": test}, [str(name) for name in digits.target_names]
