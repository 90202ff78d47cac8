"""How a trainer publishes its model: the repository, pushes during the training, and the card."""

from __future__ import annotations

import inspect
import logging
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_losses.hub.card import write_card
from hf_losses.hub.publish import publish
from hf_losses.hub.upload import open_repo
from hf_losses.training.saving import SavingMixin

logger = logging.getLogger(__name__)

NOT_PUSHED = "This checkpoint was not pushed, the next one will be. %s"


class PublishingMixin(SavingMixin):
    """Publishes as `hf-losses publish` does, at the end and during the training."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository on the Hub; with `push_to_hub`, Trainer calls it before training.

        Args:
            token: Instead of `hub_token`.
            private: Instead of `hub_private_repo`.

        Raises:
            ValueError: If there is no token or no right to write, or the name is taken.
            OSError: If the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        folder = self.args.output_dir
        name = self.args.hub_model_id or os.path.basename(os.path.abspath(folder))
        self.hub_model_id = open_repo(
            name,
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
            then="To publish later instead, train without push_to_hub and then: "
            f"hf-losses publish {folder} --repo {name}",
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves everything and uploads it, as `hf-losses publish` does; all processes must call it.

        Args:
            commit_message: The commit's first line.
            blocking: Whether to wait for the upload.
            token: Instead of `hub_token`.
            revision: Instead of `hub_revision`.
            private: Instead of `hub_private_repo`, for a new repository.
            **kwargs: Arguments of `create_model_card`.

        Returns:
            The `CommitInfo`, or a `Future` of it if not `blocking`; None on all processes
            but the first.

        Raises:
            ValueError: If the Hub refuses the upload; the message says how to publish later.
            OSError: If the Hub cannot be reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        self.save_state()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        name = self.hub_model_id.split("/")[-1]
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else tags
        tags = list(dict.fromkeys([*tags, *(getattr(self.model, "model_tags", None) or [])]))
        self.create_model_card(**({"model_name": name, "tags": tags} | kwargs))
        self._finish_current_push()
        return publish(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            blocking=blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint in the background; if that fails, the training goes on."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        jobs: list[Any] = self.push_in_progress.jobs if self.push_in_progress else []
        jobs = [job for job in jobs if not job.done()]
        if jobs and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint_names = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: os.path.basename(checkpoint_folder),
        }
        try:
            # A checkpoint's files are never written again, so links to them are safe.
            job = publish(
                checkpoint_folder,
                self.hub_model_id,
                private=self.args.hub_private_repo,
                revision=self.args.hub_revision,
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=self.args.hub_token,
                checkpoint=checkpoint_names.get(strategy),
                blocking=False,
            )
        except (ValueError, OSError) as error:
            logger.warning(NOT_PUSHED, error)
            return
        job.add_done_callback(_warn_if_failed)
        self.push_in_progress = PushInProgress([*jobs, job])

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes `README.md` and its pictures: Trainer's metadata with the text of this project.

        Args:
            *args: Positional arguments of the trainer class's own `create_model_card`.
            **kwargs: Its keyword arguments; in TRL `model_name`, `dataset_name` and `tags`.
        """
        takes_tags = "dataset_tags" in inspect.signature(super().create_model_card).parameters
        if takes_tags and not args and kwargs.get("dataset_tags") is None:
            # Trainer would name the data after the builder that read it, such as "imagefolder".
            kwargs["dataset_tags"] = []
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            self._write_records(self.args.output_dir)
            self.state.save_to_json(os.path.join(self.args.output_dir, TRAINER_STATE_NAME))
            write_card(Path(self.args.output_dir), repo_id=self.hub_model_id)


def _warn_if_failed(job: Future[Any]) -> None:
    if error := job.exception():
        logger.warning(NOT_PUSHED, error)
