"""The Hub's names of tasks and metrics, and descriptions of the kinds of losses."""

from __future__ import annotations

from typing import Any

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
    "image-classification": ("AutoModelForImageClassification", None, '"photo.jpg"'),
    "video-classification": ("AutoModelForVideoClassification", None, '"video.mp4"'),
    "token-classification": ("AutoModelForTokenClassification", "TOKEN_CLS", '"Some text."'),
    "text-generation": ("AutoModelForCausalLM", "CAUSAL_LM", '"Some text"'),
    "fill-mask": ("AutoModelForMaskedLM", None, 'f"Some {pipe.tokenizer.mask_token}."'),
    "text2text-generation": ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", '"Some text."'),
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

NO_METRICS = ("runtime", "per_second", "_time", "epoch", "step")

# Training arguments that the card shows only if they are not transformers' default.
OTHER_ARGUMENTS = (
    *("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_kwargs"),
    *("neftune_noise_alpha", "train_sampling_strategy", "gradient_checkpointing", "torch_compile"),
    *("loss_warmup_ratio", "loss_warmup_steps", "loss_warmup_from", "data_seed"),
)
