"""The order of the training data: the same in each epoch, however the run has come to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler


def begun(epochs: float | None) -> int:
    """The number of the epoch in which a training is, or that begins, after so many epochs."""
    return math.floor((epochs or 0.0) + 1e-6)


class GroupedByLength(LengthGroupedSampler):  # type: ignore[misc]
    """A sampler that groups by length, whose order follows from seed and epoch alone.

    Trainer's own draws from PyTorch's global random numbers. A run that is resumed within a later
    epoch, or another process, has not used up as many of them, and its order is another one: rows
    are learned twice, and others not at all.

    Args:
        sampler: Trainer's own.
        trainer: The trainer, which knows the seed and the epoch.
    """

    def __init__(self, sampler: LengthGroupedSampler, trainer: Trainer) -> None:
        super().__init__(sampler.batch_size, lengths=sampler.lengths, generator=torch.Generator())
        self.trainer = trainer
        self.next_epoch = 0

    def __iter__(self) -> Iterator[int]:
        args = self.trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        # A resumed run may begin in the middle of an epoch, and a callback may end one early.
        epoch = max(self.next_epoch, begun(self.trainer.state.epoch))
        self.next_epoch = epoch + 1
        # Not their sum: the second epoch of a seed would have the order of the next seed's first.
        self.generator.manual_seed(1_000_003 * seed + epoch)
        return super().__iter__()  # type: ignore[no-any-return]


class ResumesEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells every sampler in accelerate's wrappers in which epoch a resumed training begins.

    Trainer does so itself, but not where a loader that skips batches wraps a dispatcher's sampler,
    or that of several processes: the epoch would go on with the order of the first.
    """

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """See `TrainerCallback`."""
        sampler, epoch = getattr(train_dataloader, "batch_sampler", None), begun(state.epoch)
        while epoch and sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
