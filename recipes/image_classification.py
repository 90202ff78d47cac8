"""Fine-tunes or trains a model on images, with the loss of your choice.

accelerate launch recipes/image_classification.py --loss strict_l
accelerate launch recipes/image_classification.py --loss liberal_exp --dataset_name beans \
    --model_name_or_path google/vit-base-patch16-224-in21k
accelerate launch recipes/image_classification.py --loss strict_m --train_dir photos/train --lora \
    --validation_dir photos/validation --model_name_or_path facebook/convnext-tiny-224
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ViTImageProcessor,
    set_seed,
)

from hf_losses import LossTrainer, UsageError
from hf_losses.data import (
    DIGITS,
    AugmentationArguments,
    ImageArguments,
    ModelInputs,
    NewEpoch,
    training_inputs,
)
from hf_losses.metrics import METRICS, GlueMetric
from hf_losses.models import LoraArguments, add_adapter, build_config, loading, order_head
from hf_losses.options import cores, option
from hf_losses.training import (
    RecipeTrainingArguments,
    check_loss,
    choose_metric,
    end_run,
    loss_of_arguments,
    output_folder,
    parse,
    predict_in_order,
    train_and_save,
)


@dataclass
class ModelArguments(LoraArguments):
    """The model and its adapter."""

    model_name_or_path: str | None = option(
        None, "Hub name or folder of a pretrained model; without one: --model_type from scratch"
    )
    model_type: str = option("vit", "architecture of a model from scratch: vit, resnet, convnext …")
    config_overrides: str | None = option(
        None, "its settings: hidden_size=64,num_hidden_layers=4,patch_size=4,image_size=28"
    )
    freeze_backbone: bool = option(False, "train the head alone, on the pretrained features")


@dataclass
class ImageTrainingArguments(RecipeTrainingArguments):
    """Every training argument of transformers, with defaults of this recipe."""

    learning_rate: float | None = option(None, "without one: 5e-5, from scratch 1e-3")
    num_train_epochs: float | None = option(None, f"without one: 3, for {DIGITS} 40")
    dataloader_num_workers: int = option(min(cores(), 8), "processes that load images")
    dataloader_persistent_workers: bool = option(True, "keep them from epoch to epoch")

    def __post_init__(self):
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0
        super().__post_init__()


def load_model(path, options, data):
    labels = {
        "id2label": dict(enumerate(data.classes)),
        "label2id": {label: i for i, label in enumerate(data.classes)},
        "problem_type": "single_label_classification",
    }
    if options.freeze_backbone and options.lora:
        raise UsageError("--lora and --freeze_backbone contradict each other; keep one")
    if path is None:
        if options.freeze_backbone or options.lora:
            raise UsageError("--freeze_backbone and --lora need a pretrained model")
        config, size = build_config(options.model_type, options.config_overrides, data, labels)
        model = AutoModelForImageClassification.from_config(config)
        processor = ViTImageProcessor(
            size=size, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
        )
        return processor, model
    if options.config_overrides:
        raise UsageError(
            "--config_overrides is for a model from scratch; not with --model_name_or_path"
        )
    with loading(path, "AutoModelForImageClassification"):
        processor = AutoImageProcessor.from_pretrained(path)
        model, loading_info = AutoModelForImageClassification.from_pretrained(
            path,
            num_labels=len(data.classes),
            **labels,
            dtype="float32",  # Half precision is what --bf16 is for: it keeps float32 weights.
            ignore_mismatched_sizes=True,  # A head for other classes is replaced, and reported.
            output_loading_info=True,
        )
    order_head(model, path, data.classes)
    if options.freeze_backbone:
        if model.base_model is model:
            raise UsageError(f"--freeze_backbone finds no backbone in {type(model).__name__}")
        backbone = model.base_model.requires_grad_(False).eval()
        backbone.train = lambda mode=True: backbone  # Batch norm and dropout stay in eval mode.
    return processor, add_adapter(model, options, loading_info, None) if options.lora else model


def predicted(logits, labels):
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)  # DeiT has two heads.


def main(argv=None):
    parser = HfArgumentParser(
        (ImageArguments, ModelArguments, AugmentationArguments, ImageTrainingArguments),
        usage="image_classification.py [--dataset_name NAME] [--model_name_or_path MODEL] "
        "[--loss LOSS] … (--help)",
    )
    try:  # All errors of the user's are found here, before anything is trained or written.
        source, options, changes, args = parse(parser, argv)
        check_loss(args.loss, "classification", source.name)
        choose_metric(args, (*METRICS["classification"], "cross_entropy", "ece"))
        with args.main_process_first():
            data = source.load()
        validation, tests = data.sets("validation"), data.sets("test")
        path = options.model_name_or_path
        if args.learning_rate is None:
            args.learning_rate = 5e-5 if path else 1e-3
        if args.num_train_epochs is None:
            args.num_train_epochs = 40 if source.dataset_name == DIGITS else 3
        if not validation:
            if args.load_best_model_at_end:
                raise UsageError("--load_best_model_at_end needs a validation set")
            args.eval_strategy = "no"
        base_model = model_name = path
        if path is None:
            model_name = f"{options.model_type} from scratch"
        elif Path(path).is_dir():
            base_model, model_name = None, Path(path).resolve().name
        loss = loss_of_arguments(args.loss or "cross_entropy", args.loss_kwargs)
        output_folder.prepare(
            args, "image_classification", source.name, data, model_name, loss, path
        )
        set_seed(args.seed)  # The new head is random.
        processor, model = load_model(path, options, data)
        inputs = training_inputs(data, processor, changes, args.seed)
        validation, tests = (
            {name: ModelInputs(images, processor) for name, images in sets.items()}
            for sets in (validation, tests)
        )
        metric = GlueMetric("classification")
        trainer = LossTrainer(
            model=model,
            args=args,
            train_dataset=inputs,
            eval_dataset=validation.get("validation"),
            processing_class=processor,
            preprocess_logits_for_metrics=predicted,
            compute_metrics=lambda evaluation: metric.compute(
                predictions=evaluation.predictions, references=evaluation.label_ids
            ),
            callbacks=[NewEpoch(inputs)],
        )
        if args.resume_from_checkpoint:
            trainer.check_same_loss(args.resume_from_checkpoint)
    except UsageError as error:
        parser.error(str(error))

    training, metrics = train_and_save(trainer, parser) if args.do_train else {}, {}
    for name, images in (validation | tests).items():
        output = predict_in_order(trainer, images, name)
        metrics[name] = output.metrics
        if args.do_predict and name in tests and trainer.is_world_process_zero():
            rows = images.images.names()
            output_folder.write_predictions(args, name, rows, output.predictions, data.classes)
    if args.should_save:
        facts = {"task": source.name, "model": model_name, "base_model": base_model}
        facts |= {"pipeline_tag": "image-classification", "from_scratch": path is None}
        facts |= {"classes": data.classes, "skipped_images": data.skipped}
        facts["dataset"] = output_folder.dataset_facts(data)
        output_folder.write_result(
            trainer, metrics, training, METRICS["classification"], {}, **facts
        )
    if args.push_to_hub:
        trainer.push_to_hub()
    end_run(trainer)


if __name__ == "__main__":
    main()
