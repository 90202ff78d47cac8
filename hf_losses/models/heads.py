"""Kinds of heads, and which logits of a model's outputs belong to which labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_losses.losses.modules import MULTI_LABEL, SINGLE_LABEL
from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.builtin import (
    check_builtin_loss,
    counted_labels,
    is_encoder_decoder,
    loss_type,
    with_known_loss,
)
from hf_losses.models.forwards import is_transformers, logits_of

REGRESSION = "regression"

# Heads by the name transformers gives their loss. The first group reads config.problem_type.
CLASSIFIERS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
)
QUESTION_ANSWERING = "ForQuestionAnswering"
SEGMENTATION = "ForSemanticSegmentation"
LABELLERS = (
    "ForTokenClassification",
    "ForCausalLM",
    "ForMaskedLM",
    "ForConditionalGeneration",
    QUESTION_ANSWERING,
    SEGMENTATION,
)
IGNORED_PIXELS = "semantic_loss_ignore_index"
POSITIONS = ["start_positions", "end_positions"]
# The column with the weight of every item, or row of items.
LOSS_WEIGHT = "loss_weight"
GIVE_SHIFTED = (
    "give each batch shift_labels beside labels (in the data collator), at the positions of their "
    "logits"
)


def is_classifier(model: Any) -> bool:
    """Whether the head of a model without wrappers reads `config.problem_type`."""
    return loss_type(model) in CLASSIFIERS


def is_causal(model: Any) -> bool:
    """Whether a model, without wrappers, learns the next token from labels that are not shifted."""
    return loss_type(model) == "ForCausalLM"


def problem_type(model: Any) -> str | None:
    """The kind of problem that the head solves, as `config.problem_type` names it.

    Args:
        model: The model without wrappers.

    Returns:
        None for an unknown head, and for a classifier whose labels have not been seen yet.
    """
    if is_classifier(model):
        declared: str | None = model.config.problem_type
        return declared or (REGRESSION if model.config.num_labels == 1 else None)
    return SINGLE_LABEL if loss_type(model) in LABELLERS else None


def settle_problem_type(model: Any, labels: Tensor, loss: Callable[[], Any]) -> bool:
    """Sets a classifier's `config.problem_type` as the model would, had it seen the labels.

    Args:
        model: The model without wrappers.
        labels: The labels of any batch.
        loss: Returns the trainer's loss, which may be one of several labels.

    Returns:
        Whether there was none before.
    """
    if not is_classifier(model) or model.config.problem_type is not None:
        return False
    several = getattr(loss(), "problem_type", None) == MULTI_LABEL
    # A forward of the user's own turns whole numbers into what its loss takes.
    of_classes = labels.dim() == 2 and labels.shape[-1] == model.config.num_labels
    several |= labels.is_floating_point() or (of_classes and not is_transformers(model))
    classification = MULTI_LABEL if several else SINGLE_LABEL
    model.config.problem_type = REGRESSION if model.config.num_labels == 1 else classification
    return True


def check_head(model: Any, label_names: list[str]) -> None:
    """Raises a ValueError unless the model's loss is one function of its logits and labels.

    Args:
        model: The model without wrappers; one that transformers does not know is accepted.
        label_names: The columns that the trainer takes for labels.
    """
    name, kind = type(model).__name__, loss_type(model)
    expected = POSITIONS if kind == QUESTION_ANSWERING else ["labels"]
    fits = kind in (*CLASSIFIERS, *LABELLERS) and label_names == expected
    fits |= kind is None and len(label_names) == 1
    if kind == QUESTION_ANSWERING and "cls_index" in inspect.signature(model.forward).parameters:
        fits = False  # Its positions are a beam search's, and its loss has further terms.
    if not fits:
        raise UsageError(
            f"{name} (labels {label_names}) is not a model whose loss is one function of its "
            f"logits and 'labels'; models that fit: {', '.join(CLASSIFIERS + LABELLERS)}"
        )
    check_builtin_loss(model)
    # `hf-losses run` must not import transformers before the script does.
    from transformers.loss.loss_utils import LOSS_MAPPING

    given = getattr(model, "_loss_function", None) if is_transformers(model) else None
    if given not in (None, LOSS_MAPPING.get(kind or "")):
        raise UsageError(
            f"{name} was given a loss_function of its own ({given!r}), which would not be used: "
            "name it as the loss, or take it out (del model._loss_function)"
        )
    if kind != SEGMENTATION:
        return
    if getattr(model, "auxiliary_head", None) is not None:
        raise UsageError(
            f"{name} trains an auxiliary head, whose logits are not among its outputs: set "
            "config.use_auxiliary_head=False"
        )
    if model.config.num_labels == 1:
        raise UsageError(
            f"{name} with num_labels=1 is trained on yes/no pixels: give it two labels, as for "
            "any other classes"
        )


class Targets:
    """Takes the labels out of a batch, and finds the logits that belong to them.

    Ignored labels become -100, whatever value the model's own loss ignores.

    Args:
        model: The model without wrappers.
        label_names: The columns of labels.
        shifts: Whether every position learns the label of the next one.
        virtual_tokens: The number of tokens that a prompt encoder puts before the first one.
    """

    def __init__(
        self, model: Any, label_names: list[str], *, shifts: bool, virtual_tokens: int = 0
    ) -> None:
        self.model, self.label_names = model, label_names
        self.shifts, self.virtual_tokens = shifts, virtual_tokens
        self.kind = loss_type(model)
        # What a user's module is built around has said whether the labels are the next tokens.
        within = with_known_loss(model)
        self.within = None if within is model else within
        self.segments = loss_type(within) == SEGMENTATION
        # A decoder within is only given its input by the labels.
        self.decodes = self.within is not None and is_encoder_decoder(self.within)
        # Whether transformers knows the model, or what it is built around.
        self._known = loss_type(within) is not None
        self._checked = self._known and is_transformers(model)

    def present(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a batch has labels; a script's own kind of batch has not."""
        if not isinstance(inputs, Mapping):
            return False
        has_labels = all(inputs.get(name) is not None for name in self.label_names)
        return has_labels or inputs.get("shift_labels") is not None

    def of_batch(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """The labels of a batch: one tensor for each of the model's predictions.

        Args:
            inputs: A batch with labels.

        Returns:
            Tensors `[B, …]`: two for the start and the end of an answer, else one.
        """
        if self.kind == QUESTION_ANSWERING:
            tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
            return [_within(inputs[name], tokens.shape[1]) for name in self.label_names]
        if inputs.get("shift_labels") is not None:
            return [inputs["shift_labels"]]
        labels = counted_labels(self.model, inputs, inputs[self.label_names[0]])
        if not self._checked:
            self._check_copied(inputs.get("input_ids"), labels)
            self._checked = True
        if self.segments:
            config = (self.within or self.model).config
            # UperNet has another name for this field, and a user's own class may have none.
            name = "loss_ignore_index" if hasattr(config, "loss_ignore_index") else IGNORED_PIXELS
            ignored = getattr(config, name, IGNORE_INDEX)
            return [labels.long().masked_fill(labels == ignored, IGNORE_INDEX)]
        return [shift_left(labels) if self._shifts(labels) else labels]

    def _check_copied(self, tokens: Any, labels: Tensor) -> None:
        """Raises a ValueError for labels whose position a model of the user's own leaves open."""
        if not torch.is_tensor(tokens) or tokens.dim() < 2 or tokens.shape != labels.shape:
            return
        name, learned = type(self.model).__name__, labels != IGNORE_INDEX
        copied = learned.any() and torch.equal(labels[learned], tokens[learned])
        if copied and not self._known:
            raise UsageError(
                "the labels are the input_ids, and transformers does not know whether "
                f"{name} learns them one position earlier, as language models do: {GIVE_SHIFTED}"
            )
        within = learned[:, :-1]
        moved = within.any() and torch.equal(labels[:, :-1][within], tokens[:, 1:][within])
        if moved and not copied and self.shifts:
            raise UsageError(
                "the labels are those of the next tokens already, and would be shifted once more: "
                f"transformers takes {name} for a language model, whose loss shifts them. Where "
                f"its forward does not, {GIVE_SHIFTED}"
            )

    def _shifts(self, labels: Tensor) -> bool:
        # The last virtual token is followed by the first real one, which is learned too.
        tokens = self.kind is not None or (labels.dim() > 1 and not labels.is_floating_point())
        return self.shifts and not self.virtual_tokens and tokens

    def weights_of_batch(
        self, inputs: Mapping[str, Any], weight: Tensor | None
    ) -> list[Tensor | None]:
        """The weights that belong to the labels of a batch.

        Args:
            inputs: The batch with its labels.
            weight: `[B]`, or the shape of the labels, in the order of `labels` (of `shift_labels`
                if the batch has no others); None if all weigh the same.

        Returns:
            One for each of the tensors that `of_batch` returns.
        """
        if weight is not None and weight.dim() > 1:
            labels = inputs.get(self.label_names[0])
            shifted = inputs.get("shift_labels")
            if labels is not None and (
                self._shifts(labels) if shifted is None else not torch.equal(shifted, labels)
            ):
                weight = shift_left(weight, 0)
        return [weight] * (len(self.label_names) if self.kind == QUESTION_ANSWERING else 1)

    def logits(self, outputs: Any, labels: list[Tensor], *, shifted: bool) -> list[Tensor]:
        """The logits that belong to labels.

        Args:
            outputs: A `ModelOutput`, or a dict or tuple without a loss.
            labels: What `of_batch` returned.
            shifted: Whether the batch had `shift_labels`, which stand at the position of their
                logits already.

        Returns:
            `[B, …, C]` for each of the labels.
        """
        if self.kind == QUESTION_ANSWERING:
            if isinstance(outputs, tuple):
                return list(outputs[:2])
            return [outputs["start_logits"], outputs["end_logits"]]
        logits = logits_of(outputs, known=self.kind is not None)
        if self.within is not None and not shifted and self._shifts(labels[0]):
            words = getattr(self.within.get_output_embeddings(), "out_features", None)
            if words not in (None, logits.shape[-1]):
                raise UsageError(
                    f"{type(self.model).__name__} is built around {type(self.within).__name__}, "
                    f"whose labels are the next of {words} tokens, but puts out "
                    f"{logits.shape[-1]} classes: build it around the model without that head "
                    "(AutoModel)"
                )
        if self.segments:
            size = labels[0].shape[-2:]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            return [logits.movedim(1, -1)]
        if self.kind is None and _classes_are_second(logits, labels[0]):
            return [logits.movedim(1, -1)]
        added = logits.shape[1] - labels[0].shape[1] if labels[0].dim() == 2 < logits.dim() else 0
        if self.within is not None and self.shifts and added > 0 and not self.virtual_tokens:
            raise UsageError(
                f"{type(self.model).__name__} puts {added} positions before the tokens: let its "
                f"forward return logits[:, {added - 1}:-1], and {GIVE_SHIFTED} (labels as they are)"
            )
        if self.virtual_tokens and logits.dim() == 3 and labels[0].dim() == 2:
            length = labels[0].shape[1]
            if self.shifts and not shifted:
                logits = logits[:, -length - 1 : -1]
            logits = logits[:, -length:]
        return [logits]


def _classes_are_second(logits: Tensor, labels: Tensor) -> bool:
    """Whether logits `[B, C, …]` stand for labels `[B, …]`, as PyTorch's own losses take them."""
    return (
        labels.dim() > 1
        and logits.shape[:-1] != labels.shape
        and (*logits.shape[:1], *logits.shape[2:]) == labels.shape
    )


def _within(positions: Tensor, length: int) -> Tensor:
    """Positions of answers as transformers treats them: one beyond the text is no label."""
    if positions.dim() > 1:
        positions = positions.squeeze(-1)
    return positions.clamp(min=0).masked_fill(positions >= length, IGNORE_INDEX)


def shift_left(labels: Tensor, fill: float = IGNORE_INDEX) -> Tensor:
    """Labels of the next token; shifting the logits instead would copy them."""
    return F.pad(labels, (0, 1), value=fill)[..., 1:].contiguous()
