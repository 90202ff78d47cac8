"""What a trainer saves of its loss, and how it resumes with it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_losses.hub.private import without_paths
from hf_losses.hub.saved_run import (
    ARGUMENTS_FILE,
    COUNT_KEY,
    LOSS_FILE,
    STATE_KEY,
    chosen,
    last_complete_checkpoint,
    load_renamed,
    loss_of_checkpoint,
)
from hf_losses.messages import UsageError
from hf_losses.training.arguments import LossTrainingArguments
from hf_losses.training.loss.choose import builtin_loss

logger = logging.getLogger(__name__)

# Any trainer class may stand below; the type checker sees the stock one.
_Base: Any = Trainer if TYPE_CHECKING else object


class SavingMixin(_Base):  # type: ignore[misc]
    """Saves the loss beside the model, and resumes only from checkpoints of the same loss."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains; resuming takes the last complete checkpoint and insists on the same loss.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the last one in `output_dir`
                that was written to its end.
            *args: Further arguments of `Trainer.train`.
            **kwargs: Further arguments of `Trainer.train`.

        Returns:
            What `Trainer.train` returns.

        Raises:
            ValueError: If there is no complete checkpoint, or it was trained with another loss and
                `allow_loss_change` is not set.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self.check_same_loss(str(resume_from_checkpoint))
        if resume_from_checkpoint or args:  # A script's own train() may take nothing.
            args = (resume_from_checkpoint or None, *args)
        trained = super().train(*args, **kwargs)
        self._name_loss_in_config()  # For users who call model.save_pretrained.
        return trained

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Starts as Trainer does; trackers read the model's config when the training begins."""
        trained = super()._init_training_state(*args, **kwargs)
        self.state.train_batch_size = self._train_batch_size  # Not that of the checkpoint.
        self._name_loss_in_config()
        return trained

    def _load_callback_state(self) -> None:
        """Trainer's, which takes the loss in its state for a callback that is missing."""
        callbacks = self.state.stateful_callbacks
        record = callbacks.pop(STATE_KEY, None)
        super()._load_callback_state()
        if record is not None:
            callbacks[STATE_KEY] = record

    def _name_loss_in_config(self) -> None:
        record = self._active.config  # As it is at first, also where there is no config.
        config = getattr(self._wrapped.core, "config", None)
        if config is not None:
            config.hf_losses = record

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's loading, which also finds weights that transformers has renamed."""
        with self._wrapped.uncompiled():
            target = self.model if model is None else model
            if self._is_sharded() or not load_renamed(target, resume_from_checkpoint):
                given = () if model is None else (model,)
                super()._load_from_checkpoint(resume_from_checkpoint, *given)

    def _load_best_model(self) -> None:
        """Trainer's loading of the best model, which also finds weights that were renamed."""
        best = self.state.best_model_checkpoint
        with self._wrapped.uncompiled():
            if self._is_sharded() or not load_renamed(self.model, best):
                super()._load_best_model()

    def _is_sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def check_same_loss(self, checkpoint: str) -> None:
        """Raises a ValueError if a checkpoint was trained with another loss.

        With `allow_loss_change` any loss is accepted.

        Args:
            checkpoint: Folder of the checkpoint.
        """
        # A checkpoint of the stock Trainer was trained with the built-in loss.
        builtin = {"name": builtin_loss(self._wrapped.core)}
        self._check_saved_loss(checkpoint, loss_of_checkpoint(checkpoint) or builtin)

    def _check_saved_loss(self, checkpoint: str, saved_loss: dict[str, Any]) -> None:
        if chosen(saved_loss) != chosen(self._active.config) and not getattr(
            self.args, "allow_loss_change", False
        ):
            raise UsageError(
                f"{checkpoint} was trained with the loss {saved_loss}, not {self._active.config}: "
                "resume with the same loss, start in another output_dir, or pass "
                "--allow_loss_change (LossTrainingArguments(allow_loss_change=True); "
                "to hf-losses run before SCRIPT)"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the loss in its config, its folder and the trainer's state.

        With `push_to_hub` it is pushed too. A failed push is only a warning: the model is saved.
        """
        self.state.stateful_callbacks[STATE_KEY] = {
            "args": self._active.config,
            "attributes": {COUNT_KEY: self._nonfinite.count},
        }
        self._name_loss_in_config()
        if self.args.should_save:
            self._write_records(output_dir or self.args.output_dir)
        # Trainer pickles its arguments: the token must not get into that file.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            # The weights of a compiled model have names that from_pretrained does not know.
            with self._wrapped.uncompiled(), self._on_each_node():
                # It keeps Trainer from pushing; an override of the user's may not know it.
                internal = _internal_call or self.args.push_to_hub
                super().save_model(output_dir, **({"_internal_call": True} if internal else {}))
        finally:
            self.args.hub_token = token
        if self.args.push_to_hub and not _internal_call:
            try:
                self.push_to_hub("Model save", revision=self.args.hub_revision)
            except (ValueError, OSError) as error:
                logger.warning("The model is saved but not pushed. %s", error)

    @contextmanager
    def _on_each_node(self) -> Iterator[None]:
        """Lets the first process of every machine save weights, if each has a disk of its own.

        Since transformers 5.23 at the latest, `save_pretrained` writes them in process 0 alone,
        whatever it is told: checkpoints of the other machines could not be resumed from.
        """
        model = self._wrapped.core
        known = hasattr(model, "should_save_on_this_rank") and not self._is_sharded()
        if not known or not self.args.save_on_each_node:
            yield
            return
        model.should_save_on_this_rank = lambda is_main_process: is_main_process
        try:
            yield
        finally:
            del model.should_save_on_this_rank

    def _write_records(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, LOSS_FILE), "w", encoding="utf-8") as file:
            json.dump(self._active.config, file, indent=2)
        with open(os.path.join(folder, ARGUMENTS_FILE), "w", encoding="utf-8") as file:
            # Arguments of the user's own may be of any type.
            json.dump(without_paths(self._shown_arguments()), file, indent=2, default=repr)

    def _shown_arguments(self) -> dict[str, Any]:
        # `hf-losses run` sets what a script's own arguments have no field for.
        names = LossTrainingArguments.__annotations__.keys() & vars(self.args).keys()
        added = {name: getattr(self.args, name) for name in names}
        # The launcher's configuration may have chosen the precision.
        added["mixed_precision"] = self.accelerator.mixed_precision
        return {
            name: value
            for name, value in (added | self.args.to_dict()).items()
            if value is not None and not name.endswith("_token")
        }
