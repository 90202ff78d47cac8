"""A trainer's model without what was put around it: wrappers, compilation, adapters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import is_compiled_module
from torch.optim.swa_utils import AveragedModel
from transformers.trainer_utils import unwrap_peft_model

from hf_losses.models.builtin import loss_type, shifts_labels
from hf_losses.models.forwards import is_transformers, without_loss
from hf_losses.models.heads import Targets
from hf_losses.training.model_state import state_of

# What a forward raises that computes a loss of labels which are None.
NEEDING_LABELS = (
    AssertionError,
    AttributeError,
    KeyError,
    TypeError,
    UnboundLocalError,
    ValueError,
)

# Prompts of PEFT that become keys and values of the attention, not tokens.
KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")


class WrappedModel:
    """Looks through the wrappers of a trainer's model; results are kept until it has another one.

    Args:
        trainer: The trainer; not read before its `__init__` is done.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._unwrapped: tuple[Any, Any] | None = None
        self._targets: Targets | None = None
        # Of the last model that has run: whether only with labels, in training and evaluation.
        self._runs: tuple[Any, dict[bool, bool]] = (None, {})

    @property
    def adapted(self) -> Any:
        """The model without wrappers, with its adapters."""
        model = self.trainer.model
        if self._unwrapped is None or self._unwrapped[0] is not model:
            # Unwrapping walks through all modules; a search replaces the model for every trial.
            unwrapped = self.trainer.accelerator.unwrap_model(model, keep_torch_compile=False)
            if isinstance(unwrapped, AveragedModel):
                unwrapped = unwrapped.module
            self._unwrapped = (model, unwrapped)
        return self._unwrapped[1]

    @property
    def core(self) -> Any:
        """The model without wrappers and adapters."""
        return unwrap_peft_model(self.adapted)

    @property
    def needs_labels(self) -> bool:
        """Whether its forward requires labels, or makes a decoder's input of them."""
        core = self.core
        if loss_type(core) is not None and is_transformers(core):
            return False
        if self.targets.decodes or self._ran_with_labels():
            return True
        parameters = inspect.signature(core.forward).parameters
        labels = parameters.get(self.trainer.label_names[0])
        return labels is not None and labels.default is inspect.Parameter.empty

    def _ran_with_labels(self) -> bool | None:
        """Whether the model ran only with labels, in training or evaluation as now; None: never."""
        model, found = self._runs
        return found.get(model.training) if model is self.core else None

    def call(
        self, model: Callable[..., Any], inputs: dict[str, Any], labels: dict[str, Any]
    ) -> Any:
        """The model's outputs for a batch, without a loss.

        Labels are given only to a forward of the user's own that needs them.

        Args:
            model: The model, possibly wrapped.
            inputs: The batch without labels.
            labels: The labels by name; None for those that the batch has not.
        """
        core = self.core
        labels = {name: value for name, value in labels.items() if value is not None}
        with_labels = self._ran_with_labels()
        if core is not self._runs[0]:
            self._runs = (core, {})
        sharded = self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled
        known = with_labels is not None or self.needs_labels or is_transformers(core)
        restore = (
            None if known or sharded or not labels else state_of(core, self.trainer.args.device)
        )
        try:
            outputs = model(**inputs | labels if self.needs_labels else inputs)
        except NEEDING_LABELS:
            if restore is None:
                raise
            restore()
            outputs = model(**inputs | labels)
            with_labels = True
        self._runs[1][core.training] = bool(with_labels)
        copies = 1
        if self.needs_labels and labels:
            rows = len(next(iter(labels.values())))
            # As DataParallel divides them.
            copies = -(-rows // -(-rows // max(1, self.trainer.args.n_gpu)))
        return without_loss(outputs, copies=copies)

    @property
    def targets(self) -> Targets:
        """How labels and logits are taken from a batch of the model."""
        core = self.core
        if self._targets is None or self._targets.model is not core:
            # Trainer would judge the shift by transformers' name of the loss, which GPT-2 does not
            # have and BART's decoder does not follow.
            self._targets = Targets(
                core,
                self.trainer.label_names,
                shifts=shifts_labels(core),
                virtual_tokens=self._virtual_tokens(),
            )
        return self._targets

    def _virtual_tokens(self) -> int:
        """How many embeddings PEFT puts before those of the tokens."""
        config = getattr(self.adapted, "active_peft_config", None)
        if config is None or not config.is_prompt_learning or config.peft_type in KEYS_AND_VALUES:
            return 0
        return int(config.num_virtual_tokens)

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """While it lasts, the trainer has the model itself in place of `torch.compile(model)`."""
        model = self.trainer.model
        if is_compiled_module(model):
            self.trainer.model = model._orig_mod
        try:
            yield
        finally:
            self.trainer.model = model
