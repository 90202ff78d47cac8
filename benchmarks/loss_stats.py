"""What `loss_stats_steps` takes of a training step.

    python benchmarks/loss_stats.py results/benchmarks/loss_stats.json

Trains a BERT of MiniLM's size on two classes, and a small causal language model with a vocabulary
of 32,000, without the figures (twice, which shows the noise), with those of every tenth step, and
with those of every step. These take turns every ten steps of one training, so that other work on
the machine hits all alike. The collection alone is timed beside it.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from hf_losses import LossTrainer, LossTrainingArguments
from hf_losses.models.heads import shift_left
from hf_losses.training.loss.items import Items
from hf_losses.training.reports.item_stats import LossStats

LOSS = "strict_l"
BLOCK, ROUNDS, REPEATS = 10, 8, 30
EVERY = {"off": 0, "off_again": 0, "every_10": 10, "every_1": 1}
BATCH, LENGTH = 8, 64


class Turns(TrainerCallback):
    """Changes the setting every ten steps, and times them."""

    def __init__(self):
        self.seconds = {name: [] for name in EVERY}
        self.name = None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % BLOCK:
            return
        now = time.perf_counter()
        if self.name is not None:
            self.seconds[self.name].append(now - self.begun)
        # The first block warms up; then each setting is first, second, … in its turn.
        block = state.global_step // BLOCK - 1
        self.name = [*EVERY][(block + block // len(EVERY)) % len(EVERY)] if block >= 0 else None
        args.loss_stats_steps = EVERY[self.name] if self.name else 1
        self.begun = time.perf_counter()


def bert():
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=1536))


def causal_lm():
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=1024, vocab_size=32_000))


def rows(classes):
    ids = torch.randint(1, 30_000, (256, LENGTH))
    labels = torch.randint(0, classes, (256,)) if classes else ids
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def train(model, data, folder):
    turns = Turns()
    trainer = LossTrainer(
        model=model,
        args=LossTrainingArguments(
            output_dir=folder,
            loss=LOSS,
            per_device_train_batch_size=BATCH,
            # One step more: its begin ends the last block.
            max_steps=BLOCK * (1 + ROUNDS * len(EVERY)) + 1,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        callbacks=[turns],
    )
    trainer.train()
    return trainer, turns.seconds


def collection(trainer, data):
    """Microseconds for the figures of one step, from its logits to the numbers of the log."""
    inputs = torch.stack([row["input_ids"] for row in data[:BATCH]])
    labels = torch.stack([row["labels"] for row in data[:BATCH]])
    labels = shift_left(labels) if labels.dim() == 2 else labels
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=inputs).logits
    seconds = []
    for _ in range(REPEATS):
        stats, start = LossStats(), time.perf_counter()
        stats.add(trainer.criterion, Items(logits, labels, None))
        stats.take(trainer.criterion, trainer.accelerator)
        seconds.append(time.perf_counter() - start)
    return {
        "logits": list(logits.shape),
        "median": round(1e6 * statistics.median(seconds)),
        "minimum": round(1e6 * min(seconds)),
    }


def main(path):
    logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    set_seed(0)
    load, by_model = os.getloadavg()[0], {}
    for name, build, classes in (("bert", bert, 2), ("causal_lm", causal_lm, 0)):
        data = rows(classes)
        with tempfile.TemporaryDirectory() as folder:
            trainer, seconds = train(build(), data, folder)
        ratios = {
            setting: [a / b for a, b in zip(times, seconds["off"], strict=True)]
            for setting, times in seconds.items()
            if setting != "off"
        }
        off = statistics.median(seconds["off"] + seconds["off_again"]) / BLOCK
        alone = collection(trainer, data)
        share = alone["median"] / 1e6 / off
        by_model[name] = {
            "parameters": trainer.model.num_parameters(),
            "seconds_per_step_off": round(off, 4),
            "ratio_over_off": {
                setting: {
                    "median": round(statistics.median(values), 4),
                    "quartiles": [round(q, 4) for q in statistics.quantiles(values, n=4)[::2]],
                }
                for setting, values in ratios.items()
            },
            "collection_alone_microseconds": alone,
            "collection_alone_of_a_step": {
                "every_10": round(share / 10, 5),
                "every_1": round(share, 5),
            },
            "seconds_per_block": {s: [round(t, 3) for t in times] for s, times in seconds.items()},
        }
        print(name, json.dumps({k: v for k, v in by_model[name].items() if "block" not in k}))
    result = {
        "what": f"loss {LOSS}, batch {BATCH} × {LENGTH} tokens, {BLOCK} steps a block, settings "
        f"in turns, {ROUNDS} rounds; off_again is off once more: its ratio is the noise",
        "noise": "the machine had other work to do; load average at the start "
        f"{load:.1f} on {os.cpu_count()} processors",
        **by_model,
        "cpu_count": os.cpu_count(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    Path(path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
