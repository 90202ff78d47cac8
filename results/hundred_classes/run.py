"""A hundred classes from a cold start: `liberal_parabolic` without and with a loss warm-up.

    python results/hundred_classes/run.py

A small ViT on a hundred separable classes, 300 steps of SGD, five seeds each; accuracy on the
training set, for the question is whether anything is learned at all. Writes results.json here.
"""

import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, set_seed

from hf_losses import LossTrainer, LossTrainingArguments

SEEDS = range(1, 6)
SETTINGS = {
    "cross_entropy": {"loss": "cross_entropy"},
    "liberal_parabolic": {"loss": "liberal_parabolic"},
    "liberal_parabolic --loss_warmup_ratio 0.5": {
        "loss": "liberal_parabolic",
        "loss_warmup_ratio": 0.5,
    },
}


def accuracy(seed, **settings):
    set_seed(seed)
    centres = torch.randn(100, 3, 8, 8)
    rows = [
        {"pixel_values": centres[i % 100] + 0.3 * torch.randn(3, 8, 8), "labels": i % 100}
        for i in range(800)
    ]
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=8,
            patch_size=4,
            num_labels=100,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        args = LossTrainingArguments(
            output_dir=folder,
            seed=seed,
            max_steps=300,
            optim="sgd",
            learning_rate=0.1,
            per_device_train_batch_size=64,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **settings,
        )
        trainer = LossTrainer(model, args, train_dataset=rows)
        trainer.train()
        found = trainer.predict(rows)
    return float((found.predictions.argmax(-1) == found.label_ids).mean())


def main():
    found = {}
    for name, settings in SETTINGS.items():
        values = [accuracy(seed, **settings) for seed in SEEDS]
        found[name] = {
            "accuracy": {str(seed): v for seed, v in zip(SEEDS, values, strict=True)},
            "mean": round(statistics.mean(values), 4),
            "sd": round(statistics.stdev(values), 4),
        }
        print(name, found[name]["mean"])
    result = {
        "losses": found,
        "cpu_count": os.cpu_count(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
