"""Losses for sentence-transformers' `CrossEncoderTrainer`.

That trainer passes texts to its loss, and writes the loss's config and citation into the model
card. sentence-transformers (extra `integrations`) is imported when a loss is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_losses.citation import loss_citation
from hf_losses.losses.modules import MULTI_LABEL, get_loss
from hf_losses.losses.registry import get_spec
from hf_losses.messages import MissingExtra, UsageError
from hf_losses.training.loss.items import Items
from hf_losses.training.loss.targets import check_targets

if TYPE_CHECKING:
    from sentence_transformers.cross_encoder import CrossEncoder


class CrossEncoderLoss(nn.Module):
    """A registered loss in the form of sentence-transformers' own losses for a `CrossEncoder`.

    Labels of a model with several outputs are classes (`[B]`), or with one number per output
    (`[B, C]`) probabilities; with `problem_type="multi_label_classification"` one yes or no per
    output. A model with one output, the default of `CrossEncoder`, takes a yes or no, or a
    probability; its logit is treated as that of a single yes/no label, for which
    `cross_entropy` is `BinaryCrossEntropyLoss`. Regression losses compare labels with the raw
    outputs, as `MSELoss` does; `CrossEncoder.predict` puts a sigmoid on a single output unless it
    is given another `activation_fn`.

    Like all losses of sentence-transformers, it is the mean over a micro-batch: accumulated
    micro-batches have equal weight.

    Args:
        model: The `CrossEncoder` to be trained.
        loss: A registered name.
        **params: See `get_loss`.

    Raises:
        ImportError: If sentence-transformers is missing.
        ValueError: If the model is no `CrossEncoder`, or the loss or a parameter is unknown or does
            not fit.

    Example:
        >>> trainer = CrossEncoderTrainer(model=model, loss=CrossEncoderLoss(model, "strict_l"))
    """

    def __init__(self, model: CrossEncoder, loss: str = "liberal_exp", **params: Any) -> None:
        super().__init__()
        try:
            from sentence_transformers.cross_encoder import CrossEncoder
        except ImportError as error:
            raise MissingExtra(
                "CrossEncoderLoss needs sentence-transformers: "
                "pip install 'hf-losses[integrations]'"
            ) from error
        if not isinstance(model, CrossEncoder):
            raise UsageError(f"CrossEncoderLoss needs a CrossEncoder, got a {type(model).__name__}")
        if params.get("reduction", "mean") != "mean":
            raise UsageError(
                f"reduction is {params['reduction']!r}, but CrossEncoderTrainer takes a mean"
            )
        if model.num_labels == 1 and get_spec(loss).task == "classification":
            if params.setdefault("problem_type", MULTI_LABEL) != MULTI_LABEL:
                raise UsageError(
                    f"problem_type={params['problem_type']!r} needs a model with two outputs or "
                    "more, this one has num_labels=1: leave problem_type out for yes/no labels"
                )
        # The trainer looks for a part by the name of `model`, and the model card for `loss`.
        self.model = model
        self.criterion = get_loss(loss, **params)
        self._checked = False  # Whether the labels of the first batch have been checked.
        weight = getattr(self.criterion, "weight", None)
        if weight is not None and len(weight) != model.num_labels:
            raise UsageError(
                f"weight has {len(weight)} entries, one per class, but the model has "
                f"num_labels={model.num_labels}"
            )

    def forward(
        self,
        inputs: list[list[str]],
        labels: Tensor | list[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Computes the loss of a batch of pairs.

        Args:
            inputs: The two columns of texts, `B` each.
            labels: `[B]`, `[B, 1]` or `[B, C]`, or a list of its rows.
            prompt: Text that is put before each pair.
            task: The route, for a model with several.

        Returns:
            The mean over the batch, a float32 scalar.

        Raises:
            ValueError: If there are not two columns of texts, or the labels do not fit; in the
                first batch also if they lie outside [0, 1].
        """
        from sentence_transformers.util import batch_to_device

        if len(inputs) != 2:
            raise UsageError(
                "CrossEncoderLoss needs two columns of texts beside the label, "
                f"the dataset has {len(inputs)}"
            )
        pairs = list(zip(*inputs, strict=True))
        features = self.model.preprocess(pairs, prompt=prompt, task=task)
        scores = self.model(batch_to_device(features, self.model.device))["scores"]
        if isinstance(labels, list):
            # The collator passes label columns that hold a list per row as a list of tensors.
            labels = torch.stack(labels)
        if labels.numel() == scores.numel():
            labels = labels.view_as(scores)  # One output: [B] or [B, 1].
        elif labels.shape[1:] == (1,):
            labels = labels.squeeze(1)
        if not self._checked:
            self._checked = True
            check_targets(Items(scores, labels, None), self.criterion)
        value: Tensor = self.criterion(scores, labels)
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """Name and parameters of the loss, for the model card."""
        return self.criterion.config

    @property
    def citation(self) -> str:
        """BibTeX of this library and, where the loss refers to it, of the paper."""
        spec = self.criterion.spec
        return loss_citation(spec.name, spec.reference or spec.formula)
