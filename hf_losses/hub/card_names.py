"""The Hub's names of tasks, metrics and repositories, and descriptions of the kinds of losses."""

from __future__ import annotations

import math
import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

KINDS = {
    "neutral": "the baseline that the other losses are measured against",
    "strict": "the gradient weight falls as p rises; hard examples weigh more than under "
    "cross-entropy",
    "liberal": "the gradient weight rises with p; hard examples weigh less than under "
    "cross-entropy",
    "mixed": "the gradient weight first rises with p and then falls",
    "robust": "large errors weigh less than under squared error",
}

# For each task: the class that loads a model, PEFT's name of the task, an example of the input.
TASKS: dict[str, tuple[str, str | None, str]] = {
    "text-classification": ("AutoModelForSequenceClassification", "SEQ_CLS", '"Some text."'),
    "audio-classification": ("AutoModelForAudioClassification", None, '"sound.wav"'),
    "image-classification": ("AutoModelForImageClassification", None, '"photo.jpg"'),
    "video-classification": ("AutoModelForVideoClassification", None, '"video.mp4"'),
    "token-classification": ("AutoModelForTokenClassification", "TOKEN_CLS", '"Some text."'),
    "text-generation": ("AutoModelForCausalLM", "CAUSAL_LM", '"Some text"'),
    "fill-mask": ("AutoModelForMaskedLM", None, 'f"Some {pipe.tokenizer.mask_token}."'),
    "text2text-generation": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", '"Some text."'),
}

# The Auto class that loads what prepares the input, where it is no tokenizer.
PROCESSORS = {
    "audio-classification": "AutoFeatureExtractor",
    "image-classification": "AutoImageProcessor",
    "video-classification": "AutoVideoProcessor",
}

# For each metric of this library: the Hub's name, the name to show, and the metric's arguments.
METRICS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1", None),
    "f1_macro": ("f1", "F1 (macro)", {"average": "macro"}),
    "precision": ("precision", "Precision", None),
    "recall": ("recall", "Recall", None),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation", None),
    "pearson": ("pearsonr", "Pearson correlation", None),
    "pearsonr": ("pearsonr", "Pearson correlation", None),
    "spearmanr": ("spearmanr", "Spearman correlation", None),
    "mse": ("mse", "Mean squared error", None),
    "mae": ("mae", "Mean absolute error", None),
}

# Training arguments that the card shows only if they are not transformers' default.
OTHER_ARGUMENTS = (
    *("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs"),
    *("neftune_noise_alpha", "train_sampling_strategy", "gradient_checkpointing", "torch_compile"),
    *("loss_warmup_ratio", "loss_warmup_steps", "loss_warmup_from", "data_seed"),
)


def is_metric(key: str) -> bool:
    """Whether an entry of the log says how good a model is, not what its computation took."""
    took = key.endswith(("_runtime", "_per_second", "_time"))
    return not took and "_mem_cpu" not in key and "_mem_gpu" not in key


def listed(value: Any) -> list[str]:
    """The entries of a field that may hold one entry, several or none."""
    return [value] if isinstance(value, str) else [str(entry) for entry in value or []]


def is_path(value: str) -> bool:
    """Whether a text looks like a path of a disk rather than a name of the Hub."""
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return absolute or value.startswith((".", "~"))


def is_hub_name(value: Any) -> bool:
    """Whether a value may be the name of a repository, and names no folder here."""
    if not isinstance(value, str) or os.path.isdir(value):
        return False
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True


def hub_names(value: Any) -> list[str]:
    """The names of repositories among the entries of a field."""
    return [name for name in listed(value) if is_hub_name(name)]


def is_finite(value: Any) -> bool:
    """Whether a value is a number that is neither NaN nor infinite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def score_text(value: Any) -> str:
    """A score with four decimals; a dash if there is none."""
    return f"{value:.4f}" if is_finite(value) else "–"
