"""A `Trainer` whose loss is a hyperparameter: chosen, computed, reported, saved and resumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_losses.arguments import parse_loss_kwargs
from hf_losses.criterion import (
    MULTI_LABEL,
    SINGLE_LABEL,
    ClassificationLoss,
    RegressionLoss,
    get_loss,
)
from hf_losses.normalise import (
    SumFunction,
    item_count,
    logits_of,
    shift_left,
    sum_over_items,
)
from hf_losses.registry import get_spec, list_losses, neutral_loss

logger = logging.getLogger(__name__)

LOSS_FILE = "hf_losses.json"
REGRESSION = "regression"

# Heads by the name transformers gives their loss. The first group reads config.problem_type.
CLASSIFIERS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForVideoClassification",
)
LABELLERS = (
    "ForTokenClassification",
    "ForCausalLM",
    "ForMaskedLM",
    "ForConditionalGeneration",
)

# Any trainer class may stand below; the type checker sees the stock one.
_Base: Any = Trainer if TYPE_CHECKING else object


class LossMixin(_Base):  # type: ignore[misc]
    """Gives any `Trainer` subclass a loss: `class MyTrainer(LossMixin, SFTTrainer)`.

    Args:
        *args: Those of the trainer class.
        loss: A registered name, a module (`get_loss("strict_m_power", alpha=0.3)`,
            `torch.nn.MultiMarginLoss()`), or a callable `loss(logits, labels)` that returns the
            mean over the items whose label is not -100, or one value per item. None takes the loss
            of the training arguments, or without one the baseline of the task.
        **kwargs: Those of the trainer class.

    Raises:
        ValueError: If the loss is unknown, is named in two places that differ, does not fit the
            model's head, or could not be applied (Liger's fused head, several label tensors, …).
    """

    # Since transformers 5.19: the loss is already divided by the items of the whole step.
    loss_is_scaled_for_ga = True
    # Trainer sets it while it trains.
    current_gradient_accumulation_steps = 1

    def __init__(
        self, *args: Any, loss: str | Callable[..., Tensor] | None = None, **kwargs: Any
    ) -> None:
        """See the class."""
        if isinstance(loss, str):
            get_spec(loss)  # Before the trainer makes folders, or a repository on the Hub.
        self._given_loss = loss
        self._built: tuple[Any, Any, SumFunction] | None = None
        self._neutral_losses: list[Tensor] | None = None
        self._neutral_of_batch: Tensor | None = None
        self._batch_has_loss = False
        self._unwrapped: tuple[Any, Any] | None = None
        super().__init__(*args, **kwargs)
        self._check_trainer()
        self._loss()
        # Trainer counts the items of a step only for a loss function that is set here.
        self.compute_loss_func = self._loss_of_outputs

    # ---- Which loss --------------------------------------------------------------------------

    @property
    def criterion(self) -> Any:
        """The loss in force: a module of this project, or what was given as `loss`."""
        return self._loss()[0]

    @property
    def loss_config(self) -> dict[str, Any]:
        """Name and parameters of the loss in force, as JSON."""
        criterion = self.criterion
        if isinstance(criterion, ClassificationLoss | RegressionLoss):
            return criterion.config
        kind = type(criterion) if isinstance(criterion, nn.Module) else criterion
        return {"name": f"{kind.__module__}:{getattr(kind, '__qualname__', type(kind).__name__)}"}

    def _loss(self) -> tuple[Any, SumFunction]:
        # Read late: a hyperparameter search sets the fields of the arguments before every trial.
        key = (
            getattr(self.args, "loss", None),
            json.dumps(getattr(self.args, "loss_kwargs", None)),
            self.args.label_smoothing_factor,
            self._problem_type(),
        )
        if self._built is None or self._built[0] != key:
            criterion = self._build_loss()
            if isinstance(criterion, nn.Module):
                criterion.to(self.args.device)
            self._built = (key, criterion, sum_over_items(criterion))
        return self._built[1:]

    def _build_loss(self) -> Any:
        given, named = self._given_loss, getattr(self.args, "loss", None)
        if given is not None and named is not None and given != named:
            raise ValueError(
                f"two losses: loss={given!r} given to the trainer and {named!r} in its arguments; "
                "keep one"
            )
        smoothing = self.args.label_smoothing_factor
        if given is not None and not isinstance(given, str):
            if smoothing:
                raise ValueError(
                    f"label_smoothing_factor={smoothing} would be ignored by a loss that is "
                    "already built: use get_loss(name, label_smoothing=…) instead"
                )
            return self._fitting(given)
        params = parse_loss_kwargs(getattr(self.args, "loss_kwargs", None))
        problem = self._problem_type()
        name = given or named or neutral_loss(_task(problem))
        if smoothing:
            if problem in (MULTI_LABEL, REGRESSION):
                raise ValueError(
                    f"label_smoothing_factor={smoothing} does not apply to {problem} "
                    "(for several labels: loss_kwargs '{\"label_smoothing\": …}')"
                )
            if params.setdefault("label_smoothing", smoothing) != smoothing:
                raise ValueError(
                    f"label_smoothing_factor={smoothing} and loss_kwargs {params} contradict each "
                    "other; keep one"
                )
        if problem == MULTI_LABEL and get_spec(name).task == "classification":
            params.setdefault("problem_type", MULTI_LABEL)
        return self._fitting(get_loss(name, **params))

    def _fitting(self, loss: Any) -> Any:
        problem = self._problem_type()
        if not isinstance(loss, ClassificationLoss | RegressionLoss):
            return loss
        name, head = loss.spec.name, f"{type(self._core()).__name__}, problem_type={problem!r}"
        if self._is_classifier():
            head += f", num_labels={self._core().config.num_labels}"
        if problem is not None and loss.spec.task != _task(problem):
            raise ValueError(
                f"loss {name!r} is for {loss.spec.task} and does not fit the model's head "
                f"({head}); choose one of: {', '.join(list_losses(task=_task(problem)))}"
            )
        if problem is None and self._is_classifier() and loss.spec.task == REGRESSION:
            raise ValueError(
                f"loss {name!r} is for regression and does not fit the model's head ({head}); set "
                "config.problem_type='regression', or choose one of: "
                f"{', '.join(list_losses(task='classification'))}"
            )
        if problem in (SINGLE_LABEL, MULTI_LABEL) and loss.problem_type != problem:
            raise ValueError(
                f"the loss was built for {loss.problem_type} and does not fit the model's head "
                f"({head}); make config.problem_type and the loss's problem_type the same"
            )
        return loss

    def _core(self) -> Any:
        """The model without wrappers and adapters."""
        if self._unwrapped is None or self._unwrapped[0] is not self.model:
            # Unwrapping walks through all modules; a search replaces the model for every trial.
            model = self.accelerator.unwrap_model(self.model)
            core = model.get_base_model() if hasattr(model, "get_base_model") else model
            self._unwrapped = (self.model, core)
        return self._unwrapped[1]

    def _is_classifier(self) -> bool:
        return getattr(self._core(), "loss_type", None) in CLASSIFIERS

    def _problem_type(self) -> str | None:
        """What the head is for; None for a classifier until labels have shown it."""
        if self._is_classifier():
            config = self._core().config
            declared: str | None = config.problem_type
            return declared or (REGRESSION if config.num_labels == 1 else None)
        return SINGLE_LABEL if getattr(self._core(), "loss_type", None) in LABELLERS else None

    def _check_trainer(self) -> None:
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func would compete with this trainer's loss: pass it as loss=, "
                "or use the stock Trainer"
            )
        if self.args.use_liger_kernel and (self.args.liger_kernel_config or {}).get(
            "fused_linear_cross_entropy", True
        ):
            raise ValueError(
                "use_liger_kernel fuses cross-entropy into the head and leaves no logits for "
                "another loss: set liger_kernel_config to "
                '{"fused_linear_cross_entropy": false, "cross_entropy": false}, or switch it off'
            )
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if parallelism is not None and parallelism.sp_enabled:
            raise ValueError(
                "sequence parallelism computes the model's built-in loss; "
                "use data or tensor parallelism with this trainer"
            )
        loss_type = getattr(self._core(), "loss_type", None)
        if not self.label_names:
            self.label_names = ["labels"]  # The model itself never sees them.
        if self.label_names != ["labels"] or (
            loss_type is not None and loss_type not in CLASSIFIERS + LABELLERS
        ):
            raise ValueError(
                f"{type(self._core()).__name__} (labels {self.label_names}) is not a model whose "
                "loss is one function of its logits and 'labels'; models that fit: "
                f"{', '.join(CLASSIFIERS + LABELLERS)}"
            )

    # ---- Computing it ------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of one micro-batch, divided by the items of the whole optimizer step.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch with `labels`; left as it is.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: Labels other than -100 in all micro-batches and processes of this
                optimizer step. None: this micro-batch counts alone.

        Returns:
            A scalar, or the scalar and the outputs.

        Raises:
            ValueError: If labels or logits are missing or do not fit each other.
        """
        # A copy without labels: given them, the model would compute its built-in loss for nothing.
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        shifted = inputs.pop("shift_labels", None)
        inputs.pop("skip_logits", None)
        if labels is None and shifted is None:
            raise ValueError(
                f"the batch has no 'labels' for the loss, only: {', '.join(inputs)} "
                "(the data needs a column 'label' or 'labels')"
            )
        core = self._core()
        if labels is not None:
            self._settle_problem_type(core, labels)
            if (
                hasattr(core, "prepare_decoder_input_ids_from_labels")
                and not {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
                and core.config.is_encoder_decoder
            ):
                inputs["decoder_input_ids"] = core.prepare_decoder_input_ids_from_labels(
                    labels=labels
                )
        outputs = model(**inputs)
        if shifted is None:
            shifted = shift_left(labels) if self._loss_shifts_labels else labels
        loss = self.compute_loss_func(outputs, shifted, num_items_in_batch=num_items_in_batch)
        if isinstance(outputs, tuple):
            outputs = (loss, *outputs)  # Trainer's evaluation leaves out the first of a tuple.
        return (loss, outputs) if return_outputs else loss

    def _loss_of_outputs(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None
    ) -> Tensor:
        criterion, summed = self._loss()
        logits = logits_of(outputs)
        if logits.dim() == 3 and labels.dim() == 2 and self._has_virtual_tokens():
            logits = logits[:, -labels.shape[1] :]
        items = num_items_in_batch
        if torch.is_tensor(items) and items.dim():
            # DataParallel: once per GPU, and without averaging across devices already divided.
            items = items.flatten()[0]
            if not self.args.average_tokens_across_devices:
                items = items * self.args.n_gpu
        count = item_count(logits, labels, items, criterion)

        def of_step(summed: SumFunction) -> Tensor:
            loss: Tensor = summed(logits, labels) / count
            if num_items_in_batch is None:
                steps = self.current_gradient_accumulation_steps if self.model.training else 1
                return loss / steps
            if self.args.average_tokens_across_devices:
                # The count is over all processes, but their gradients are averaged.
                loss = loss * (self.accelerator.num_processes // self.get_tp_size())
            return loss

        loss = of_step(summed)
        self._batch_has_loss = True
        if self._neutral_losses is not None:
            neutral = self._neutral()
            same = neutral.config == self.loss_config
            self._neutral_of_batch = (loss if same else of_step(sum_over_items(neutral))).detach()
        total: Tensor = loss + self._auxiliary(outputs)
        return total

    def _neutral(self) -> ClassificationLoss | RegressionLoss:
        """The plain baseline of the task, by which runs with different losses are compared."""
        options = {"problem_type": MULTI_LABEL} if self._problem_type() == MULTI_LABEL else {}
        return get_loss(self._neutral_name(), **options)

    def _neutral_name(self) -> str:
        spec = getattr(self.criterion, "spec", None)
        return neutral_loss(_task(self._problem_type()) if spec is None else spec.task)

    def _auxiliary(self, outputs: Any) -> Tensor | float:
        """What a mixture of experts adds to its loss; models leave it out when given no labels."""
        auxiliary = outputs.get("aux_loss") if hasattr(outputs, "get") else None
        if auxiliary is None:
            return 0.0
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        added: Tensor = auxiliary * (self._core().config.router_aux_loss_coef / steps)
        return added

    def _has_virtual_tokens(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        config = getattr(model, "active_peft_config", None)
        return config is not None and bool(config.is_prompt_learning)

    def _settle_problem_type(self, core: Any, labels: Tensor) -> None:
        """Does what the model would have done, had it seen the labels."""
        if self._is_classifier() and core.config.problem_type is None:
            many = MULTI_LABEL if labels.is_floating_point() else SINGLE_LABEL
            core.config.problem_type = REGRESSION if core.config.num_labels == 1 else many

    # ---- Evaluation --------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop, which also reports the task's baseline, such as `eval_cross_entropy`."""
        self._neutral_losses = []
        try:
            output = super().evaluation_loop(*args, **kwargs)
            if self._neutral_losses:
                prefix = kwargs.get("metric_key_prefix", "eval")
                mean = torch.cat(self._neutral_losses).cpu().numpy().mean().item()
                output.metrics[f"{prefix}_{self._neutral_name()}"] = mean
        finally:
            self._neutral_losses = None
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's step, with this trainer's loss whatever the class below does."""
        self._neutral_of_batch, self._batch_has_loss = None, False
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and not self._batch_has_loss:
            # Seq2SeqTrainer takes the model's built-in loss when it generates.
            with torch.no_grad(), self.compute_loss_context_manager():
                loss, _ = self.compute_loss(model, self._prepare_inputs(inputs), True)
        if self._neutral_losses is not None and self._neutral_of_batch is not None:
            repeated = self._neutral_of_batch.repeat(self.args.eval_batch_size)
            self._neutral_losses.append(self.gather_function(repeated))
        return loss, logits, labels

    # ---- Saving and resuming -----------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trains; resuming takes the last complete checkpoint and insists on the same loss.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the last one in `output_dir`
                that was written to its end.
            *args: Those of `Trainer.train`.
            **kwargs: Those of `Trainer.train`.

        Returns:
            What `Trainer.train` returns.

        Raises:
            ValueError: If the checkpoint was trained with another loss and `allow_loss_change` is
                not set, or there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        if resume_from_checkpoint:
            self.check_same_loss(str(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def check_same_loss(self, checkpoint: str) -> None:
        """Raises a ValueError if a checkpoint was trained with another loss, unless that is wanted.

        Args:
            checkpoint: Its folder.
        """
        callbacks = _read_state(checkpoint).get("stateful_callbacks", {})
        # A checkpoint of the stock Trainer was trained with the built-in loss.
        stock = {"name": neutral_loss(_task(self._problem_type()))}
        before = callbacks.get("hf_losses", {}).get("args", stock)
        if before != self.loss_config and not getattr(self.args, "allow_loss_change", False):
            raise ValueError(
                f"{checkpoint} was trained with the loss {before}, not {self.loss_config}: resume "
                "with the same loss, start in another output_dir, or pass --allow_loss_change "
                "(LossTrainingArguments(allow_loss_change=True))"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and the loss in its config, its folder and the trainer's state."""
        self.state.stateful_callbacks["hf_losses"] = {"args": self.loss_config, "attributes": {}}
        config = getattr(self._core(), "config", None)
        if config is not None:
            config.hf_losses = self.loss_config
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, LOSS_FILE), "w", encoding="utf-8") as file:
                json.dump(self.loss_config, file, indent=2)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's model card, with the loss among tags and hyperparameters."""
        super().create_model_card(*args, **kwargs)
        if not self.is_world_process_zero():
            return
        path = os.path.join(self.args.output_dir, "README.md")
        card, config = ModelCard.load(path), self.loss_config
        tags = [*(card.data.tags or []), "hf_losses", f"loss:{config['name']}"]
        card.data.tags = list(dict.fromkeys(tags))
        intro = "The following hyperparameters were used during training:\n"
        card.text = card.text.replace(intro, f"{intro}- loss: {json.dumps(config)}\n")
        card.save(path)


class LossTrainer(LossMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with any loss; see `LossMixin` for its `loss`.

    Example:
        >>> LossTrainer(model=model, args=args, train_dataset=data, loss="liberal_exp").train()
    """


def _task(problem_type: str | None) -> str:
    return "regression" if problem_type == REGRESSION else "classification"


def _read_state(checkpoint: str) -> dict[str, Any]:
    path = os.path.join(checkpoint, "trainer_state.json")
    try:
        with open(path, encoding="utf-8") as file:
            state: dict[str, Any] = json.load(file)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{checkpoint} is no complete checkpoint: cannot read its trainer_state.json ({error})"
        ) from error
    return state


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest checkpoint that was written to its end: Trainer writes its state last.

    Args:
        output_dir: Folder of `checkpoint-N` folders.

    Returns:
        Path of one of them. Those cut short by a crash are left out with a warning.

    Raises:
        ValueError: If there is none.
    """
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    steps = [name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for name in names]
    for step in sorted((int(step) for step in steps if step.isdigit()), reverse=True):
        checkpoint = os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        try:
            _read_state(checkpoint)
        except ValueError as error:
            logger.warning("%s; trying the one before", error)
        else:
            return checkpoint
    raise ValueError(
        f"no complete checkpoint in {output_dir}: train without resume_from_checkpoint first"
    )
