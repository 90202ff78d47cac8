"""Which trainer classes `LossMixin` may extend, and what TRL's `SFTTrainer` logs beside its loss.

TRL (extra `integrations`) is never imported here: its classes are recognised by their names.
"""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.forwards import logits_of
from hf_losses.models.heads import shift_left

SFT = "trl.trainer.sft_trainer.SFTTrainer"
# Trainers whose compute_loss is the stock loss and metrics while this argument has this value.
SAME_LOSS = {SFT: ("loss_type", "nll")}
# What to use instead of `LossMixin`, by the package of a trainer class.
INSTEAD = {
    "trl": "of TRL's trainers it goes with SFTTrainer",
    "sentence_transformers": "give a CrossEncoderTrainer loss=hf_losses.CrossEncoderLoss(model, …)",
    "setfit": "set model.model_head.get_loss_fn, as docs/swap.md shows",
}
# A compute_loss that uses none of these names has another loss than the trainer's.
TAKING = {"compute_loss", "compute_loss_func", "criterion"}
TOKENS_AT_A_TIME = 256  # 150 MB of logits in float32 for a vocabulary of 150,000.


def full_name(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def check_base(cls: type, mixin: type) -> None:
    """Raises a ValueError if the mixin would silently replace a loss other than Trainer's own.

    Args:
        cls: The class of a trainer.
        mixin: `LossMixin`, which is among its bases.
    """
    before = cls.__mro__[: cls.__mro__.index(mixin)]
    codes = [code for base in before for code in map(code_of, vars(base).values()) if code]
    takes_loss = {name for code in codes for name in _names(code)} & TAKING
    for base in before if not takes_loss else ():
        if "compute_loss" in vars(base) and never_calls_super(base):
            raise UsageError(
                f"{full_name(base)}.compute_loss has a loss of its own, so {mixin.__name__} would "
                "do nothing: let it call super().compute_loss and return that loss, or take "
                "self.criterion"
            )
    bases = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    bases = tuple(base for base in bases if base not in mixin.__mro__ or base is object)
    if Trainer not in bases:
        base = bases[0]
        raise UsageError(
            f"{mixin.__name__} needs a subclass of transformers.Trainer, and {full_name(base)} is "
            f"none: {_advice(base, mixin)}"
        )
    for base in bases[: bases.index(Trainer)]:
        if full_name(base) in SAME_LOSS:
            return
        training_step = inspect.unwrap(vars(base).get("training_step", Trainer.training_step))
        if "compute_loss" in vars(base):
            reason = f"compute_loss has a loss of its own, which {mixin.__name__} would replace"
        elif not {"compute_loss", "training_step"} & {*training_step.__code__.co_names}:
            reason = (
                f"training_step does without compute_loss, so {mixin.__name__} would do nothing"
            )
        else:
            continue
        raise UsageError(f"{full_name(base)}.{reason}: {_advice(base, mixin)}")


def check_order(cls: type, mixin: type) -> None:
    """Raises a ValueError if the mixin stands behind `Trainer`, which then trains without it."""
    if Trainer in cls.__mro__[: cls.__mro__.index(mixin)]:
        names = [base.__name__ for base in cls.__bases__ if base is not mixin]
        raise UsageError(
            f"in {cls.__name__}, {mixin.__name__} comes behind Trainer, which would train without "
            f"it: class {cls.__name__}({', '.join([mixin.__name__, *names])})"
        )


def never_calls_super(base: type) -> bool:
    """Whether a class defines a `compute_loss` and nothing in it calls `super().compute_loss`.

    False for a `compute_loss` made by a decorator or an assignment: the first training step shows
    what that does.

    Args:
        base: A class that defines a `compute_loss`.
    """
    code = code_of(vars(base)["compute_loss"])
    if code is None or code.co_qualname != f"{base.__qualname__}.compute_loss":
        return False
    return not any(
        {"super", "compute_loss"} <= _names(code)
        for code in map(code_of, vars(base).values())
        if code
    )


def _names(code: CodeType) -> set[str]:
    """The names that a function uses, in functions within it too."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def code_of(function: Any) -> CodeType | None:
    """The code of a function, without its decorators; None for anything else."""
    return getattr(inspect.unwrap(function), "__code__", None)


def _advice(base: type, mixin: type) -> str:
    """What to do about a class that the mixin cannot extend."""
    name = base.__name__
    order = f"class Mine({name}, {mixin.__name__}, Trainer)"
    default = f"take it out, or if it calls super(), let it stand first: {order}"
    return INSTEAD.get(base.__module__.partition(".")[0], default)


class SFTLog:
    """Logs what TRL's `SFTTrainer` logs in its `compute_loss`, which `LossMixin` replaces.

    The figures are computed by the same rules, and put where `SFTTrainer.log` reads them when it is
    about to: until then they stay on the device. For other trainers this does nothing.

    Args:
        trainer: The trainer, of any class.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.is_sft = SFT in map(full_name, type(trainer).__mro__)
        # By batch: sums over its tokens, and the load-balancing loss.
        self._tokens: dict[str, list[Tensor]] = {"train": [], "eval": []}
        self._balances: dict[str, list[Tensor]] = {"train": [], "eval": []}

    def model_inputs(self) -> dict[str, bool]:
        """The arguments that `SFTTrainer` adds to the inputs of the model."""
        if not self.is_sft:
            return {}
        router = {"output_router_logits": True} if self.trainer.aux_loss_enabled else {}
        return {"use_cache": False} | router

    def add(self, inputs: dict[str, Any], outputs: Any) -> None:
        """Records the figures of a batch, given with its labels, and of the model's outputs."""
        if self.is_sft:
            self.add_tokens(inputs, logits_of(outputs))
            self.add_balance(outputs)

    def add_tokens(self, inputs: dict[str, Any], states: Tensor, head: Any = None) -> None:
        """Records the entropy, the accuracy and the number of the tokens of a batch.

        Args:
            inputs: The batch with its labels.
            states: Logits `[B, T, C]`, or hidden states `[B, T, H]` if the head is fused.
            head: The layer that turns hidden states into logits; None if `states` are logits.
        """
        if not self.is_sft:
            return
        labels = inputs.get("shift_labels")
        if labels is None:
            # PEFT's prompt tuning puts virtual tokens in front.
            virtual = states.shape[1] - inputs["labels"].shape[1]
            labels = shift_left(F.pad(inputs["labels"], (virtual, 0), value=IGNORE_INDEX))
        gather = self.trainer.accelerator.gather_for_metrics
        sums = token_sums(states, labels, head)
        if self.trainer.model.training:
            mask = inputs.get("attention_mask")
            if mask is None:  # Padding-free batches hold all texts in one row.
                mask = torch.ones_like(inputs["position_ids"])
            sums = (*sums, mask.sum())
        self._tokens[self._mode].append(torch.stack([gather(total).sum() for total in sums]))

    def add_balance(self, outputs: Any) -> None:
        """Records the load-balancing loss of a mixture of experts from the model's outputs."""
        if self.is_sft and self.trainer.aux_loss_enabled:
            balance = self.trainer.accelerator.gather_for_metrics(outputs.aux_loss.detach())
            self._balances[self._mode].append(balance.mean())

    def read(self) -> None:
        """Hands the figures of all batches since the last call to the trainer."""
        for mode, batches in self._tokens.items():
            for entropy, correct, tokens, *seen in _numbers(batches):
                metrics = self.trainer._metrics[mode]
                metrics["entropy"].append(entropy / max(tokens, 1))
                metrics["mean_token_accuracy"].append(correct / max(tokens, 1))
                # Tensor-parallel processes all get the same batch.
                seen = int(sum(seen)) // self.trainer.get_tp_size()
                self.trainer._total_train_tokens += seen
                metrics["num_tokens"] = [self.trainer._total_train_tokens]
        for mode, balances in self._balances.items():
            for balance in _numbers(balances):
                self.trainer._metrics[mode]["aux_loss"].append(balance)

    def balance_weight(self) -> float | None:
        """The factor of the load-balancing loss; None if it is the one in the model's config."""
        return float(self.trainer.router_aux_loss_coef) if self.is_sft else None

    @property
    def _mode(self) -> str:
        return "train" if self.trainer.model.training else "eval"


def _numbers(tensors: list[Tensor]) -> list[Any]:
    """The values of tensors of one shape, which are waited for once; empties the list."""
    numbers: list[Any] = torch.stack(tensors).tolist() if tensors else []
    tensors.clear()
    return numbers


@torch.no_grad()
def token_sums(states: Tensor, labels: Tensor, head: Any = None) -> tuple[Tensor, ...]:
    """How uncertain a model is of its next tokens, and how often it is right.

    Args:
        states: Logits `[B, T, C]`, or hidden states `[B, T, H]`.
        labels: The target of each position, `[B, T]`; positions with -100 are left out.
        head: The layer that turns hidden states into logits; None if `states` are logits.

    Returns:
        The sum of the entropies in nats, the number of targets that have the largest logit, and the
        number of all targets.
    """
    rows, targets = states.flatten(0, 1), labels.flatten()
    counted = targets != IGNORE_INDEX
    positions = torch.arange(len(targets), device=states.device)
    if counted.is_cpu:  # A GPU would have to be waited for.
        positions = positions[counted]
    entropy = torch.zeros((), dtype=torch.float32, device=states.device)
    correct = torch.zeros((), dtype=torch.float32, device=states.device)
    for part in torch.split(positions, TOKENS_AT_A_TIME):
        logits = rows[part] if head is None else F.linear(rows[part], head.weight, head.bias)
        entropies = torch.special.entr(logits.float().softmax(-1)).sum(-1)
        entropy += entropies.where(counted[part], 0.0).sum()
        correct += (logits.argmax(-1) == targets[part]).sum()  # -100 is no argmax.
    return entropy, correct, counted.sum()
