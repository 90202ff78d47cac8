"""LoRA adapters, and which weights are saved beside them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import peft
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel

from hf_losses.messages import UsageError
from hf_losses.options import option


@dataclass
class LoraArguments:
    """The adapter."""

    lora: bool = option(False, "train a LoRA adapter and the head instead of all weights")
    lora_r: int = option(16, "rank of the adapter")
    lora_alpha: int = option(32, "the adapter is scaled by lora_alpha / lora_r")
    lora_dropout: float = option(0.1, "dropout before the adapter")
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "layers to adapt; without any: PEFT's for the model, or all linear ones"},
    )


def add_adapter(
    model: PreTrainedModel, options: LoraArguments, loading: dict[str, Any], task_type: str | None
) -> peft.PeftModel:
    """Wraps a model, so that the adapter and the new weights are trained and saved.

    Args:
        model: As loaded.
        options: The adapter.
        loading: What `from_pretrained(…, output_loading_info=True)` returned beside the model.
        task_type: PEFT's name of the task; None where it has none.

    Returns:
        The model with its adapter.

    Raises:
        ValueError: If the model lacks the layers to adapt; the message names those it has. If it
            has an adapter already, in whose place another one would begin.
    """
    if getattr(model, "peft_config", None):
        raise UsageError(
            "--lora would begin a new adapter in place of the one in --model_name_or_path: merge "
            "that first (PEFT's merge_and_unload, then save_pretrained) and name the merged model"
        )
    # New weights are saved with the adapter, since the base model's checkpoint lacks them.
    new = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    body = f"{model.base_model_prefix}."
    # A head that the checkpoint has is trained, too. CLIP has no body by the name of its prefix.
    if task_type != "CAUSAL_LM" and hasattr(model, model.base_model_prefix):
        new |= {key for key, _ in model.named_parameters() if not key.startswith(body)}
    new_modules = sorted(
        {k.rpartition(".")[0] if k.startswith(body) else k.split(".")[0] for k in new}
    )
    known = model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    config = peft.LoraConfig(
        task_type=task_type,
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules or (None if known else "all-linear"),
        exclude_modules=new_modules or None,
        modules_to_save=new_modules or None,
    )
    layers = sorted({n.split(".")[-2] for n, p in model.named_parameters() if p.dim() in (2, 4)})
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"{error} --lora_target_modules: {', '.join(layers)}") from error
    for module in adapted.modules():
        frozen = not any(weight.requires_grad for weight in module.parameters())
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and frozen:
            # Its statistics are not saved with an adapter: they must stay those of the base model.
            module.eval()
            module.train = functools.partial(_stay, module)  # type: ignore[assignment]
    return adapted


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """Leaves a module in evaluation mode, unless its weights are trained, as after a merge."""
    trained = any(weight.requires_grad for weight in module.parameters())
    return type(module).train(module, mode) if trained else module
