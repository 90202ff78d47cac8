"""The terms that PEFT adds to a model's loss.

Some of PEFT's models add a term to the loss when they are given labels. The trainer keeps the
labels from the model, and adds the term itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_losses.messages import UsageError


def check_adapter(model: Any, *, data_parallel: bool = False, processes: int = 1) -> None:
    """Raises a ValueError if PEFT trains the active adapter on a loss that cannot be added here.

    Args:
        model: The model, with adapters or without.
        data_parallel: Whether `DataParallel` will wrap the model.
        processes: Number of processes that train the model.
    """
    kind = adapter_type(model)
    if kind == "CPT":
        raise UsageError(
            "PEFT trains peft_type='CPT' on a loss of its own, over the labels in its prompt too, "
            "which no other loss can replace: use another adapter, such as PROMPT_TUNING, or the "
            "stock Trainer"
        )
    if kind == "MULTITASK_PROMPT_TUNING" and model.active_peft_config.task_type == "SEQ_2_SEQ_LM":
        raise UsageError(
            "PEFT's MULTITASK_PROMPT_TUNING of a sequence-to-sequence model makes the decoder's "
            "input from labels, which this trainer keeps from the model: use another adapter, such "
            "as PROMPT_TUNING, or the stock Trainer"
        )
    if kind == "SHADOW" and data_parallel:
        raise UsageError(
            "peft_type='SHADOW' adds a term to the loss that DataParallel loses: start one process "
            "per GPU (torchrun or accelerate launch)"
        )
    if kind == "SHADOW" and processes > 1 and model.active_peft_config.task_type == "SEQ_CLS":
        # DistributedDataParallel would take the second classifier for unused after forward.
        raise UsageError(
            "peft_type='SHADOW' of a classifier has a second one, which only its own term of the "
            f"loss trains: {processes} processes cannot do that, take one"
        )


def adapter_type(model: Any) -> str | None:
    """PEFT's name of the active adapter, such as `"LORA"`; None without one."""
    config = getattr(model, "active_peft_config", None)
    return None if config is None else str(config.peft_type.value)


def adapter_term(
    model: Any, labels: Tensor | None, attention_mask: Tensor | None
) -> Tensor | float:
    """The term that PEFT adds to the loss of the batch that the model has just been run on.

    Args:
        model: The model with its adapters, without other wrappers.
        labels: The labels of the batch, not shifted.
        attention_mask: The attention mask of the batch.

    Returns:
        A scalar; 0 for adapters that add nothing.
    """
    kind = adapter_type(model)
    if kind == "ADALORA":
        return _orthogonality_term(model.base_model)
    if kind == "SHADOW" and labels is not None:
        return _shadow_term(model.base_model, labels, attention_mask)
    return 0.0


def _orthogonality_term(tuner: Any) -> Tensor | float:
    """AdaLoRA's penalty on factors of its singular value decompositions that are not orthogonal."""
    from peft.utils.integrations import gather_params_ctx

    name = tuner.trainable_adapter_name
    distances = []
    for path, factor in tuner.model.named_parameters():
        rows_orthogonal = "lora_A" in path
        if name not in path or not (rows_orthogonal or "lora_B" in path):
            continue
        with gather_params_ctx(factor, fwd_module=tuner):  # ZeRO-3 partitions it.
            products = factor @ factor.T if rows_orthogonal else factor.T @ factor
        ones = torch.eye(len(products), dtype=products.dtype, device=products.device)
        distances.append(torch.linalg.matrix_norm(products - ones))
    if not distances:
        return 0.0
    weight: float = tuner.peft_config[name].orth_reg_weight
    return weight * torch.stack(distances).mean()


def _shadow_term(tuner: Any, labels: Tensor, attention_mask: Tensor | None) -> Tensor | float:
    """The cross-entropy of the small network with its own head that runs beside the model."""
    weight: float = tuner.peft_config[tuner.active_adapters[0]].auxiliary_loss_weight
    if weight <= 0 or not tuner._shadow_path_active():
        return 0.0
    term: Tensor | None = tuner.shadow_auxiliary_loss(labels, attention_mask=attention_mask)
    return 0.0 if term is None else weight * term


def check_trained(model: Any) -> None:
    """Raises a ValueError if a training would leave a model's adapter as it is.

    Transformers loads an adapter frozen, so that its head alone would be trained, or nothing.

    Args:
        model: The model without wrappers.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    trained = (name for name, weight in model.named_parameters() if weight.requires_grad)
    if all("modules_to_save" in name for name in trained):
        raise UsageError(
            "the model has an adapter, which is frozen: a training would leave it as it is. So "
            "merge it first (PEFT's merge_and_unload, then save_pretrained) and name the merged "
            "model, or load it by PeftModel.from_pretrained(…, is_trainable=True)"
        )
