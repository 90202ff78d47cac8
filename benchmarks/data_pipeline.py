"""How much of a training step recipes/image_classification.py spends waiting for images.

    python benchmarks/data_pipeline.py results/benchmarks/data_pipeline.json

Trains ViT-tiny at 224 × 224 on JPEG files (500 × 375, from scikit-learn's two photographs), once
through the recipe's pipeline (decoding, random crop, mirroring, normalising in the data loader's
processes) and once on the same number of tensors in memory, in turns.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from sklearn.datasets import load_sample_images
from transformers import (
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

from hf_losses import LossTrainer, LossTrainingArguments
from hf_losses.data.images.dataset import ImageArguments
from hf_losses.data.images.inputs import (
    AUGMENTATIONS,
    AugmentationArguments,
    ModelInputs,
    training_inputs,
)

BATCH, STEPS, WARM, ROUNDS = 16, 20, 4, 5
CLASSES = 2


class Times(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.perf_counter())


def write_photos(folder, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = load_sample_images().images[i % CLASSES]
        top, left = rng.integers(427 - 375 + 1), rng.integers(640 - 500 + 1)
        path = folder / str(i % CLASSES) / f"{i:04}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        part = pixels[top : top + 375, left : left + 500]
        PIL.Image.fromarray(part).save(path, quality=90)


def seconds_per_step(model, inputs, folder, workers):
    times = Times()
    LossTrainer(
        model=model,
        args=LossTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS + WARM,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            dataloader_num_workers=workers,
            dataloader_pin_memory=False,
        ),
        train_dataset=inputs,
        loss="liberal_exp",
        callbacks=[times],
    ).train()
    return (times.ends[-1] - times.ends[WARM - 1]) / STEPS


def main(path):
    logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count())
    set_seed(0)
    settings = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
    model = ViTForImageClassification(
        ViTConfig(**settings, intermediate_size=768, num_labels=CLASSES)
    )
    workers = min(os.cpu_count(), 8)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "photos", BATCH * (STEPS + WARM))
        data = ImageArguments(train_dir=f"{folder}/photos", train_val_split=0).load()
        processor = ViTImageProcessor()
        kinds = {
            name: training_inputs(data, processor, AugmentationArguments(augmentation=name), 0)
            for name in AUGMENTATIONS
            if name in ("crop_flip", "randaugment")
        }
        plain = ModelInputs(data.splits["train"], processor)
        cached = [plain[i] for i in range(len(plain))]
        seconds = {name: [] for name in ("cached", *kinds)}
        for round_ in range(ROUNDS):
            seconds["cached"].append(seconds_per_step(model, cached, folder, 0))
            for name, inputs in kinds.items():
                seconds[name].append(seconds_per_step(model, inputs, folder, workers))
            print(round_ + 1, {name: round(times[-1], 3) for name, times in seconds.items()})
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        "what": f"ViT-tiny, 224 × 224, batch {BATCH}, {STEPS} steps a measurement, {ROUNDS} rounds",
        "seconds_per_step": {name: [round(t, 4) for t in times] for name, times in seconds.items()},
        "median": {name: round(value, 4) for name, value in medians.items()},
        "speed_relative_to_cached": {
            name: round(medians["cached"] / value, 4) for name, value in medians.items()
        },
        "loading_processes": workers,
        "cpu_count": os.cpu_count(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    Path(path).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result["speed_relative_to_cached"]))


if __name__ == "__main__":
    main(sys.argv[1])
