"""Class weights of training arguments: numbers from label names, or from the training labels.

A loss takes one number per class. Training arguments may say less, since they know neither the
model's classes nor the data: the trainer turns it into numbers when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_losses.losses.modules import MULTI_LABEL, ClassificationLoss
from hf_losses.losses.registry import IGNORE_INDEX, parse_loss_kwargs
from hf_losses.messages import UsageError, nearest
from hf_losses.models.builtin import loss_type
from hf_losses.models.forwards import is_transformers
from hf_losses.models.heads import CLASSIFIERS, LABELLERS, QUESTION_ANSWERING, is_classifier

# transformers and datasets are imported where they are used: `hf-losses run` checks its arguments
# before a script has set the environment variables that they read.

BALANCED, EFFECTIVE = "balanced", "effective"
DEFAULT_BETA = 0.999
# The columns that Trainer's collators take for labels.
COLUMNS = ["labels", "label", "label_ids"]
# Up to this many classes are listed one by one.
MANY = 20
SAMPLE = 8  # At most so many rows are transformed to judge a transform.
ADVICE = "give one number per class, such as loss_kwargs '{\"weight\": [1, 5]}'"


class ClassWeights:
    """Turns class weights into numbers, again only if weights, classes or data change."""

    def __init__(self) -> None:
        """Starts without any."""
        self._kwargs: Any = None
        self._resolved: tuple[Any, Any, list[float]] | None = None

    def plain_kwargs(self, args: Any) -> dict[str, Any] | None:
        """The `loss_kwargs` of training arguments; new ones are parsed and put back as plain JSON.

        Args:
            args: Training arguments, with or without `loss_kwargs`.

        Returns:
            The parameters as they now stand in the arguments, which can be saved.

        Raises:
            ValueError: If they cannot be written as JSON.
        """
        loss_kwargs = getattr(args, "loss_kwargs", None)
        if loss_kwargs is not None and loss_kwargs is not self._kwargs:
            args.loss_kwargs = self._kwargs = parse_loss_kwargs(loss_kwargs)
        return None if loss_kwargs is None else self._kwargs

    def resolve(
        self,
        params: dict[str, Any],
        model: Any,
        *,
        dataset: Any,
        label_names: list[str],
        show: bool,
    ) -> dict[str, Any]:
        """Parameters of a loss with `weight` as one number per class.

        Args:
            params: As `parse_loss_kwargs` returns them. `weight` may be a dict by label name
                (`config.label2id`) or index, in which classes without an entry weigh 1; or
                `balanced`: n / (C · n_c) for n labels, n_c of them of class c, and C
                classes, as in scikit-learn; or `effective`, or `effective:BETA`: in proportion to
                (1 - β) / (1 - β^n_c), with a mean of 1 over the classes (Cui et al. 2019,
                arXiv:1901.05555); β is 0.999 unless it is given.
            model: The model without wrappers.
            dataset: The training data.
            label_names: The columns that the trainer takes for labels.
            show: Whether to print the numbers.

        Returns:
            The parameters.

        Raises:
            ValueError: If a class is unknown or named twice, or there is nothing to count.
        """
        weight = params.get("weight")
        if not isinstance(weight, str | dict):
            return params
        check_keyword(weight)
        classes = number_of_classes(model)
        if classes is None:
            raise UsageError(
                f"weight={weight!r} needs a model of transformers, whose classes are known, not "
                f"{type(model).__name__}: {ADVICE}"
            )
        ids = {} if _is_language_model(model) else model.config.label2id
        ids = {str(name): index for name, index in (ids or {}).items()}
        key = (weight, classes, ids)
        last_key, counted, _ = self._resolved or (None, None, None)
        if last_key != key or not (dataset is None or dataset is counted):
            if isinstance(weight, dict):
                numbers = _weights_by_name(weight, classes, ids)
            else:
                multi_label = is_classifier(model) and model.config.problem_type == MULTI_LABEL
                if multi_label or params.get("problem_type") == MULTI_LABEL:
                    raise UsageError(
                        f"weight={weight!r} is for one class per item, and weights of several "
                        f"labels do not balance yes and no: {ADVICE}"
                    )
                if loss_type(model) not in (None, "ForTokenClassification", *CLASSIFIERS):
                    raise UsageError(
                        f"weight={weight!r} is for labels of whole rows or of single tokens, and "
                        f"not for {type(model).__name__}: {ADVICE}"
                    )
                columns = COLUMNS if label_names == COLUMNS[:1] else label_names
                numbers = _counted_weights(weight, dataset, columns, classes, ids)
            self._resolved = key, dataset, numbers
            if show:
                print(_weights_in_words(numbers, ids), flush=True)
        assert self._resolved is not None
        return params | {"weight": self._resolved[2]}


def check_keyword(weight: str | dict[str, Any]) -> None:
    """Raises a ValueError if a weight is a word that stands for none."""
    if isinstance(weight, str) and weight != BALANCED:
        _beta(weight)


def check_weight(loss: Any, model: Any) -> None:
    """Raises a ValueError unless there is one weight per class, and one that is not 0.

    Args:
        loss: Any loss; PyTorch's own losses with class weights are checked too.
        model: The model without wrappers.
    """
    weighing = ClassificationLoss | nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss
    if not isinstance(loss, weighing) or loss.weight is None:
        return
    if not loss.weight.any():
        raise UsageError(f"all class weights are 0, so that nothing would be learned: {ADVICE}")
    if loss_type(model) not in (*CLASSIFIERS, *LABELLERS):
        return  # For other models config.num_labels may mean nothing.
    entries, classes = loss.weight.numel(), number_of_classes(model)
    if classes not in (None, entries):
        raise UsageError(
            f"weight has {entries} entries, one per class, but {type(model).__name__} has "
            f"{classes} classes (num_labels, or the vocabulary): give as many, in their order"
        )


def number_of_classes(model: Any) -> int | None:
    """How many logits per item a model of transformers has; None if that is not known."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    if loss_type(model) == QUESTION_ANSWERING:
        raise UsageError(
            "class weights do not go with question answering, whose classes are positions in a "
            "text: leave weight out"
        )
    if _is_language_model(model):
        # The shape of its weight would not do, which ZeRO-3 shards.
        return getattr(model.get_output_embeddings(), "out_features", None)
    # Of the user's own models some count them by another name.
    named = None if is_transformers(model) else getattr(model.config, "num_classes", None)
    return int(model.config.num_labels if named is None else named)


def _is_language_model(model: Any) -> bool:
    return model.get_output_embeddings() is not None


def _beta(weight: str) -> float:
    """The β of `effective` or `effective:BETA`."""
    keyword, colon, text = weight.partition(":")
    if keyword != EFFECTIVE:
        raise UsageError(
            f"unknown weight {weight!r}: one number per class, a dict by label name or index, "
            f"{BALANCED!r}, or {EFFECTIVE!r} (with another beta: '{EFFECTIVE}:0.99')."
            + nearest(keyword, [BALANCED, EFFECTIVE])
        )
    try:
        beta = float(text) if colon else DEFAULT_BETA
    except ValueError:
        beta = math.nan
    if not 0 <= beta < 1:
        raise UsageError(
            f"weight={weight!r}: beta must be a number from 0 to below 1, such as "
            f"'{EFFECTIVE}:{DEFAULT_BETA}'"
        )
    return beta


def _weights_by_name(weights: dict[str, Any], classes: int, ids: dict[str, int]) -> list[float]:
    numbers: dict[int, Any] = {}
    for name, number in weights.items():
        index = int(name) if name.isdecimal() and int(name) < classes else None
        class_id = ids.get(name, index)
        if class_id is None:
            known = ", ".join(map(repr, [*ids][:MANY])) or "none have names"
            raise UsageError(
                f"weight names a class {name!r} that the model does not have; its {classes} "
                f"classes: {known}{', …' if len(ids) > MANY else ''}, or an index from 0 to "
                f"{classes - 1}.{nearest(name, ids)}"
            )
        if index not in (None, class_id):
            raise UsageError(
                f"weight for {name!r} could mean the label of that name (index {class_id}) or the "
                f"class of that index: {ADVICE}"
            )
        if class_id in numbers:
            raise UsageError(
                f"weight names the class with index {class_id} twice, again as {name!r}"
            )
        numbers[class_id] = number
    return [numbers.get(index, 1.0) for index in range(classes)]


def _counted_weights(
    weight: str, dataset: Any, columns: list[str], classes: int, ids: dict[str, int]
) -> list[float]:
    labels = _labels(weight, dataset, columns)
    outside = labels[(labels != IGNORE_INDEX) & ((labels < 0) | (labels >= classes))]
    if len(outside):
        raise UsageError(
            f"labels must lie in [0, {classes}) for {classes} classes, the training data have "
            f"{np.unique(outside).tolist()[:10]}; check num_labels, or mark items to leave out "
            f"with {IGNORE_INDEX}"
        )
    counts = np.bincount(labels[labels != IGNORE_INDEX], minlength=classes)
    names = {index: name for name, index in ids.items()}
    missing = [str(names.get(index, index)) for index in np.flatnonzero(counts == 0).tolist()]
    if missing:
        listed = ", ".join(missing[:MANY]) + (", …" if len(missing) > MANY else "")
        raise UsageError(
            f"weight={weight!r} would be infinite for what no training label is: {listed}; leave "
            "these out of the model's labels, or give numbers: loss_kwargs '{\"weight\": [1, 5]}', "
            f'or by name, where those left out weigh 1: \'{{"weight": {{"{missing[0]}": 1}}}}\''
        )
    if weight == BALANCED:
        numbers = counts.sum() / (classes * counts)
    else:
        beta = _beta(weight)
        # 1 - β^n without cancellation; β = 0 makes all classes alike.
        effective = -np.expm1(counts * np.log(beta)) if beta else np.ones(classes)
        numbers = classes / effective / (1 / effective).sum()
    result: list[float] = numbers.tolist()
    return result


def _labels(weight: str, dataset: Any, columns: list[str]) -> Any:
    """All training labels, flat, as whole numbers."""
    from transformers.trainer_utils import has_length

    condition = f"weight={weight!r} is computed from the training labels"
    if dataset is None:
        raise UsageError(
            f"{condition}, and the trainer has no train_dataset: {ADVICE} (hf_losses.json beside a "
            "trained model has those that it was trained with)"
        )
    if isinstance(dataset, torch.utils.data.IterableDataset) or not has_length(dataset):
        raise UsageError(
            f"{condition}, which a stream ({type(dataset).__name__}) does not give in advance: "
            f"{ADVICE}"
        )
    rows = [np.asarray(row) for row in _label_rows(dataset, columns, condition)]
    flat = np.concatenate([row.ravel() for row in rows]) if rows else np.empty(0, dtype=np.int64)
    if flat.dtype.kind not in "iub":
        raise UsageError(
            f"{condition}, which must be class numbers, not {flat.dtype} such as "
            f"{flat[:3].tolist()}: {ADVICE}"
        )
    return flat.astype(np.int64)


def _label_rows(dataset: Any, columns: list[str], condition: str) -> Iterable[Any]:
    from datasets import Dataset

    # Of data whose rows are slow to build, such as images. Others mean the classes by that name.
    class_labels: Any = getattr(dataset, "class_labels", None)
    if hasattr(class_labels, "__len__") and len(class_labels) == len(dataset) > 0:
        return class_labels  # type: ignore[no-any-return]
    if isinstance(dataset, Dataset):
        names = [name for name in columns if name in dataset.column_names]
        if names and not _is_relabelled(dataset, names[0], columns):
            # Reading without the format, which may load every image.
            return dataset.with_format(None)[names[0]][:]  # type: ignore[no-any-return]
    rows = []
    for index in range(len(dataset)):
        row = dataset[index]
        names = [name for name in columns if isinstance(row, Mapping) and name in row]
        if not names:
            raise UsageError(
                f"{condition}, and row {index} of train_dataset has none of {', '.join(columns)}: "
                f"{ADVICE}"
            )
        rows.append(row[names[0]])
    return rows


def _is_relabelled(dataset: Any, name: str, columns: list[str]) -> bool:
    """Whether the transform of a dataset gives some rows another label than their column does."""
    if dataset.format["type"] != "custom":
        return False
    some = range(0, len(dataset), max(1, -(-len(dataset) // SAMPLE)))
    for index, stored in zip(some, dataset.with_format(None).select(some)[name], strict=True):
        row = dataset[index]
        given = np.asarray(next((row[column] for column in columns if column in row), stored))
        # Mixed labels are no classes.
        if given.dtype.kind in "iub" and not np.array_equal(given, np.asarray(stored)):
            return True
    return False


def _weights_in_words(numbers: list[float], ids: dict[str, int]) -> str:
    names = {index: name for name, index in ids.items()}
    entries = [f"{names.get(index, index)} {number:.4g}" for index, number in enumerate(numbers)]
    if len(entries) > MANY:
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        entries = [f"{len(entries)} from {entries[order[0]]} to {entries[order[-1]]}"]
    return f"Class weights: {', '.join(entries)}"
