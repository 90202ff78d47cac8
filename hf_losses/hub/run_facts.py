"""The facts of a run for its model card, as far as the files in its folder tell them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import TrainingArguments
from transformers.modelcard import TASK_MAPPING
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from hf_losses.citation import linked
from hf_losses.hub.card_names import (
    KINDS,
    METRICS,
    OTHER_ARGUMENTS,
    PROCESSORS,
    TASKS,
    hub_names,
    is_finite,
    is_hub_name,
    is_metric,
    is_path,
    listed,
)
from hf_losses.hub.saved_run import ARGUMENTS_FILE, COUNT_KEY, LOSS_FILE, STATE_KEY, read_object
from hf_losses.losses.margin import kind_of
from hf_losses.losses.modules import MULTI_LABEL
from hf_losses.losses.registry import get_spec, list_losses, neutral_loss

MANY = 20  # More classes than this are counted, not named.


class RunFacts:
    """The facts of a run, from the files in its folder.

    Args:
        folder: The folder.
        repo_id: The repository that the card speaks of; None takes the folder's name.
    """

    def __init__(self, folder: Path, repo_id: str | None) -> None:
        self.folder = folder
        self.loss = read_object(folder / LOSS_FILE)
        # A loss that a user registered may be unknown to the process that writes the card.
        registered = self.loss["name"] in list_losses()
        self.spec = get_spec(self.loss["name"]) if registered else None
        self.config = self._json("config.json")
        self.adapter = self._json("adapter_config.json")
        self.state = self._json("trainer_state.json")
        self.args = self._json(ARGUMENTS_FILE)
        self.result = self._json("result.json")
        readme = folder / "README.md"
        self.old = ModelCardData()
        if readme.is_file():
            self.old = ModelCard.load(readme, ignore_metadata_errors=True).data
        local_name = self.old.model_name or folder.resolve().name
        self.title = repo_id.split("/")[-1] if repo_id else local_name
        self.repo = repo_id or self.title
        self.seed = self.result.get("seed", self.args.get("seed"))
        problem = self.config.get("problem_type")
        task = self.spec.task if self.spec else None
        self.regression = "regression" in (problem, task)
        self.multi_label = MULTI_LABEL in (problem, self.loss.get("problem_type"))
        self.baseline = neutral_loss("regression" if self.regression else "classification")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_object(path) if path.is_file() else {}

    @cached_property
    def params(self) -> dict[str, float]:
        """The parameters of a registered loss; empty for others."""
        records = self.spec.parameters if self.spec else {}
        return {name: self.loss.get(name, record.default) for name, record in records.items()}

    @property
    def kind(self) -> str:
        """The kind of a registered loss with these parameters; empty for others."""
        return kind_of(self.spec, self.params) if self.spec else ""

    # ---- The model ---------------------------------------------------------------------------

    @cached_property
    def architecture(self) -> str | None:
        """Name of the model's class, such as `BertForSequenceClassification`."""
        mapping = self.adapter.get("auto_mapping") or {}
        names = self.config.get("architectures") or [mapping.get("base_model_class")]
        return str(names[0]) if names[0] else None

    @cached_property
    def task(self) -> str | None:
        """The model's task as transformers names it; None if no file tells it."""
        name = self.architecture or ""
        # Wav2Vec2ForSequenceClassification and others do not classify what their names say.
        for task in TASKS:
            if name in TASK_MAPPING.get(task, {}).values():
                return task
        for task, (model_class, peft_task, _) in TASKS.items():
            if (peft_task and peft_task == self.adapter.get("task_type")) or name.endswith(
                model_class.removeprefix("AutoModel")
            ):
                return task
        recorded: str | None = self.result.get("pipeline_tag") or self.old.pipeline_tag
        return recorded

    @property
    def pipeline_tag(self) -> str | None:
        """The task as the Hub names it; it dropped text2text-generation (huggingface.js#1590)."""
        return "text-generation" if self.task == "text2text-generation" else self.task

    @cached_property
    def model_class(self) -> str | None:
        """The class that loads the model: an Auto class where the task is known."""
        return TASKS[self.task][0] if self.task in TASKS else self.architecture

    @cached_property
    def processor_class(self) -> str:
        """The Auto class that loads the model's processor or tokenizer."""
        return PROCESSORS.get(self.task or "", "AutoTokenizer")

    @cached_property
    def has_processor(self) -> bool:
        """Whether the folder holds a processor or a tokenizer."""
        names = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
        return any((self.folder / name).is_file() for name in names)

    @cached_property
    def base(self) -> str | None:
        """The Hub's name of the model that was fine-tuned; None if it has none."""
        # adapter_config.json may name a local folder, of which only the last part is left.
        name: Any = self.result.get("base_model", self.old.base_model)
        return name if is_hub_name(name) else None

    @cached_property
    def base_name(self) -> str | None:
        """The name of the model that was fine-tuned: the Hub's, or that of its folder."""
        path = PureWindowsPath(self.adapter.get("base_model_name_or_path") or "")
        return self.base or self.result.get("model") or path.name or None

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes; empty if they are only numbered."""
        labels = self.result.get("classes") or list((self.config.get("id2label") or {}).values())
        names = [str(label) for label in labels]  # A script may have named them by numbers.
        unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
        return [] if self.regression or unnamed else names

    @cached_property
    def outputs(self) -> int | None:
        """How many logits an adapter's own head has; None if it uses the base model's head."""
        heads = set(self.adapter.get("modules_to_save") or [])
        path = self.folder / ADAPTER_SAFE_WEIGHTS_NAME
        if not heads or not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            names = [n for n in file.keys() if heads & {*n.split(".")} and n.endswith(".weight")]
            widths = [file.get_slice(name).get_shape()[0] for name in names]
        return min(widths, default=None)

    @cached_property
    def pairs(self) -> bool:
        """Whether the model reads two texts."""
        return len(self.result.get("columns") or []) == 2

    # ---- Data and results --------------------------------------------------------------------

    @cached_property
    def dataset(self) -> dict[str, Any]:
        """The dataset as `result.json` describes it; without that file, as the older card does."""
        empty: dict[str, Any] = dict.fromkeys(("name", "id", "config"))
        empty |= {"splits": {}, "rows": {}, "partial": []}
        if "dataset" in self.result:
            data = self.result["dataset"] or {}
            return empty | (data if isinstance(data, dict) else {"name": ", ".join(listed(data))})
        if self.old.eval_results:
            evaluated = self.old.eval_results[0]
            # Trainer writes the configuration into dataset_args.
            args = evaluated.dataset_args if isinstance(evaluated.dataset_args, str) else None
            split = evaluated.dataset_split
            return empty | {
                "name": evaluated.dataset_name,
                "id": evaluated.dataset_type,
                "config": evaluated.dataset_config or args,
                "splits": {"evaluation": split} if split else {},
            }
        names = hub_names(self.old.datasets)
        # Where there are several, it is not known which one the results belong to.
        return empty | {"name": ", ".join(names), "id": names[0] if len(names) == 1 else None}

    @cached_property
    def step(self) -> int | None:
        """The step of the evaluation that the card shows; None if it is the last step."""
        last = self.state.get("global_step")
        return None if self._shown_step in (None, last) else self._shown_step

    @cached_property
    def _evaluations(self) -> dict[int, dict[str, dict[str, float]]]:
        """Metrics by step and set, as logged during training."""
        evaluations: dict[int, dict[str, dict[str, float]]] = defaultdict(dict)
        for entry in self.state.get("log_history", []):
            for key in entry:
                prefix = key.removesuffix("_runtime")
                if prefix in (key, "train"):
                    continue
                name = "evaluation" if prefix == "eval" else prefix.removeprefix("eval_")
                evaluations[entry["step"]][name] = {
                    metric.removeprefix(f"{prefix}_"): value
                    for metric, value in entry.items()
                    if metric.startswith(f"{prefix}_") and is_metric(metric)
                }
        return dict(evaluations)

    @cached_property
    def _shown_step(self) -> int | None:
        """The step whose logged metrics the card shows; None if it shows those of the result."""
        if self.result.get("metrics") or not self._evaluations:
            return None
        best: int | None = self.state.get("best_global_step")
        kept = self.args.get("load_best_model_at_end") and best in self._evaluations
        return best if kept else list(self._evaluations)[-1]

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Metrics by set: the result's, or else those of the evaluation that the card shows."""
        found = self.result.get("metrics") or {}
        metrics = {name: values for name, values in found.items() if isinstance(values, dict)}
        if flat := {name: value for name, value in found.items() if is_finite(value)}:
            metrics["evaluation"] = flat  # A script of the user's own wrote them.
        return metrics or ({} if self._shown_step is None else self._evaluations[self._shown_step])

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the metrics that were measured; those that the Hub knows come first."""
        measured = {metric for scores in self.scores.values() for metric in scores}
        return sorted(measured, key=lambda metric: (metric not in METRICS, metric))

    def set_name(self, name: str) -> str:
        """The name of a set, with the dataset's own name of the split where that differs."""
        split = self.dataset["splits"].get(name)
        if name in self.dataset["partial"]:
            return f"{name} (a part of `{split}`)" if split else f"{name} (a part)"
        return name if split in (None, name) else f"{name} (`{split}`)"

    # ---- Metadata ----------------------------------------------------------------------------

    def metadata(self) -> ModelCardData:
        """The card's metadata for the Hub; an older card's licence, language and so on are kept."""
        renewed = ("model-index", "eval_results", "model_name", "base_model", "datasets", "metrics")
        old = self.old.to_dict()  # type: ignore[no-untyped-call]
        kept = {key: value for key, value in old.items() if key not in renewed}
        tags = [tag for tag in listed(self.old.tags) if not is_path(tag.split(":")[-1])]
        tags = [
            t for t in tags if not t.startswith("loss:") and (self.base or ":adapter:" not in t)
        ]
        hub_id, described = self.dataset["id"], "dataset" in self.result
        kept |= {
            "library_name": "peft" if self.adapter else "transformers",
            "pipeline_tag": self.pipeline_tag,
            "base_model": self.base,
            "tags": [*dict.fromkeys([*tags, "hf_losses", f"loss:{self.loss['name']}"])],
            "datasets": [hub_id] if hub_id or described else hub_names(self.old.datasets),
            "metrics": [*dict.fromkeys(METRICS[m][0] for m in self.metrics if m in METRICS)],
        }
        if results := self._eval_results():
            kept |= {"model_name": self.title, "eval_results": results}
        return ModelCardData(**{k: v for k, v in kept.items() if v not in (None, [], [None])})

    def _eval_results(self) -> list[EvalResult]:
        """The results on whole splits of a dataset of the Hub; a part would not be comparable."""
        data, task = self.dataset, self.pipeline_tag
        if not (data["id"] and task):
            return []
        return [
            EvalResult(
                task_type=task,
                task_name=task.replace("-", " ").capitalize(),
                dataset_type=data["id"],
                dataset_name=data["name"],
                dataset_config=data["config"],
                dataset_split=data["splits"].get(name),
                metric_type=METRICS[metric][0],
                # Without the name, sets whose split is unknown could not be told apart.
                metric_name=METRICS[metric][1] + ("" if len(self.scores) == 1 else f" ({name})"),
                metric_args=METRICS[metric][2],
                metric_value=scores[metric],
            )
            for name, scores in self.scores.items()
            if name not in data["partial"]
            for metric in self.metrics
            if metric in METRICS and is_finite(scores.get(metric))
        ]

    # ---- Tables ------------------------------------------------------------------------------

    def loss_rows(self) -> dict[str, str]:
        """The registry's record of the loss, with the values of this run."""
        assert self.spec is not None  # The template calls this only for registered losses.
        spec, loss = self.spec, self.loss
        rows = {"name": f"`{spec.name}`", "formula": f"`{spec.full_formula}`"}
        if spec.weight_formula:
            rows["gradient weight"] = f"`{spec.weight_formula}`"
        rows["kind"] = f"{self.kind}: {KINDS[self.kind]}"
        for name, value in self.params.items():
            rows[f"`{name}`"] = f"{value:g} ({spec.parameters[name].help})"
        if "max_weight" in loss:
            rows["`max_weight`"] = f"{loss['max_weight']} (the gradient weight goes no higher)"
        if "label_smoothing" in loss:
            rows["label smoothing"] = f"{loss['label_smoothing']:g}"
        if weights := loss.get("weight"):
            listed = ", ".join(f"{weight:g}" for weight in weights)
            rows["class weights"] = listed if len(weights) <= MANY else f"{len(weights)} numbers"
        if spec.reference:
            rows["reference"] = linked(spec.reference.replace("this project", "hf_losses"))
        return _cells(rows)

    def training_rows(self) -> dict[str, str]:
        """The hyperparameters, and the numbers of steps."""
        args, state, run = self.args, self.state, self.result.get("training") or {}
        rows: dict[str, Any] = {"loss": f"`{json.dumps(self.loss)}`"}
        if args:
            clip, warmup = args.get("max_grad_norm"), args.get("warmup_steps") or 0
            # What auto_find_batch_size came to, of all GPUs of a process.
            size = state.get("train_batch_size") or args["per_device_train_batch_size"]
            times, processes = args["gradient_accumulation_steps"], run.get("world_size")
            batch = f"{size} per process × {times} accumulated"
            if processes:
                batch += f" × {processes} process{'es' * (processes > 1)}"
                batch += f" = {size * times * processes}"
            rows |= {
                "learning rate": f"{args['learning_rate']:g}, {args['lr_scheduler_type']}",
                "warm-up": f"{100 * warmup:g} % of the steps"
                if 0 < warmup < 1
                else f"{warmup:g} steps",
                "batch": batch,
                "optimizer": f"{args['optim']}, weight decay {args['weight_decay']:g}",
                "gradient clipping": f"at norm {clip:g}" if clip else "none",
                "precision": self._precision(),
                "seed": args["seed"],
            }
            defaults = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
            for name in OTHER_ARGUMENTS:
                value = args.get(name)
                if value and value != defaults.get(name):
                    rows[name] = value
        if self.adapter.get("r"):
            parts = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
            rows["adapter"] = ", ".join(f"{k} {self.adapter.get(v)}" for k, v in parts.items())
            rows["adapted layers"] = ", ".join(sorted(listed(self.adapter.get("target_modules"))))
        if state:
            rows["optimizer steps"] = f"{state['global_step']:,} ({state['epoch'] or 0:.4g} epochs)"
        best = state.get("best_global_step")
        if best and args.get("load_best_model_at_end"):
            rows["weights"] = f"those of step {best:,}, the best by {args['metric_for_best_model']}"
        record = state.get("stateful_callbacks", {}).get(STATE_KEY, {})
        if (count := record.get("attributes", {}).get(COUNT_KEY)) is not None:
            rows["steps with a gradient that was not finite"] = count
        return _cells(rows)

    def _precision(self) -> str:
        """What the model computed in, and what its weights were where that was no float32."""
        weights = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        chosen = self.args.get("mixed_precision")
        if chosen in (None, "no"):  # Older records name none.
            chosen = next((name for name in ("bf16", "fp16") if self.args.get(name)), weights)
        return chosen if weights in ("float32", chosen) else f"{chosen}, weights in {weights}"

    def versions(self) -> str:
        """The packages that trained the model and their versions, as far as the files tell."""
        versions = self.result.get("versions") or {
            "transformers": self.config.get("transformers_version"),
            "peft": self.adapter.get("peft_version"),
        }
        return ", ".join(f"{package} {version}" for package, version in versions.items() if version)

    def hardware(self) -> str:
        """The machine that trained the model, and for how long; empty if no recipe noted it."""
        hardware, run = self.result.get("hardware"), self.result.get("training") or {}
        if not hardware:
            return ""
        where = f"{hardware['cpu_count']} CPU cores" if hardware.get("cpu_count") else "CPU"
        if hardware.get("cpu"):  # Older runs do not tell.
            where += f" of {hardware['cpu']}"
        if hardware.get("gpu"):
            where = f"{run.get('world_size', 1)} × {hardware['gpu']}, {where}"
        return where + (f"; {run['runtime']:,.0f} s of training" if run.get("runtime") else "")


def _cells(rows: dict[str, Any]) -> dict[str, str]:
    """The values as cells of a Markdown table, in which a bar must be escaped."""
    return {key: str(value).replace("|", "\\|") for key, value in rows.items()}
