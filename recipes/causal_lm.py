"""Fine-tunes a causal language model on prompts with completions or on chats, with any loss.

accelerate launch recipes/causal_lm.py --loss liberal_exp
accelerate launch recipes/causal_lm.py --loss strict_l --train_file chats.jsonl --lora \
    --model_name_or_path Qwen/Qwen3-0.6B
accelerate launch recipes/causal_lm.py --loss liberal_exp --dataset_name trl-lib/Capybara \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    set_seed,
)

from hf_losses import IGNORE_INDEX, LossTrainer, UsageError, models
from hf_losses.data import SENTIMENTS, ChatArguments
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

METRICS = ("token_accuracy", "exact_match", "perplexity")  # Models are chosen by the first.


@dataclass
class ModelArguments(models.LoraArguments):
    """The model and its adapter."""

    model_name_or_path: str | None = option(
        None, "Hub name or folder; without one: a small Llama from scratch"
    )
    max_length: int = option(512, "tokens; of a longer row the beginning of the prompt is cut off")
    max_new_tokens: int = option(64, "tokens to generate at most, with --do_predict")


@dataclass
class CausalTrainingArguments(RecipeTrainingArguments):
    """Every training argument of transformers, with defaults of this recipe."""

    learning_rate: float | None = option(None, "without one: 5e-5, from scratch 1e-3")
    num_train_epochs: float | None = option(None, "without one: 1, from scratch 2")


def load_tokenizer(path):
    if path is None:
        return models.small_tokenizer()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    # Any ValueError: transformers has no class of its own for a tokenizer that it does not know or
    # cannot convert.
    except (OSError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise UsageError(f"cannot load the tokenizer of {path!r}: {text}") from error
    if tokenizer.eos_token is None:
        raise UsageError(f"the tokenizer of {path!r} has no EOS token, which ends a completion")
    models.fit_tokenizer(tokenizer, models.outline(path), path)
    return tokenizer


def load_model(path, options, tokenizer):
    if path is None:
        if options.lora:
            raise UsageError("--lora needs a pretrained model: --model_name_or_path")
        return models.small_model(tokenizer)
    with models.loading(path, "AutoModelForCausalLM"):
        model, loading_info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype="float32",  # Half precision is what --bf16 is for: it keeps float32 weights.
            output_loading_info=True,
        )

    model.config.pad_token_id = tokenizer.pad_token_id
    return models.add_adapter(model, options, loading_info, "CAUSAL_LM") if options.lora else model


def reduce_logits(logits, labels):
    """The likeliest next tokens and the labels' cross-entropy: evaluation keeps no N x C logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    logits, labels = logits[:, :-1], labels[:, 1:]
    # Row by row, so that logits in half precision are not copied to float32 as a whole.
    losses = [
        cross_entropy(row.float(), row_labels, ignore_index=IGNORE_INDEX, reduction="none")
        for row, row_labels in zip(logits, labels, strict=True)
    ]
    return logits.argmax(-1), torch.stack(losses)


def compute_metrics(evaluation):
    (tokens, losses), labels = evaluation.predictions, evaluation.label_ids[:, 1:]
    learned = labels != IGNORE_INDEX
    correct = tokens == labels
    with np.errstate(over="ignore"):  # A hopeless model's perplexity is infinite.
        perplexity = np.exp(losses[learned].mean(dtype=np.float64))
    return {
        "token_accuracy": float(correct[learned].mean()),
        "exact_match": float((correct | ~learned).all(-1).mean()),
        "perplexity": float(perplexity),
    }


def main(argv=None):
    parser = HfArgumentParser(
        (ChatArguments, ModelArguments, CausalTrainingArguments),
        usage="causal_lm.py [--train_file FILE] [--model_name_or_path MODEL] [--loss LOSS] … "
        "(--help)",
    )
    try:  # All errors of the user's are found here, before anything is trained or written.
        source, options, args = parse(parser, argv)
        check_loss(args.loss, "classification", source.name)
        loss = loss_of_arguments(args.loss or "cross_entropy", args.loss_kwargs)
        path = options.model_name_or_path
        base_model, model_name = path, path or "small Llama from scratch"
        if path and Path(path).is_dir():
            base_model, model_name = None, Path(path).resolve().name
        if args.learning_rate is None:
            args.learning_rate = 5e-5 if path else 1e-3
        if args.num_train_epochs is None:
            args.num_train_epochs = 1 if path else 2
        choose_metric(args, (*METRICS, "cross_entropy"))
        with args.main_process_first():
            data = source.load()
            tokenizer = load_tokenizer(path)
            length = models.usable_length(options.max_length, tokenizer, args)
            if args.do_predict and not 0 < options.max_new_tokens < length:
                raise UsageError(f"--max_new_tokens must be above 0 and below {length} tokens")
            sets = data.encode(tokenizer, length)
            tests = data.sets("test") if args.do_predict else {}
            room = length - options.max_new_tokens
            prompts = {name: data.prompts(name, tokenizer, room) for name in tests}
        if "validation" not in sets:
            if args.load_best_model_at_end:
                raise UsageError("--load_best_model_at_end needs a validation set")
            args.eval_strategy = "no"
        output_folder.prepare(
            args, "causal_lm", source.name, data, model_name, loss, path, data.target
        )
        if args.process_index == 0:
            print(*data.too_long(length), sep="", end="", flush=True)
        set_seed(args.seed)  # New weights, from scratch or of an adapter, are random.
        padded = copy.copy(tokenizer)
        padded.padding_side = "right"  # On the left, absolute positions would count the padding.
        trainer = LossTrainer(
            model=load_model(path, options, tokenizer),
            args=args,
            train_dataset=sets["train"],
            eval_dataset=sets.get("validation"),
            data_collator=DataCollatorForSeq2Seq(padded, label_pad_token_id=IGNORE_INDEX),
            processing_class=tokenizer,
            preprocess_logits_for_metrics=reduce_logits,
            compute_metrics=compute_metrics,
        )
        if args.resume_from_checkpoint:
            trainer.check_same_loss(args.resume_from_checkpoint)
    except UsageError as error:
        parser.error(str(error))

    training, metrics = train_and_save(trainer, parser) if args.do_train else {}, {}
    for name in [name for name in sets if name != "train"]:
        metrics[name] = predict_in_order(trainer, sets[name], name).metrics
    for name, test_prompts in prompts.items():
        texts = models.generate(trainer, tokenizer, test_prompts, options.max_new_tokens)
        if trainer.is_world_process_zero():
            output_folder.write_predictions(args, name, data.indices(name), texts, None)
    card = {"language": "en"} if source.name == SENTIMENTS else {}
    if args.should_save:
        facts = {"task": source.name, "model": model_name, "base_model": base_model}
        facts |= {"pipeline_tag": "text-generation", "dataset": output_folder.dataset_facts(data)}
        facts |= {"from_scratch": path is None, "left_out": data.left_out, "cut": data.cut}
        output_folder.write_result(trainer, metrics, training, METRICS, card, **facts)
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    end_run(trainer)


if __name__ == "__main__":
    main()
