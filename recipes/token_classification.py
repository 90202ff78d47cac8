"""Fine-tunes a pretrained model to tag words, such as names, with the loss of your choice.

accelerate launch recipes/token_classification.py --loss liberal_exp
accelerate launch recipes/token_classification.py --loss strict_l --dataset_name lhoestq/conll2003 \
    --model_name_or_path bert-base-cased --num_train_epochs 3
accelerate launch recipes/token_classification.py --loss strict_m --train_file train.conll \
    --validation_file dev.conll --lora
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    set_seed,
)

from hf_losses import IGNORE_INDEX, LossTrainer, UsageError
from hf_losses.data import CAPITALS, TokenArguments, join_windows, make_windows, write_conll
from hf_losses.metrics import ENTITY_METRICS, METRICS, EntityMetric, GlueMetric
from hf_losses.models import (
    LoraArguments,
    add_adapter,
    find_model,
    fit_tokenizer,
    loading,
    order_head,
    usable_length,
)
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
    max_length: int = option(128, "sub-tokens after which a sentence goes on in another window")


@dataclass
class TokenTrainingArguments(RecipeTrainingArguments):
    """Every training argument of transformers, with defaults of this recipe."""

    num_train_epochs: float = option(1.0, "passes over the training set")
    train_sampling_strategy: str = option("group_by_length", "or random: more padding, slower")


def load_model(path, options, data):
    with loading(path, "AutoModelForTokenClassification"):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, loading_info = AutoModelForTokenClassification.from_pretrained(
            path,
            num_labels=len(data.classes),
            id2label=dict(enumerate(data.classes)),
            label2id={label: i for i, label in enumerate(data.classes)},
            dtype="float32",  # Half precision is what --bf16 is for: it keeps float32 weights.
            ignore_mismatched_sizes=True,  # A head for other tags is replaced, and reported.
            output_loading_info=True,
        )

    tokenizer.padding_side = "right"  # Positions in a window are positions in its batch.
    fit_tokenizer(tokenizer, model, path)
    order_head(model, path, data.classes)
    if options.lora:
        model = add_adapter(model, options, loading_info, "TOKEN_CLS")
    return tokenizer, model


def make_metrics(data):
    """A function for the metrics, and their names; models are chosen by the first."""
    metric = EntityMetric() if data.entities else GlueMetric("classification")
    names = np.array(data.classes)

    def compute_metrics(evaluation):
        predictions, labels = evaluation.predictions, evaluation.label_ids
        words = labels != IGNORE_INDEX
        if not data.entities:
            return metric.compute(predictions=predictions[words], references=labels[words])
        tags = [
            [names[row[mask]].tolist() for row, mask in zip(ids, words, strict=True)]
            for ids in (predictions, labels)
        ]
        return metric.compute(predictions=tags[0], references=tags[1])

    return compute_metrics, ENTITY_METRICS if data.entities else METRICS["classification"]


def decide(logits, labels):
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.argmax(-1)


def main(argv=None):
    parser = HfArgumentParser(
        (TokenArguments, ModelArguments, TokenTrainingArguments),
        usage="token_classification.py [--dataset_name NAME] [--model_name_or_path MODEL] "
        "[--loss LOSS] … (--help)",
    )
    try:  # All errors of the user's are found here, before anything is trained or written.
        source, options, args = parse(parser, argv)
        check_loss(args.loss, "classification", source.name)
        model_name, base_model, path = find_model(options.model_name_or_path)
        with args.main_process_first():
            data = source.load()
        compute_metrics, order = make_metrics(data)
        choose_metric(args, (*order, "cross_entropy"))
        loss = loss_of_arguments(args.loss or "cross_entropy", args.loss_kwargs)
        output_folder.prepare(
            args, "token_classification", source.name, data, model_name, loss, path
        )
        set_seed(args.seed)  # The new head is random.
        tokenizer, model = load_model(path, options, data)
        length = usable_length(options.max_length, tokenizer, args)
        with args.main_process_first():
            windows = {
                name: make_windows(split, tokenizer, length) for name, split in data.splits.items()
            }
        trainer = LossTrainer(
            model=model,
            args=args,
            train_dataset=windows["train"],
            eval_dataset=windows["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            preprocess_logits_for_metrics=decide,
            compute_metrics=compute_metrics,
        )
        if args.resume_from_checkpoint:
            trainer.check_same_loss(args.resume_from_checkpoint)
    except UsageError as error:
        parser.error(str(error))

    for name, split in data.splits.items():
        if len(windows[name]) > len(split) and trainer.is_world_process_zero():
            print(
                f"Long    {len(split):,} {name} sentences are read in {len(windows[name]):,} "
                "windows that overlap: no word is lost, but an entity across two counts as two   "
                "[--max_length]"
            )
    training, metrics = train_and_save(trainer, parser) if args.do_train else {}, {}
    tests = data.sets("test")
    for name, split in (data.sets("validation") | tests).items():
        output = predict_in_order(trainer, windows[name], name)
        metrics[name] = output.metrics
        if args.do_predict and name in tests and trainer.is_world_process_zero():
            ids = join_windows(windows[name], output.predictions, [*map(len, split["tokens"])])
            tags = [[data.classes[i] for i in sentence] for sentence in ids]
            path = Path(args.output_dir) / f"predictions_{name}.tsv"
            write_conll(path, split["tokens"], tags)
    card = {"language": "en"} if source.dataset_name == CAPITALS else {}
    if args.should_save:
        facts = {"task": source.name, "model": model_name, "base_model": base_model}
        facts |= {
            "pipeline_tag": "token-classification",
            "dataset": output_folder.dataset_facts(data),
        }
        facts |= {"classes": data.classes}
        output_folder.write_result(trainer, metrics, training, order, card, **facts)
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    end_run(trainer)


if __name__ == "__main__":
    main()
