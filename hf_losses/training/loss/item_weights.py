"""The column `loss_weight` of a data set: one number per example, or one per label.

Data collators do not know it. Here it is taken out of the rows before they are collated, and put
into the batch in the shape of the labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from hf_losses.losses.base import item_weight_tensor
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.heads import LOSS_WEIGHT


class WeightCollator:
    """A data collator that keeps the column `loss_weight`; the one within does not see it.

    Args:
        collator: The data collator for all other columns.
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Any]) -> None:
        self.collator = collator
        self._reads_weights = False

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Collates rows.

        Args:
            rows: Rows of the data set.

        Returns:
            The batch of the collator within; where the rows have weights, with `loss_weight`,
            float32: `[B]`, or the shape of the labels, where padding weighs 0.

        Raises:
            ValueError: If weights are not numbers, if a row lacks them, or has not as many as
                labels.
        """
        if not any(isinstance(row, Mapping) and LOSS_WEIGHT in row for row in rows):
            return self.collator(rows)
        if all(isinstance(row, Mapping) and row.get(LOSS_WEIGHT) is None for row in rows):
            return self.collator([_without_weight(row) for row in rows])
        if not all(isinstance(row, Mapping) and row.get(LOSS_WEIGHT) is not None for row in rows):
            raise UsageError(
                f"a row has no {LOSS_WEIGHT!r}: give each row one (1 is neutral), or none of them"
            )
        weights = [item_weight_tensor(row[LOSS_WEIGHT]).float() for row in rows]
        others = [_without_weight(row) for row in rows]
        batch = self._collated(rows, others)
        made, labels = batch.get(LOSS_WEIGHT), batch.get("labels")
        shapes = [(len(rows),), *([labels.shape] if torch.is_tensor(labels) else [])]
        if torch.is_tensor(made) and made.shape in shapes:
            batch[LOSS_WEIGHT] = made.float()
        else:
            batch[LOSS_WEIGHT] = self._padded(weights, others, batch)
        return batch

    def _collated(self, rows: Sequence[Any], others: list[dict[str, Any]]) -> Any:
        """The batch; a user's collator that reads the weights itself is given them."""
        if not self._reads_weights:
            try:
                return self.collator(others)
            except KeyError as error:
                if error.args != (LOSS_WEIGHT,):
                    raise
                self._reads_weights = True
        return self.collator([dict(row) for row in rows])

    def _padded(self, weights: list[Tensor], rows: list[dict[str, Any]], batch: Any) -> Tensor:
        dims = {weight.dim() for weight in weights}
        labels = batch.get("labels")
        # Rows that were put one behind the other.
        in_line = labels is not None and labels.dim() == 2 and len(labels) == 1 < len(rows)
        if in_line and dims == {0}:
            weights = [w.expand(_length(row)) for w, row in zip(weights, rows, strict=True)]
            dims = {1}
        if dims != {1}:
            if len({weight.shape for weight in weights}) > 1:
                raise UsageError(f"the rows of a batch have {LOSS_WEIGHT!r} of different shapes")
            return torch.stack(weights)
        tokenizer = getattr(self.collator, "tokenizer", None)
        if labels is None or labels.dim() < 2:
            raise UsageError(
                f"{LOSS_WEIGHT!r} holds a list per row, but a row has one label: give one number"
            )
        for row, weight in zip(rows, weights, strict=True):
            expected = _length(row)
            if len(weight) != expected:
                raise UsageError(
                    f"a row has {len(weight)} numbers as {LOSS_WEIGHT!r} for {expected} labels: "
                    "give one per label, or one for the row"
                )
        if in_line:
            line = torch.cat(weights).unsqueeze(0)
            return F.pad(line, (0, labels.shape[1] - line.shape[1]))
        padded: Tensor = labels.new_zeros(labels.shape[:2], dtype=torch.float32)
        side = getattr(tokenizer, "padding_side", None) or _padding_side(rows, batch)
        for row, weight in zip(padded, weights, strict=True):
            if side == "left":
                row[len(row) - len(weight) :] = weight
            else:
                row[: len(weight)] = weight
        return padded


def _without_weight(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != LOSS_WEIGHT}


def _padding_side(rows: list[dict[str, Any]], batch: Any) -> str:
    """The side on which a data collator without a `tokenizer` has padded labels, by the batch."""
    sides = {side for index, row in enumerate(rows) if (side := _side_of(row, batch, index))}
    return "left" if sides == {"left"} else "right"


def _side_of(row: Mapping[str, Any], batch: Any, index: int) -> str | None:
    length = _length(row)
    masked: dict[str, Any] = {"attention_mask": [1] * length, **row}
    # A collator may change labels or tokens. Labels of none but ignored items show nothing.
    for name in ("labels", "input_ids", "attention_mask"):
        own, line = masked.get(name), batch.get(name)
        if own is None or line is None or line.dim() != 2 or not len(own) == length < line.shape[1]:
            continue
        given = torch.as_tensor(own, device=line.device)
        if name == "labels" and (given == IGNORE_INDEX).all():
            continue
        fits = {"left": line[index, -length:], "right": line[index, :length]}
        found = [side for side, part in fits.items() if torch.equal(part, given)]
        if len(found) == 1:
            return found[0]
    return None


def _length(row: Mapping[str, Any]) -> int:
    """The number of labels of a row."""
    for key in ("labels", "label", "label_ids", "input_ids"):
        if key in row:
            return len(row[key])
    raise UsageError(
        f"{LOSS_WEIGHT!r} belongs to labels that the data collator makes from "
        f"{', '.join(row)}: let the collator put {LOSS_WEIGHT!r} into the batch, too"
    )


def check_weights_arrive(trainer: Any) -> None:
    """Raises a ValueError if the training data have weights, which a batch without has lost."""
    names = getattr(trainer.train_dataset, "column_names", None)
    if not isinstance(names, list) or LOSS_WEIGHT not in names:
        return
    # As a script's data may have a column of None.
    if any(weight is not None for weight in _stored_weights(trainer.train_dataset)):
        raise UsageError(
            f"train_dataset has the column {LOSS_WEIGHT!r}, and a batch has none: build the data "
            "loader by Trainer's get_train_dataloader, let transforms of the data keep the column, "
            "or take it out"
        )


@functools.lru_cache(1)
def _stored_weights(dataset: Any) -> Any:
    """The column of weights, as it is stored."""
    return dataset.with_format(None)[LOSS_WEIGHT][:]


def check_weights_kept(dataset: Any, prepared: Any) -> None:
    """Raises a ValueError if a data set has lost its weights while it was prepared.

    Args:
        dataset: A data set of `datasets`, or a stream.
        prepared: The same after it has been prepared.
    """
    if LOSS_WEIGHT in _columns(dataset) and LOSS_WEIGHT not in _columns(prepared):
        raise UsageError(
            f"packing loses the column {LOSS_WEIGHT!r}: switch it off (padding_free does without "
            "padding too), or take the column out"
        )


def truncated_weights(dataset: Any, args: Any) -> Any:
    """A data set with a weight for each token that is left: `SFTTrainer` cuts labels and tokens.

    Args:
        dataset: As `SFTTrainer` has prepared it.
        args: Its arguments.
    """
    length, mode = getattr(args, "max_length", None), getattr(args, "truncation_mode", None)
    if length is None or mode is None or LOSS_WEIGHT not in _columns(dataset):
        return dataset
    first = next(iter(dataset), None)
    if first is None or not np.ndim(first[LOSS_WEIGHT]):
        return dataset
    part = slice(None, length) if mode == "keep_start" else slice(-length, None)

    def cut(row: Mapping[str, Any]) -> dict[str, Any]:
        return {LOSS_WEIGHT: row[LOSS_WEIGHT][part]}

    processes = {"num_proc": args.dataset_num_proc} if hasattr(dataset, "__len__") else {}
    with PartialState().main_process_first():
        return dataset.map(cut, **processes)


def _columns(dataset: Any) -> list[str]:
    names: list[str] | None = getattr(dataset, "column_names", None)
    return [*next(iter(dataset), {})] if names is None else names


@contextmanager
def keeping_weights(trainer: Any) -> Iterator[None]:
    """Within this context, the data collator of a trainer keeps the column `loss_weight`."""
    collator = trainer.data_collator
    trainer.data_collator = WeightCollator(collator)
    try:
        yield
    finally:
        trainer.data_collator = collator
