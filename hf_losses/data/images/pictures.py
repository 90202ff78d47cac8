"""Images that are read when they are used, and sets of them with labels."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from sklearn.model_selection import train_test_split

from hf_losses.messages import UsageError
from hf_losses.options import cores

SIXTEEN_BITS = ("PNG", "PPM")  # Formats that Pillow reads into 32 bits where they have 16.
# Bytes of a set that all loading processes together keep decoded: CIFAR-10 takes longer to decode
# than a small network takes to learn from it.
KEPT = 2**30


class Stored(Sequence[PIL.Image.Image]):
    """Images in files or in a table, read when they are first used.

    Args:
        rows: A dataset with a column of images.
        column: Name of the column.
        where: File, folder or dataset, for errors.
    """

    def __init__(self, rows: datasets.Dataset, column: str, where: str) -> None:
        self._rows = rows.select_columns([column])
        self._undecoded = self._rows.cast_column(column, datasets.Image(decode=False))
        self._column, self._where = column, where
        self._kept: dict[int, PIL.Image.Image] = {}

    def __len__(self) -> int:
        """The number of images."""
        return len(self._rows)

    def __getitem__(self, row: int) -> PIL.Image.Image:  # type: ignore[override]
        """The image of a row in RGB; a ValueError that names it if it cannot be read."""
        if (kept := self._kept.get(int(row))) is not None:
            return kept
        try:
            stored = self._rows[int(row)][self._column]
        except Exception as error:  # Pillow's decoders raise errors of any type.
            raise UsageError(f"cannot read {self.name(row)}: {error}") from error
        with stored:  # The image of a GIF holds its file open.
            picture = to_rgb(stored)
        worker = torch.utils.data.get_worker_info()
        copies = worker.num_workers if worker else 1
        if 4 * picture.width * picture.height * len(self) * copies <= KEPT:  # As Pillow stores RGB.
            self._kept[int(row)] = picture
        return picture

    def name(self, row: int) -> str:
        """File name under its folder, or dataset and row.

        Args:
            row: Number of the row.
        """
        image = self._undecoded[int(row)][self._column]
        path = image and image["path"]
        if path and Path(self._where).is_dir():
            return os.path.relpath(path, self._where)
        return f"row {row + 1}" + (f" ({path})" if path else "")

    def corrupt(self, rows: Sequence[int] | np.ndarray) -> dict[int, str]:
        """The images that cannot be read: for each row what is wrong with its image.

        Args:
            rows: Numbers of the rows to look at. `datasets` caches the result for the next run, as
                long as the data stay the same.
        """
        undecoded = self._undecoded.select(rows)
        checked = undecoded.map(
            _problem,
            input_columns=self._column,
            remove_columns=self._column,
            num_proc=min(cores(), len(rows) // 500) or None,
            desc="Checking images",
        )
        return {row: text for row, text in zip(rows, checked["problem"], strict=True) if text}


def _problem(image: dict[str, Any] | None) -> dict[str, str]:
    """Why an image cannot be read; empty if it can."""
    if image is None:
        return {"problem": "there is no image"}
    try:
        file = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
        with PIL.Image.open(file) as opened:
            # A JPEG is read at an eighth of its size: that is faster and still reads every byte.
            opened.draft(None, (opened.width // 8 or 1, opened.height // 8 or 1))
            opened.load()
            _white(opened)
    except Exception as error:
        return {"problem": str(error).replace(repr(file), "").strip() or type(error).__name__}
    return {"problem": ""}


class Pixels(Sequence[PIL.Image.Image]):
    """Images in memory.

    Args:
        pixels: `[N, H, W]`, uint8, greyscale.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        """The number of images."""
        return len(self._pixels)

    def __getitem__(self, row: int) -> PIL.Image.Image:  # type: ignore[override]
        """The image of a row."""
        return PIL.Image.fromarray(self._pixels[row])

    def name(self, row: int) -> int:
        """The row itself.

        Args:
            row: Number of the row.
        """
        return row

    def corrupt(self, rows: Sequence[int] | np.ndarray) -> dict[int, str]:
        """No images: all of them are in memory already.

        Args:
            rows: Numbers of the rows to look at.
        """
        return {}


class Images:
    """A set of images, or a part of one.

    Args:
        source: The images, perhaps with others that are not in the set.
        labels: `[N]` class ids, int64; None for a test set without labels.
        rows: `[N]` numbers of the source's images that are in the set; None for all of them.
        skipped: Names of the images that were left out because they cannot be read.
    """

    def __init__(
        self,
        source: Stored | Pixels,
        labels: np.ndarray | None,
        rows: np.ndarray | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        self.source, self.labels = source, labels
        self.rows = np.arange(len(source)) if rows is None else rows
        self.skipped = list(skipped)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.rows)

    def image(self, i: int) -> PIL.Image.Image:
        """An image in RGB, whatever mode it is stored in.

        Args:
            i: Its position in the set.

        Raises:
            ValueError: If it cannot be read.
        """
        return to_rgb(self.source[self.rows[i]])

    def names(self) -> list[str | int]:
        """File names or row numbers."""
        return [self.source.name(row) for row in self.rows.tolist()]

    def take(self, chosen: np.ndarray) -> Images:
        """A part of the set.

        Args:
            chosen: Positions in this set.
        """
        labels = None if self.labels is None else self.labels[chosen]
        return Images(self.source, labels, self.rows[chosen], self.skipped)

    def sample(self, limit: int | None) -> Images:
        """A fixed random sample.

        Args:
            limit: The largest number of images in it; None for all.
        """
        if limit is None or limit >= len(self):
            return self
        # Folders are sorted by class: the first images may all be of one.
        return self.take(np.random.default_rng(0).permutation(len(self))[:limit])

    def split(self, share: float) -> tuple[Images, Images]:
        """Two parts, the same in every run, each with all classes where that is possible.

        Args:
            share: The share of the images in the second part.

        Raises:
            ValueError: If that leaves nothing for the first part.
        """
        assert self.labels is not None  # Only a test set may lack labels, and none is split.
        positions, size = np.arange(len(self)), max(1, round(share * len(self)))
        if size >= len(self):
            raise UsageError(
                f"--train_val_split {share:g} of {len(self)} training images leaves none to train "
                "on"
            )
        counts = np.bincount(self.labels)
        enough = counts[counts > 0].min() > 1 and size >= (counts > 0).sum()
        first, second = train_test_split(
            positions, test_size=size, random_state=0, stratify=self.labels if enough else None
        )
        return self.take(np.sort(first)), self.take(np.sort(second))

    def check_images(self) -> None:
        """Raises a ValueError that names the images that cannot be read."""
        if problems := self.source.corrupt(self.rows):
            shown = [f"{self.source.name(row)}: {text}" for row, text in list(problems.items())[:5]]
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise UsageError(
                f"{len(problems)} of {len(self)} images cannot be read; mend or remove them, or "
                "leave them out by --skip_corrupt:\n  " + "\n  ".join(shown) + more
            )

    def readable(self) -> Images:
        """The images that can be read; the names of the others are in `skipped`."""
        problems = self.source.corrupt(self.rows)
        kept = self.take(np.flatnonzero(~np.isin(self.rows, list(problems))))
        kept.skipped = [str(self.source.name(row)) for row in problems]
        return kept


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in 8-bit RGB, as the pipelines of transformers convert it; 16 bits are scaled down.

    Args:
        image: An image of any mode.

    Raises:
        ValueError: If its pixels are floats or 32-bit numbers: nothing says which of them is white.
    """
    white = _white(image)
    if white > 255:  # Pillow's own conversion would clip all values above 255.
        pixels = np.asarray(image, np.float32) * (255 / white)
        image = PIL.Image.fromarray(pixels.round().astype(np.uint8))
    return image.convert("RGB")


def _white(image: PIL.Image.Image) -> int:
    """The number that stands for white in an image; a ValueError if it is not known."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        return 65535
    if image.mode in ("F", "I"):
        kind = "floats" if image.mode == "F" else "32-bit numbers"
        raise UsageError(
            f"its pixels are {kind}, and nothing says which of them is white: save it with 8 or 16 "
            "bits a pixel"
        )
    return 255
