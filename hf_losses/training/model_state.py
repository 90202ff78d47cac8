"""What a forward leaves behind: random numbers that were drawn, and running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

MOST_STATISTICS = 2**20  # Numbers in a buffer; larger ones are weights of quantised models.


def state_of(model: nn.Module, device: torch.device) -> Callable[[], None]:
    """Notes the state in which a forward finds the generators and the model's buffers.

    Args:
        model: The model.
        device: Where it is, whose generator is noted beside the CPU's.

    Returns:
        A function that puts them back.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.numel() <= MOST_STATISTICS]
    values = [buffer.clone() for buffer in buffers]
    generators = [(set_state, get_state()) for get_state, set_state in _generators(device)]

    def restore() -> None:
        for set_state, state in generators:
            set_state(state)
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)

    return restore


def _generators(device: torch.device) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    yield torch.get_rng_state, torch.set_rng_state
    if device.type == "mps":
        yield torch.mps.get_rng_state, torch.mps.set_rng_state
    elif device.type != "cpu":
        module = torch.get_device_module(device)
        yield partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)
