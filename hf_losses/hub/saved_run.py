"""Saved models and checkpoints: which are complete, and which loss they were trained with."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from hf_losses.hub.outage import HTTPError, HubUnreachable, outage
from hf_losses.losses.base import RegressionLoss
from hf_losses.losses.modules import ClassificationLoss, get_loss
from hf_losses.messages import UsageError

logger = logging.getLogger(__name__)

LOSS_FILE = "hf_losses.json"
# Training arguments without secrets; training_args.bin is a pickle that holds tokens and paths.
ARGUMENTS_FILE = "training_args.json"
# The key in `stateful_callbacks` of trainer_state.json. Below it "args" hold the loss and
# "attributes" the count of steps with a gradient that was not finite.
STATE_KEY = "hf_losses"
COUNT_KEY = "nonfinite_grad_steps"


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Raises:
        UsageError: If it holds anything else, or was cut short.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # No JSON, or no UTF-8.
        raise UsageError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: it holds no JSON object")
    return content


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest checkpoint that was written to its end: Trainer writes its state last.

    Args:
        output_dir: Folder of `checkpoint-N` folders.

    Returns:
        The checkpoint's path. Incomplete ones, which a crash left, are skipped with a warning.

    Raises:
        ValueError: If there is no complete checkpoint.
    """
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = [name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for name in names]
    for step in sorted((int(step) for step in steps if step.isdigit()), reverse=True):
        checkpoint = os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        try:
            _read_state(checkpoint)
        except ValueError as error:
            logger.warning("%s; trying the one before", error)
        else:
            return checkpoint
    # This message and _read_state's begin like the stock Trainer's: programs search for the words.
    raise UsageError(
        f"No valid checkpoint found in output directory ({output_dir}): "
        "train without resume_from_checkpoint first"
    )


def check_record(folder: str | os.PathLike[str]) -> None:
    """Raises a ValueError if another training has saved its model beside the record of a loss.

    A training without `LossTrainer` leaves the record of one before in its folder. Where it cannot
    be told whether there was one, a warning says so.

    Args:
        folder: With the record of a loss.
    """
    config, state = Path(folder, CONFIG_NAME), Path(folder, TRAINER_STATE_NAME)
    record = read_object(Path(folder, LOSS_FILE))
    _check_named(record, str(Path(folder, LOSS_FILE)))
    # An adapter of PEFT has no config of its own.
    if Path(folder, ADAPTER_CONFIG_NAME).is_file() or not config.is_file():
        return
    named = read_object(config).get(STATE_KEY)
    if isinstance(named, dict):
        other = repr(named.get("name")) if chosen(named) != chosen(record) else None
    else:
        callbacks = read_object(state).get("stateful_callbacks", {}) if state.is_file() else {}
        other = "none" if callbacks and STATE_KEY not in callbacks else None
        if other is None:
            logger.warning(
                "%s names no loss, which LossTrainer would have written into it: the %r of %s may "
                "be that of an earlier training",
                *(config, record.get("name"), LOSS_FILE),
            )
    if other:
        raise UsageError(
            f"{Path(folder, LOSS_FILE)} says {record}, and {config} the loss {other}: another "
            f"training has saved its model there. Remove {LOSS_FILE} if it is an earlier one's, or "
            "give the folder of one training"
        )


def _check_named(config: Any, where: str) -> None:
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise UsageError(f"{where} is damaged: it names no loss")


def chosen(config: dict[str, Any]) -> dict[str, Any]:
    """What a user chooses of a loss, without its problem type.

    The model's head settles that, or the first batch, which a trainer that resumes has not seen.
    """
    return {name: value for name, value in config.items() if name != "problem_type"}


def load_renamed(model: Any, checkpoint: str) -> bool:
    """Loads a checkpoint whose weights have other names than the model's.

    Since transformers 5 some models, ViT among them, are saved under the names of older versions.
    `from_pretrained` renames them; `Trainer`, when it resumes or loads the best model, does not: it
    leaves such weights of the model unchanged, with no more than a warning.

    Args:
        model: The model to load into, not wrapped.
        checkpoint: The checkpoint's folder.

    Returns:
        True if the names differ and the weights were loaded, False if nothing was done.

    Raises:
        ValueError: If the checkpoint lacks weights of the model.
    """
    single_file = os.path.join(checkpoint, SAFE_WEIGHTS_NAME)
    index = os.path.join(checkpoint, SAFE_WEIGHTS_INDEX_NAME)
    if not isinstance(model, PreTrainedModel):
        return False
    if os.path.isfile(single_file):
        with safe_open(single_file, "pt") as file:
            saved = set(file.keys())
    elif os.path.isfile(index):
        with open(index, encoding="utf-8") as file:
            saved = set(json.load(file)["weight_map"])
    else:
        return False
    if saved <= model.state_dict().keys():
        return False
    dtypes = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    # One that holds every weight exactly; `model.dtype` is the first one's alone.
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else model.dtype
    renamed, loading = _like(model).from_pretrained(
        checkpoint, config=model.config, dtype=dtype, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise UsageError(
            f"{checkpoint} lacks weights: {', '.join(sorted(loading['missing_keys']))}"
        )
    model.load_state_dict(renamed.state_dict())
    return True


def _like(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of a model, for `from_pretrained`, which is to build just such a one.

    A user's class may need more than a config, and a user may have put in another head.
    """
    cls = type(model)
    if cls.__module__.startswith("transformers."):
        with torch.device("meta"):
            built = cls(copy.deepcopy(model.config))
        if _shapes(built) == _shapes(model):
            return cls

    def init(self: Any, *_: Any, **__: Any) -> None:
        vars(self).update(vars(copy.deepcopy(model)))

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__})


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in model.state_dict().items()}


def load_loss(
    repo_or_folder: str | os.PathLike[str], *, revision: str | None = None
) -> ClassificationLoss | RegressionLoss:
    """The loss that a saved model was trained with, as `LossTrainer` recorded it with the weights.

    Args:
        repo_or_folder: A folder that `save_model` or a checkpoint wrote, or a Hub repository.
        revision: Branch, tag or commit of the repository.

    Returns:
        The loss with its parameters, smoothing and class weights.

    Raises:
        ValueError: If there is no such folder or repository, it does not name its loss, the loss is
            one that is not registered here, or another training has saved its model there.
        OSError: If the Hub cannot be reached.

    Example:
        >>> load_loss("runs/glue/movie_reviews-liberal_exp-seed42")
    """
    folder = os.fspath(repo_or_folder)
    if os.path.isfile(os.path.join(folder, LOSS_FILE)):
        check_record(folder)
    try:
        config = _read(folder, LOSS_FILE, revision)
    except (OSError, ValueError, HTTPError) as error:
        try:  # model.save_pretrained writes the loss into the config alone.
            config = _read(folder, CONFIG_NAME, revision)[STATE_KEY]
        except (OSError, ValueError, HTTPError, KeyError):
            if reason := outage(error):
                raise HubUnreachable(
                    f"the Hub could not be reached for {LOSS_FILE} of {folder!r} "
                    f"({' '.join(str(reason).split())}): try again later, or give a folder"
                ) from error
            raise UsageError(
                f"cannot read {LOSS_FILE} of {folder!r}, which is written beside a model that "
                f"LossTrainer trained: {error}"
            ) from error
    _check_named(config, repr(folder))
    if ":" in config["name"]:
        raise UsageError(
            f"{folder!r} was trained with {config['name']}, a loss without a registered name; "
            "build it as its author did"
        )
    return get_loss(**config)


def _read(folder: str, name: str, revision: str | None) -> dict[str, Any]:
    path = os.path.join(folder, name)
    if not os.path.isdir(folder):
        path = hf_hub_download(folder, name, revision=revision)
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content


def loss_of_checkpoint(checkpoint: str) -> dict[str, Any] | None:
    """Name and parameters of the loss that a checkpoint was trained with.

    Args:
        checkpoint: The checkpoint's folder.

    Returns:
        Name and parameters; None for a checkpoint of the stock Trainer.

    Raises:
        ValueError: If the checkpoint is not complete.
    """
    record = _read_state(checkpoint).get("stateful_callbacks", {}).get(STATE_KEY, {})
    config: dict[str, Any] | None = record.get("args")
    return config


def _read_state(checkpoint: str) -> dict[str, Any]:
    path = os.path.join(checkpoint, TRAINER_STATE_NAME)
    # Trainer's own mark while it saves at a signal (enable_jit_checkpoint).
    if os.path.exists(os.path.join(checkpoint, "checkpoint-is-incomplete.txt")):
        raise UsageError(f"{checkpoint} is incomplete: a signal ended the training while it saved")
    try:
        with open(path, encoding="utf-8") as file:
            state: dict[str, Any] = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(
            f"Can't find a valid checkpoint at {checkpoint}: "
            f"its trainer_state.json cannot be read ({error})"
        ) from error
    return state
