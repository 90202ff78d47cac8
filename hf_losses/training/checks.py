"""Whether a trainer's arguments, model and loss go together, before anything is trained."""

from __future__ import annotations

from typing import Any

from accelerate.utils import is_compiled_module
from transformers import PreTrainedConfig
from transformers.utils.generic import find_labels

from hf_losses.losses.fused import triton_launch
from hf_losses.losses.linear import check_linear, plain_head
from hf_losses.messages import UsageError
from hf_losses.models.adapters import check_adapter, check_trained
from hf_losses.models.builtin import shifts_labels
from hf_losses.models.heads import check_head, is_causal
from hf_losses.training.arguments import check_direction
from hf_losses.training.base_trainers import SAME_LOSS, full_name
from hf_losses.training.loss.warmup import warmup_share
from hf_losses.training.reports.item_stats import check_stats


def check_trainer(trainer: Any) -> None:
    """Raises a ValueError if the loss of a trainer that has been built could not be applied.

    Args:
        trainer: A `LossMixin`; its `label_names` are set if Trainer has found none.
    """
    check_direction(trainer.args)
    triton_launch.choice()
    if trainer.compute_loss_func is not None:
        raise UsageError(
            "compute_loss_func would compete with this trainer's loss: pass it as loss=, "
            "or use the stock Trainer"
        )
    for base in map(full_name, type(trainer).__mro__):
        option, stock = SAME_LOSS.get(base, ("", None))
        if option and getattr(trainer.args, option) != stock:
            raise UsageError(
                f"{option}={getattr(trainer.args, option)!r} asks {base} for another loss than "
                f"this trainer's: leave it at {stock!r}"
            )
    if trainer.args.use_liger_kernel and (trainer.args.liger_kernel_config or {}).get(
        "fused_linear_cross_entropy", True
    ):
        raise UsageError(
            "use_liger_kernel fuses cross-entropy into the head and leaves no logits for "
            "another loss: set liger_kernel_config to "
            '{"fused_linear_cross_entropy": false, "cross_entropy": false}, or switch it off'
        )
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    if parallelism is not None and parallelism.sp_enabled:
        raise UsageError(
            "sequence parallelism computes the model's built-in loss; "
            "use data or tensor parallelism with this trainer"
        )
    if not trainer.label_names:
        # Trainer finds none in the signature of a compiled model.
        trainer.label_names = find_labels(type(trainer._wrapped.core)) or ["labels"]
    check_head(trainer._wrapped.core, trainer.label_names)
    check_adapter(
        trainer._wrapped.adapted,
        data_parallel=trainer.args.n_gpu > 1,
        processes=trainer.accelerator.num_processes,
    )
    if trainer.args.do_train:
        check_trained(trainer._wrapped.core)
    config = getattr(trainer._wrapped.core, "config", None)
    if (
        isinstance(config, PreTrainedConfig)
        and getattr(config.get_text_config(), "output_router_logits", False)
        and not config.return_dict
    ):
        raise UsageError(
            "with config.return_dict=False the model's outputs do not tell the aux_loss of its "
            "mixture of experts: set it to True, or config.output_router_logits=False"
        )
    # Raises if it is unknown whether the model shifts.
    shifts = shifts_labels(trainer._wrapped.core)
    if parallelism is not None and parallelism.cp_enabled and not shifts:
        raise UsageError(
            "context parallelism takes labels for those of the next tokens, which "
            f"{type(trainer._wrapped.core).__name__} does not learn: use data parallelism"
        )
    if not trainer.loss_is_scaled_for_ga:
        raise UsageError(
            f"{type(trainer).__name__}.loss_is_scaled_for_ga=False would divide the loss by the "
            "accumulation steps a second time: take it out"
        )
    check_stats(trainer.args, trainer._active.criterion)
    if warmup_share(trainer.args, 0, 1) is not None:
        trainer._active.initial()  # Raises if it does not fit the model.
        if getattr(trainer._active.criterion, "overwrite_logits", False):
            raise UsageError(
                "overwrite_logits leaves nothing for the other loss of a warm-up: keep one"
            )
    if getattr(trainer.args, "fused_linear", False):
        check_fused_linear(trainer)


def check_fused_linear(trainer: Any) -> None:
    """Raises a ValueError if the last layer cannot be fused with the loss.

    Args:
        trainer: A `LossMixin` with `fused_linear` in its arguments.
    """
    core = trainer._wrapped.core
    if not is_causal(core):
        raise UsageError(
            f"fused_linear is for causal language models, not {type(core).__name__}: switch it off"
        )
    check_linear(trainer._active.criterion)
    plugin = trainer.accelerator.state.deepspeed_plugin
    for feature, present in (
        ("loss_stats_steps, which needs the logits", trainer.args.loss_stats_steps),
        ("torch_compile", trainer.args.torch_compile or is_compiled_module(trainer.model)),
        ("DataParallel (start one process per GPU)", trainer.args.n_gpu > 1),
        ("FSDP, which shards the head", trainer.is_fsdp_enabled),
        ("DeepSpeed's ZeRO-3, which shards the head", plugin and plugin.zero_stage == 3),
        ("tensor parallelism, which shards the head", trainer.get_tp_size() > 1),
    ):
        if present:
            raise UsageError(f"fused_linear does not work with {feature}: switch one of them off")
    if hasattr(plain_head(core), "_hf_hook"):
        raise UsageError(
            "fused_linear does not work with a head that a hook of Accelerate moves between "
            "devices: load the model without device_map, or switch fused_linear off"
        )
