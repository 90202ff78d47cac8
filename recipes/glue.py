"""Fine-tunes a pretrained model on sentences or pairs of sentences, with the loss of your choice.

accelerate launch recipes/glue.py --loss liberal_exp
accelerate launch recipes/glue.py --loss strict_l --task_name mrpc --model_name_or_path roberta-base
accelerate launch recipes/glue.py --loss smae --train_file a.csv --validation_file b.csv --lora
"""

from dataclasses import dataclass

from transformers import (
    HfArgumentParser,
    set_seed,
)

from hf_losses import LossTrainer, UsageError, neutral_loss
from hf_losses.data import TextArguments
from hf_losses.metrics import METRICS, GlueMetric
from hf_losses.models import LoraArguments, find_model, load_text_classifier, usable_length
from hf_losses.options import option
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

    model_name_or_path: str | None = option(None, "Hub name or folder; without one: MiniLM")
    max_length: int = option(128, "tokens after which a text is cut")


@dataclass
class GlueTrainingArguments(RecipeTrainingArguments):
    """Every training argument of transformers, with defaults of this recipe."""

    num_train_epochs: float | None = option(
        None, "without one: 1 to 5, the more the smaller the set"
    )
    warmup_steps: float = option(0.1, "steps, or share of them, with a rising learning rate")
    train_sampling_strategy: str = option("group_by_length", "or random: more padding, slower")


def make_trainer(data, tokenizer, options, args, **model):
    """Tokenizes the data, and returns the trainer of a `model` or a `model_init`."""
    length = usable_length(options.max_length, tokenizer, args)

    def tokenize(batch):
        return tokenizer(*map(batch.get, data.columns), truncation=True, max_length=length)

    def decide(logits, labels):
        logits = logits[0] if isinstance(logits, tuple) else logits
        return logits.argmax(-1) if data.classes else logits.squeeze(-1)

    metric = GlueMetric(data.metric)

    def compute_metrics(evaluation):
        return metric.compute(predictions=evaluation.predictions, references=evaluation.label_ids)

    with args.main_process_first():
        data.splits = data.splits.map(tokenize, batched=True)
    validation = data.sets("validation")
    return LossTrainer(
        **model,
        args=args,
        train_dataset=data.splits["train"],
        eval_dataset=validation if len(validation) > 1 else validation["validation"],
        processing_class=tokenizer,
        preprocess_logits_for_metrics=decide,
        compute_metrics=compute_metrics,
    )


def main(argv=None):
    parser = HfArgumentParser(
        (TextArguments, ModelArguments, GlueTrainingArguments),
        usage="glue.py [--task_name TASK] [--model_name_or_path MODEL] [--loss LOSS] … (--help)",
    )
    try:  # All errors of the user's are found here, before anything is trained or written.
        source, options, args = parse(parser, argv)
        check_loss(args.loss, source.kind, source.name)
        model_name, base_model, path = find_model(options.model_name_or_path)
        with args.main_process_first():
            data = source.load()
        check_loss(args.loss, data.kind, source.name)
        losses = ("cross_entropy", "ece") if data.classes else ("mse",)
        choose_metric(args, METRICS[data.metric] + losses, list(data.sets("validation")))
        if args.num_train_epochs is None:  # As many as see 32,000 rows: one leaves RTE at chance.
            args.num_train_epochs = min(5, max(1, round(32_000 / len(data.splits["train"]))))
        loss = loss_of_arguments(args.loss or neutral_loss(data.kind), args.loss_kwargs)
        output_folder.prepare(args, "glue", source.name, data, model_name, loss, path)
        set_seed(args.seed)  # The new head is random.
        tokenizer, model = load_text_classifier(path, data.classes, options)

        trainer = make_trainer(data, tokenizer, options, args, model=model)
        if args.resume_from_checkpoint:
            trainer.check_same_loss(args.resume_from_checkpoint)
    except UsageError as error:
        parser.error(str(error))

    training, metrics = train_and_save(trainer, parser) if args.do_train else {}, {}
    tests = data.sets("test")
    for name, split in (data.sets("validation") | tests).items():
        output = predict_in_order(trainer, split, name)
        metrics[name] = output.metrics
        if args.do_predict and name in tests and trainer.is_world_process_zero():
            rows = data.indices(name)
            output_folder.write_predictions(args, name, rows, output.predictions, data.classes)
    card = {"language": "en"} if source.task_name else {}
    if args.should_save:
        facts = {"task": source.name, "model": model_name, "base_model": base_model}
        facts |= {
            "pipeline_tag": "text-classification",
            "dataset": output_folder.dataset_facts(data),
        }
        facts |= {"columns": data.columns, "classes": data.classes}
        output_folder.write_result(trainer, metrics, training, METRICS[data.metric], card, **facts)
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    end_run(trainer)


if __name__ == "__main__":
    main()
