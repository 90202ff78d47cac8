"""Turns stored images into a model's inputs, in the processes of the data loader.

Every random choice depends only on the seed, the epoch and the image's number: a run is the same
for any number of loading processes and devices, and also if it was interrupted and resumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.image_processing_utils import BaseImageProcessor

from hf_losses.data.images.dataset import ImageData
from hf_losses.data.images.pictures import Images
from hf_losses.messages import MissingExtra, UsageError, nearest
from hf_losses.options import option

AUGMENTATIONS = ("none", "crop", "crop_flip", "randaugment")
Augmentation = Callable[[PIL.Image.Image, np.random.Generator], Any]


@dataclass
class AugmentationArguments:
    """What is done to training images, in the data loader's processes."""

    augmentation: str | None = option(
        None, f"{', '.join(AUGMENTATIONS)}; without one: crop_flip, for digits and idx files crop"
    )
    min_crop: float | None = option(
        None, "least share of an image that a crop takes; without one: 0.08, with crop alone 0.8"
    )
    mixup_alpha: float = option(0.0, "mixup's Beta(α, α); 0: no mixup")
    cutmix_alpha: float = option(0.0, "CutMix's Beta(α, α); 0: none; with both: either, by chance")


class ModelInputs(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as a model takes them: `pixel_values` [3, H, W] and `labels`.

    Args:
        images: The set.
        processor: Resizes, scales and normalises as the model expects it.
        augment: What is done to each image before the processor; None for nothing.
        mixing: What is done to each batch; None for nothing.
        seed: Seed of all random choices.
    """

    def __init__(
        self,
        images: Images,
        processor: BaseImageProcessor,
        augment: Augmentation | None = None,
        mixing: Mixing | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.processor = images, processor
        self.augment, self.mixing, self.seed = augment, mixing, seed
        # In shared memory, since loading processes may live longer than an epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    @property
    def class_labels(self) -> Any:
        """One class per image, for balanced class weights, which need no pixels."""
        return self.images.labels

    def __getitem__(self, i: int) -> dict[str, Any]:
        """One image."""
        return self.__getitems__([i])[0]

    def __getitems__(self, batch: list[int]) -> list[dict[str, Any]]:
        """A batch of images; the processor takes less time for them together."""
        images = [self.images.image(i) for i in batch]
        if self.augment is None:
            pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        else:
            images = [
                self.augment(image, self._random(i)) for i, image in zip(batch, images, strict=True)
            ]
            pixels = self.processor(
                images, return_tensors="pt", do_resize=False, do_center_crop=False
            )["pixel_values"]
        if self.images.labels is None:
            return [{"pixel_values": image} for image in pixels]
        labels = torch.from_numpy(self.images.labels[batch])
        if self.mixing is not None:
            pixels, labels = self.mixing(pixels, labels, self._random(*batch))
        return [
            {"pixel_values": image, "labels": label}
            for image, label in zip(pixels, labels, strict=True)
        ]

    def _random(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, int(self.epoch), *numbers))


class NewEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the images which epoch it is, so that each epoch makes its own random choices.

    Args:
        inputs: The training images.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        self.inputs = inputs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the epoch; a resumed run may begin in the middle of one."""
        self.inputs.epoch.fill_(math.floor((state.epoch or 0.0) + 1e-6))


def training_inputs(
    data: ImageData, processor: BaseImageProcessor, changes: AugmentationArguments, seed: int
) -> ModelInputs:
    """The training images as the model takes them, augmented and mixed as the arguments say.

    Args:
        data: All images.
        processor: The model's image processor.
        changes: What is done to the images.
        seed: Seed of all random choices.

    Raises:
        ValueError: If an argument is out of range, or the processor's images have no fixed size.
        ImportError: If Kornia is needed and not installed.
    """
    if getattr(processor, "resample", None) is None:
        raise UsageError(
            f"{type(processor).__name__}, the image processor of this model, is none of "
            "transformers' own; choose a model that has one of those"
        )
    augment = build_augmentation(
        changes.augmentation or ("crop" if data.drawn else "crop_flip"),
        image_size(processor),
        processor.resample,
        changes.min_crop,
    )
    mixing = Mixing(len(data.classes), changes.mixup_alpha, changes.cutmix_alpha)
    return ModelInputs(data.splits["train"], processor, augment, mixing or None, seed)


def image_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Width and height of the images that a processor returns.

    Args:
        processor: The model's image processor.

    Raises:
        ValueError: If they depend on the image, or `pixel_values` are not [3, H, W].
    """
    shapes = {
        tuple(processor(PIL.Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape)
        for size in ((640, 480), (480, 640), (32, 32))
    }
    if len(shapes) > 1 or len(shape := shapes.pop()) != 4 or shape[1] != 3:
        raise UsageError(
            f"{type(processor).__name__} gives images of different shapes, which no batch holds; "
            "choose a model with a fixed image size"
        )
    return shape[3], shape[2]


def build_augmentation(
    name: str, size: tuple[int, int], resample: int, min_crop: float | None = None
) -> Augmentation | None:
    """The function that augments training images before the processor scales and normalises them.

    Args:
        name: `none`; `crop`: a random part of the image, resized; `crop_flip`: the same, mirrored
            half of the time; `randaugment`: the latter, and two of RandAugment's operations, by
            Kornia.
        size: Width and height of the model's images.
        resample: Pillow's number of the filter for resizing.
        min_crop: The smallest part, as a share of the area, in (0, 1]; by default 0.8 for `crop`,
            else 0.08.

    Returns:
        A function of an image and a random generator; None for `none`.

    Raises:
        ValueError: If the name is unknown or the share out of range.
        ImportError: If Kornia is needed and not installed.
    """
    if name not in AUGMENTATIONS:
        raise UsageError(
            f"unknown --augmentation {name!r}.{nearest(name, AUGMENTATIONS)} Choose one of: "
            f"{', '.join(AUGMENTATIONS)}"
        )
    min_share = (0.8 if name == "crop" else 0.08) if min_crop is None else min_crop
    if not 0 < min_share <= 1:
        raise UsageError(f"--min_crop must be above 0 and at most 1, got {min_crop}")
    if name == "none":
        return None

    crop: dict[str, Any] = {"size": size, "resample": resample, "min_share": min_share}
    if name in ("crop", "crop_flip"):
        return partial(_crop if name == "crop" else _crop_flip, **crop)
    try:
        from kornia.augmentation.auto import RandAugment
    except ImportError as error:
        raise MissingExtra("randaugment needs Kornia: pip install 'hf-losses[images]'") from error
    return partial(_crop_flip_randaugment, RandAugment(n=2, m=9), **crop)


# Functions of a module: the data loader's processes unpickle them where they are not forked.


def _crop(
    image: PIL.Image.Image,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    resample: int,
    min_share: float,
) -> PIL.Image.Image:
    box = _random_box(image.size, min_share, rng)
    return image.resize(size, resample, box=box, reducing_gap=2.0)


def _crop_flip(image: PIL.Image.Image, rng: np.random.Generator, **crop: Any) -> PIL.Image.Image:
    part = _crop(image, rng, **crop)
    return PIL.ImageOps.mirror(part) if rng.random() < 0.5 else part


def _crop_flip_randaugment(
    randaugment: torch.nn.Module,
    image: PIL.Image.Image,
    rng: np.random.Generator,
    **crop: Any,
) -> Tensor:
    pixels = torch.from_numpy(np.array(_crop_flip(image, rng, **crop))).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        changed = randaugment(pixels[None] / 255)[0]
    augmented: Tensor = (changed * 255).round().clamp(0, 255).to(torch.uint8)
    return augmented


def _random_box(
    size: tuple[int, int], min_crop: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a random part with an aspect ratio from 3:4 to 4:3.

    The method is that of Szegedy et al. (2014).
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(min_crop, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


class Mixing:
    """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of each image and its batch neighbour.

    Args:
        classes: The number of classes.
        mixup_alpha: α of Beta(α, α), from which the share of the first image is drawn; 0: no mixup.
        cutmix_alpha: The same for the area of the first image that stays; 0: no CutMix. With both,
            each batch gets one of the two, with equal chances.

    Raises:
        ValueError: If an alpha is negative or not finite.
    """

    def __init__(self, classes: int, mixup_alpha: float, cutmix_alpha: float) -> None:
        for name, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)):
            if not 0 <= alpha < math.inf:
                raise UsageError(f"--{name}_alpha must be 0 or more, and finite; got {alpha}")
        self.classes = classes
        self.alphas = {"mixup": mixup_alpha, "cutmix": cutmix_alpha}

    def __bool__(self) -> bool:
        """Whether it mixes at all."""
        return any(self.alphas.values())

    def __call__(
        self, pixels: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            pixels: `[B, 3, H, W]`.
            labels: `[B]` class ids.
            rng: Draws the kind, the share and the place.

        Returns:
            `[B, 3, H, W]`, and the probabilities of the classes `[B, C]`, float32.

        Raises:
            ValueError: If a label is not a class id, so that there are no probabilities to mix.
        """
        if labels.is_floating_point() or not 0 <= labels.min() <= labels.max() < self.classes:
            raise UsageError(
                f"mixup and CutMix take class ids from 0 to {self.classes - 1}, got "
                f"{labels.tolist()[:8]}"
            )
        kind = rng.choice([kind for kind, alpha in self.alphas.items() if alpha])
        share = rng.beta(self.alphas[kind], self.alphas[kind])
        other = pixels.roll(1, 0)
        if kind == "mixup":
            pixels = share * pixels + (1 - share) * other
        else:
            height, width = pixels.shape[-2:]
            side = math.sqrt(1 - share)
            center = rng.integers(height), rng.integers(width)
            rows, columns = (
                slice(max(0, round(at - side * full / 2)), min(full, round(at + side * full / 2)))
                for at, full in zip(center, (height, width), strict=True)
            )
            pixels = pixels.clone()
            pixels[..., rows, columns] = other[..., rows, columns]
            cut = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = 1 - cut / (height * width)  # The box may end at the border.
        hard = torch.nn.functional.one_hot(labels, self.classes).float()
        return pixels, share * hard + (1 - share) * hard.roll(1, 0)
