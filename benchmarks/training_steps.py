"""Whole training steps, stock and with another loss: peers for `losses.py`."""

import tempfile
from dataclasses import dataclass

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from hf_losses import LossMixin, LossTrainer, LossTrainingArguments

logging.set_verbosity_error()


def small_llama(words):
    return LlamaConfig(
        vocab_size=words,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=512,
    )


def of_causal_lm(words):
    """A whole training step of a small causal language model, through the trainers."""
    config = small_llama(words)
    torch.manual_seed(0)
    ids = torch.randint(0, words, (8, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    count = torch.tensor(8 * 127)
    folder = tempfile.mkdtemp()

    def step(cls, arguments, **settings):
        model = LlamaForCausalLM(config).train()
        args = arguments(output_dir=folder, use_cpu=True, report_to=[], **settings)
        trainer = cls(model=model, args=args)

        def run():
            model.zero_grad(set_to_none=True)
            trainer.compute_loss(model, dict(batch), num_items_in_batch=count).backward()

        return run

    return {
        "built-in loss": step(Trainer, TrainingArguments),
        "liberal_exp": step(LossTrainer, LossTrainingArguments, loss="liberal_exp"),
        "liberal_exp, fused_linear": step(
            LossTrainer, LossTrainingArguments, loss="liberal_exp", fused_linear=True
        ),
    }


def of_sft(config, batch=8, length=128, device="cpu", dtype=torch.float32):
    """A step of that model through TRL's SFTTrainer: its own DFT, and the loss `dft`."""
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class LossSFTTrainer(LossMixin, trl.SFTTrainer):
        pass

    Config = dataclass(type("Config", (trl.SFTConfig, LossTrainingArguments), {}))
    vocabulary = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")),
        eos_token="w1",
        pad_token="w2",
    )
    torch.manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (batch, length))
    rows = Dataset.from_dict({"input_ids": ids.tolist()})
    ids = ids.to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    count = torch.tensor(batch * (length - 1), device=device)
    common = {"output_dir": tempfile.mkdtemp(), "bf16": False, "report_to": []}
    common["use_cpu"] = device == "cpu"

    def step(cls, **settings):
        model = LlamaForCausalLM(config).to(device, dtype).train()
        args = Config(**common, **settings)
        trainer = cls(model, args, train_dataset=rows, processing_class=tokenizer)

        def run():
            model.zero_grad(set_to_none=True)
            trainer.compute_loss(model, dict(inputs), num_items_in_batch=count).backward()

        return run

    return {
        "SFTTrainer, loss_type='dft'": step(trl.SFTTrainer, loss_type="dft"),
        "SFTTrainer, loss_type='nll'": step(trl.SFTTrainer),
        "LossMixin, dft": step(LossSFTTrainer, loss="dft"),
        "LossMixin, dft, fused_linear": step(LossSFTTrainer, loss="dft", fused_linear=True),
    }


def of_trainers(name):
    """Ten optimizer steps of a whole training, stock and with another loss."""
    torch.manual_seed(0)
    ids, classes = torch.randint(0, 1000, (32, 32)), torch.randint(0, 2, (32,))
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, classes, strict=True)]
    if name == "vit-tiny":
        model = ViTForImageClassification(
            ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=64)
        )
        pixels = torch.randn(32, 3, 64, 64)
        rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, classes, strict=True)]
    else:
        width, layers = {"bert-tiny": (128, 2), "bert-minilm": (384, 6)}[name]
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=1000,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=width // 32,
                intermediate_size=4 * width,
            )
        )
    return trainings(model, rows, use_cpu=True, dataloader_pin_memory=False)


def trainings(model, rows, *, more=None, steps=10, batch=32, **common):
    """Whole trainings of so many steps, stock and with other losses.

    `more` are further settings of `LossTrainer` by the name of the peer.
    """
    ours = {
        "LossTrainer, liberal_exp": {"loss": "liberal_exp"},
        "LossTrainer, strict_l_full": {"loss": "strict_l_full"},
    }
    folder = tempfile.mkdtemp()

    def training(cls, arguments, **settings):
        args = arguments(
            output_dir=folder,
            report_to=[],
            disable_tqdm=True,
            max_steps=steps,
            per_device_train_batch_size=batch,
            save_strategy="no",
            logging_strategy="no",
            **(common | settings),
        )
        args._n_gpu = min(1, args.n_gpu)  # Several would be DataParallel.
        return lambda: cls(model=model, args=args, train_dataset=rows).train()

    return {
        "Trainer": training(Trainer, TrainingArguments),
        "Trainer again": training(Trainer, TrainingArguments),
    } | {
        name: training(LossTrainer, LossTrainingArguments, **settings)
        for name, settings in (ours | (more or {})).items()
    }


def peers_of(case):
    if case == "causal-lm-step":
        return of_causal_lm(32000)
    return of_sft(small_llama(32000)) if case == "sft-step" else of_trainers(case)
