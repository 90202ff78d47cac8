"""Turns the labels in files into class ids or numbers; errors name file and row."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hf_losses.messages import UsageError

NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?\s*", re.IGNORECASE)
FEW = 20  # Up to this many classes may have a single row each, as in a first trial.


def as_number(label: Any) -> float:
    """The label as a number; NaN if it is not one."""
    try:
        return float(label)
    except (TypeError, ValueError):
        return math.nan


def are_decimals(labels: Iterable[Any]) -> bool:
    """Whether the labels are texts of numbers with a decimal point, which means regression.

    Args:
        labels: The labels in the file; None or "" where there is none.
    """
    values = [label for label in labels if label not in (None, "")]
    return (
        all(isinstance(value, str) and NUMBER.fullmatch(value) for value in values)
        and not any("," in value for value in values)
        and any("." in value for value in values)
    )


def class_names(labels: Sequence[Any], where: str, hint: str = "") -> list[str]:
    """The names of the classes among a training set's labels.

    Args:
        labels: Words, or all of them numbers; None or "" where there is none.
        where: File or dataset, for the error.
        hint: A sentence on what else may be meant, for the error.

    Returns:
        The names, sorted as numbers or as words.

    Raises:
        ValueError: If most labels are numbers, but not all; if they are numbers that are not whole,
            or nearly every label would be a class of its own.
    """
    values = [label for label in labels if label not in (None, "")]
    commas = [value for value in values if "," in str(value)]
    if commas and all(NUMBER.fullmatch(str(value)) for value in values):
        raise UsageError(
            f"{where}, row {list(labels).index(commas[0]) + 1}: label {commas[0]!r} is a number "
            "with a comma; write numbers with a point, as in 2.4, or name every class by a word"
        )
    words = [value for value in values if math.isnan(as_number(value))]
    if words and len(words) < len(values) / 2:
        raise UsageError(
            f"{where}, row {list(labels).index(words[0]) + 1}: label {words[0]!r} is not a "
            "number, as most others are; make all of them numbers, or name every class by a word"
        )
    fractions = [] if words else [value for value in values if as_number(value) % 1]
    if fractions:
        row = list(labels).index(fractions[0]) + 1
        raise UsageError(
            f"{where}, row {row}: label {fractions[0]!r} is a number "
            "that is not whole, so no class; name every class by a word or a whole number"
        )
    check_class_count(values, where, hint)
    _check_distinct(labels, values, where)
    return [str(value) for value in sorted(set(values))]


def _check_distinct(labels: Sequence[Any], values: Iterable[Any], where: str) -> None:
    """Raises a ValueError for two classes whose names differ in blanks around them."""
    by_name: dict[str, Any] = {}
    for value in sorted(set(values), key=str):
        other = by_name.setdefault(str(value).strip(), value)
        if other is not value:
            raise UsageError(
                f"{where}, row {list(labels).index(value) + 1}: labels {other!r} and {value!r} "
                "would be two classes; take the blanks away, or give them other names"
            )


def check_class_count(labels: Sequence[Any], where: str, hint: str = "") -> None:
    """Raises a ValueError if nearly every label would be a class of its own.

    Args:
        labels: The labels of the training set, without missing ones.
        where: File or dataset, for the error.
        hint: A sentence on what else may be meant, for the error.
    """
    if (count := len(set(labels))) > max(FEW, len(labels) / 2):
        raise UsageError(
            f"{where}: {len(labels)} labels would be {count} classes, nearly each of them one of "
            f"its own, such as {labels[0]!r}: are these labels of classes?{hint}"
        )


def encode(
    labels: Iterable[Any],
    classes: list[str] | None,
    where: str,
    names: list[str] | None = None,
    unknown: int | None = None,
) -> list[float | None]:
    """Turns labels into class ids or numbers.

    Args:
        labels: One for each row, as the file holds them.
        classes: The training set's class names; None for regression.
        where: File or dataset, for the error.
        names: Class names by the file's own ids, if its labels are ids.
        unknown: The value, such as -1, that stands for a label that is kept secret.

    Returns:
        Ids in `classes`, or numbers; None where there is no label.

    Raises:
        ValueError: If a label is not one of the classes, or not a finite number.
    """
    ids = {name: i for i, name in enumerate(classes or [])}
    encoded: list[float | None] = []
    for row, value in enumerate(labels, start=1):
        if value in (None, "", unknown) or value != value:
            encoded.append(None)
            continue
        if classes is None:
            code = as_number(value)
            if not math.isfinite(code):
                raise UsageError(f"{where}, row {row}: label {value!r} is not a finite number")
        else:
            name = names[value] if names and 0 <= value < len(names) else str(value)
            if name not in ids:
                raise UsageError(
                    f"{where}, row {row}: label {(name if names else value)!r} is not one of the "
                    f"training set's {len(ids)} classes: {', '.join(classes[:20])}"
                )
            code = ids[name]
        encoded.append(code)
    return encoded


def check_complete(labels: Sequence[float | None], where: str, *, is_test: bool) -> None:
    """Raises a ValueError if a label is missing; a test set may lack all of them.

    Args:
        labels: What `encode` returned.
        where: File or dataset, for the error.
        is_test: Whether it is a test set.
    """
    if None in labels and not (is_test and set(labels) == {None}):
        raise UsageError(
            f"{where}, row {labels.index(None) + 1}: no label; only a test set may lack labels, "
            "and then in every row"
        )


def check_two_classes(labels: Iterable[float | None], classes: list[str] | None) -> None:
    """Raises a ValueError if all labels of a training set are of one class.

    Args:
        labels: What `encode` returned.
        classes: Class names; None for regression.
    """
    distinct = set(labels)
    if classes and len(distinct) < 2:
        name = classes[int(distinct.pop() or 0)]
        raise UsageError(
            f"every training label is {name!r}: nothing to tell apart; check the label column, or "
            "take more rows (--max_train_samples)"
        )
