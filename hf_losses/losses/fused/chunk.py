"""Rows of logits that are processed together: what a kernel takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_losses.losses.bound import BoundedLoss

# Logits that are processed together, few enough to stay in the CPU's cache.
CHUNK = 2**20
# On a GPU the limit is for the scratch memory; small chunks would only be slower.
CHUNK_ON_GPU = 2**26
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# From the indices of some rows to their logits.
Rows = Callable[[Tensor], Tensor]


@dataclass
class Chunk:
    """Rows of logits that are processed together, and the memory for their gradients.

    Attributes:
        logits: `[N, C]`, of one of `DTYPES`.
        gradient: `[N, C]`, float32; overwritten with the gradients, or used as scratch memory if
            none are made. May be the logits themselves.
        target: `[N]`, int64, in [0, C).
        scale: `[N]`, by which every row's gradient is multiplied; a row with 0 may hold anything.
            `[]` if it is the same number, and not 0, for all.
        differentiate: Whether to make gradients.
        may_wait: Whether Python may read numbers of these tensors; see `may_wait`.
        spare: Memory that the chunks of one loss share; empty for the first, which is the largest.
        logits_of: Returns the logits of some rows, also after `gradient` was overwritten.
    """

    logits: Tensor
    gradient: Tensor
    target: Tensor
    scale: Tensor
    differentiate: bool
    may_wait: bool
    spare: list[Tensor]
    logits_of: Rows


class Kernel(Protocol):
    """Makes losses, and their gradients, of rows of logits."""

    @property
    def loss(self) -> BoundedLoss:
        """The loss of the margin."""

    def __call__(self, chunk: Chunk) -> Tensor:
        """Makes the gradients of a chunk; returns its losses, `[N]`, float32, not scaled."""


def chunk_rows(classes: int, device: torch.device) -> int:
    """How many rows of logits are processed together."""
    return max(1, (CHUNK if device.type == "cpu" else CHUNK_ON_GPU) // classes)


def may_wait(tensor: Tensor) -> bool:
    """Whether Python may read numbers of a tensor: on a GPU it would wait for all queued work."""
    return tensor.is_cpu
