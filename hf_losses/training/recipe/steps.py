"""The steps of a recipe around `Trainer`'s: train and save, predict, end."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PredictionOutput

from hf_losses.messages import UsageError
from hf_losses.training import output_folder


class _Clear(TrainerCallback):  # type: ignore[misc]
    """Removes the finished run in the folder once another one begins, and nothing can refuse it."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.done = trainer, False

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        # A training with auto_find_batch_size begins several times.
        if args.should_save and not self.done:
            output_folder.clear(self.trainer)
        self.done = True


def train_and_save(trainer: Trainer, parser: ArgumentParser) -> dict[str, float]:
    """Trains from the start or from a checkpoint, and saves the model and the trainer's state.

    Args:
        trainer: With the checkpoint to resume from in its arguments.
        parser: Whose `error` says what does not fit, if that is seen before the training begins;
            nothing is removed then.

    Returns:
        What `Trainer.train` reported.

    Raises:
        SystemExit: If a signal has ended the training (`--enable_jit_checkpoint`): it is not done,
            and must not leave a result.
    """
    args, clear = trainer.args, _Clear(trainer)
    trainer.add_callback(clear)
    try:
        metrics: dict[str, float] = trainer.train(args.resume_from_checkpoint).metrics
    except UsageError as error:
        if clear.done:
            raise
        parser.error(str(error))
    state = trainer.state
    if args.enable_jit_checkpoint and state.global_step < state.max_steps:
        raise SystemExit(
            f"stopped by a signal after step {state.global_step} of {state.max_steps}: continue by "
            "--resume_from_checkpoint true"
        )
    trainer.save_model()
    trainer.save_state()
    return metrics


def predict_in_order(trainer: Trainer, dataset: Any, name: str) -> PredictionOutput:
    """What `Trainer.predict` gives for all rows of a set, in their order.

    Its sampler would group the rows by length, and its loader drop the last ones, where the
    arguments of the training say so.

    Args:
        trainer: The trainer.
        dataset: The set.
        name: Its name, which prefixes the metrics.
    """
    args, whole = trainer.args, {"train_sampling_strategy": "random", "dataloader_drop_last": False}
    before = {option: getattr(args, option) for option in whole}
    try:
        vars(args).update(whole)
        return trainer.predict(dataset, metric_key_prefix=name)
    finally:
        vars(args).update(before)


def end_run(trainer: Trainer) -> None:
    """Waits for the other processes and ends trackers and process group: the last line of a script.

    A process group that stays open, or that one process leaves early, can crash at the exit. So can
    gloo if its last operation is a barrier: its thread may still hold that operation when Python
    is finalized, and before Python 3.14 a thread that asks for the interpreter then is killed,
    which C++ answers with SIGABRT ("terminate called without an active exception"). The monitored
    barrier waits in the main thread instead.

    Processes that load data and are kept from epoch to epoch are ended here. For each that is left
    when Python ends, PyTorch before 2.13 waits five seconds on a GPU (its issue 81794). The garbage
    collector would not do: it ends the queue first by which a process is told.

    Args:
        trainer: The trainer, after its last training, evaluation or upload.
    """
    # `train` empties the accelerator's list; loaders of evaluations before it are the trainer's.
    loaders = list(trainer.accelerator._dataloaders)
    if hasattr(trainer, "_eval_dataloaders"):
        loaders += trainer._eval_dataloaders.values()
    for loader in loaders:
        getattr(loader, "base_dataloader", loader)._iterator = None
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.monitored_barrier(timeout=trainer.args.ddp_timeout_delta)
    else:
        trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
