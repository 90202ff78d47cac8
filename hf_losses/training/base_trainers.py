"""The trainer class below `LossMixin`: whether its loss may be replaced, and what it logs with it.

TRL (extra `integrations`) is never imported here: its classes are known by their names.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from hf_losses.messages import UsageError
from hf_losses.models.builtin import IGNORE
from hf_losses.models.heads import logits_of, shift_left

SFT = "trl.trainer.sft_trainer.SFTTrainer"
# Trainers whose compute_loss is the stock loss and metrics, unless this argument says otherwise.
SAME_LOSS = {SFT: ("loss_type", "nll")}
# Another way in, by the package of a class.
INSTEAD = {
    "trl": "of TRL's trainers it goes with SFTTrainer",
    "sentence_transformers": "give a CrossEncoderTrainer loss=hf_losses.CrossEncoderLoss(model, …)",
    "setfit": "set model.model_head.get_loss_fn, as docs/swap.md shows",
}
TOKENS_AT_A_TIME = 256  # 150 MB of a vocabulary of 150,000 in float32.


def full_name(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_base(cls: type, mixin: type) -> None:
    """Raises a ValueError if the mixin would silently replace another loss than Trainer's own.

    Args:
        cls: The class of a trainer.
        mixin: `LossMixin`, which is among its bases.
    """
    below = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    below = tuple(base for base in below if base not in mixin.__mro__ or base is object)
    if Trainer not in below:
        base = below[0]
        raise UsageError(
            f"{mixin.__name__} needs a subclass of transformers.Trainer, and {full_name(base)} is "
            f"none: {_way_out(base, mixin)}"
        )
    for base in below[: below.index(Trainer)]:
        if full_name(base) in SAME_LOSS:
            return
        step = inspect.unwrap(vars(base).get("training_step", Trainer.training_step))
        if "compute_loss" in vars(base):
            why = f"compute_loss has a loss of its own, which {mixin.__name__} would replace"
        elif not {"compute_loss", "training_step"} & {*step.__code__.co_names}:
            why = f"training_step does without compute_loss, so {mixin.__name__} would do nothing"
        else:
            continue
        raise UsageError(f"{full_name(base)}.{why}: {_way_out(base, mixin)}")


def _way_out(base: type, mixin: type) -> str:
    name = base.__name__
    order = f"class Mine({name}, {mixin.__name__}, Trainer)"
    own = f"take it out, or if it calls super(), let it stand first: {order}"
    return INSTEAD.get(base.__module__.partition(".")[0], own)


class SFTLog:
    """What TRL's `SFTTrainer` logs beside its loss: its `compute_loss` makes it, and is replaced.

    The figures are put where `SFTTrainer.log` takes them from, by the same rules.

    Args:
        trainer: The trainer, of any class.
    """

    def __init__(self, trainer: Any) -> None:
        """See the class."""
        self.trainer = trainer
        self.wanted = SFT in map(full_name, type(trainer).__mro__)

    def model_inputs(self) -> dict[str, bool]:
        """What `SFTTrainer` adds to the inputs of the model."""
        if not self.wanted:
            return {}
        router = {"output_router_logits": True} if self.trainer.aux_loss_enabled else {}
        return {"use_cache": False} | router

    def add(self, inputs: dict[str, Any], outputs: Any) -> None:
        """Takes a batch, with its labels, and what the model made of it."""
        if self.wanted:
            self.add_tokens(inputs, logits_of(outputs))
            self.add_balance(outputs)

    def add_tokens(self, inputs: dict[str, Any], states: Tensor, head: Any = None) -> None:
        """Takes the tokens of a batch.

        Args:
            inputs: The batch with its labels.
            states: Logits `[B, T, C]`; where a fused head computes the loss, hidden states.
            head: The layer that makes logits of hidden states.
        """
        if not self.wanted:
            return
        labels = inputs.get("shift_labels")
        if labels is None:
            virtual = states.shape[1] - inputs["labels"].shape[1]  # Put in front by PEFT.
            labels = shift_left(F.pad(inputs["labels"], (virtual, 0), value=IGNORE))
        gather = self.trainer.accelerator.gather_for_metrics
        entropy, correct, tokens = (
            gather(found).sum().item() for found in token_sums(states, labels, head)
        )
        metrics = self._metrics()
        metrics["entropy"].append(entropy / max(tokens, 1))
        metrics["mean_token_accuracy"].append(correct / max(tokens, 1))
        if self.trainer.model.training:
            mask = inputs.get("attention_mask")
            if mask is None:  # Padding-free: one row that holds all texts.
                mask = torch.ones_like(inputs["position_ids"])
            # Tensor parallel processes are given the same batch.
            seen = gather(mask.sum()).sum().item() // self.trainer.get_tp_size()
            self.trainer._total_train_tokens += seen
        metrics["num_tokens"] = [self.trainer._total_train_tokens]

    def add_balance(self, outputs: Any) -> None:
        """Takes how evenly a mixture of experts used them, from the outputs of its model."""
        if self.wanted and self.trainer.aux_loss_enabled:
            balance = self.trainer.accelerator.gather_for_metrics(outputs.aux_loss.detach())
            self._metrics()["aux_loss"].append(balance.mean().item())

    def balance_weight(self) -> float | None:
        """By what `SFTTrainer` multiplies that; None where it is the model's own number."""
        return float(self.trainer.router_aux_loss_coef) if self.wanted else None

    def _metrics(self) -> Any:
        return self.trainer._metrics["train" if self.trainer.model.training else "eval"]


@torch.no_grad()
def token_sums(states: Tensor, labels: Tensor, head: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """How sure a model is of its next tokens, and how often it is right.

    Args:
        states: Logits `[B, T, C]`, or hidden states `[B, T, H]`.
        labels: Of the same position, `[B, T]`; -100 is left out.
        head: The layer that makes logits of hidden states.

    Returns:
        The sum of the entropies in nats, of the tokens that are the most likely, and of all.
    """
    rows, targets = states.flatten(0, 1), labels.flatten()
    kept = (targets != IGNORE).nonzero().squeeze(-1)
    entropy = torch.zeros((), device=states.device)
    correct = torch.zeros((), device=states.device)
    for start in range(0, len(kept), TOKENS_AT_A_TIME):
        part = kept[start : start + TOKENS_AT_A_TIME]
        logits = rows[part] if head is None else F.linear(rows[part], head.weight, head.bias)
        entropy += torch.special.entr(logits.float().softmax(-1)).sum()
        correct += (logits.argmax(-1) == targets[part]).sum()
    return entropy, correct, torch.tensor(len(kept), device=states.device)
