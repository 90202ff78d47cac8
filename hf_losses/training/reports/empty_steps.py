"""Optimizer steps without any labelled item: counted on the device, reported once."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)


class EmptySteps:
    """Counts the steps of a training whose labels were all ignored."""

    def __init__(self) -> None:
        """Starts at 0."""
        self.count: Any = 0
        self._warned = False

    def add(self, items: Tensor) -> None:
        """Counts a step if it has no item.

        Args:
            items: Number of its items, a tensor that stays on the device.
        """
        self.count = self.count + (items == 0).all()

    def warn(self, show: bool) -> None:
        """Warns if there were empty steps, but only once; waits for the device.

        Args:
            show: Whether this process writes to the log.
        """
        steps, self.count = int(self.count), 0
        if steps and not self._warned and show:
            self._warned = True
            logger.warning(
                f"no item had a label in {steps} of the last optimizer steps: their loss is 0 and "
                "nothing is learned from them (labels of -100 are left out; is everything masked, "
                "or cut off by the maximum length?)"
            )
