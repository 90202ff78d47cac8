"""The order of the training data: the same in each epoch, however the run has come to it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


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

    def __iter__(self) -> Iterator[int]:
        args = self.trainer.args
        seed = args.seed if args.data_seed is None else args.data_seed
        # A resumed run may begin in the middle of an epoch.
        epoch = math.floor((self.trainer.state.epoch or 0.0) + 1e-6)
        # Not their sum: the second epoch of a seed would have the order of the next seed's first.
        self.generator.manual_seed(1_000_003 * seed + epoch)
        return super().__iter__()  # type: ignore[no-any-return]
