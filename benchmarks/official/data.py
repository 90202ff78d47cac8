"""Small random data in the formats that the official scripts read, and stand-ins for the Hub."""

import json
import random
import struct
import wave
from pathlib import Path

import numpy as np
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Features,
    Image,
    List,
    Value,
    disable_progress_bars,
)
from PIL import Image as Picture

WORDS = "the a red green old small cat dog bird house saw liked left found one two".split()
NAMES = ("bird", "cat", "dog")
SIDE = 32  # Of an image.
RATE = 16_000  # Samples of audio in a second.
ROWS = {"train": 12, "validation": 8, "test": 8}

# What the scripts compute with a metric goes into no result here, so one measure stands in for all:
# the share of predictions that equal their reference, under the names that the scripts look for.
METRIC = '''"""Stands in for a metric of the Hub."""

import evaluate
import numpy as np


class StandIn(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=[])

    def compute(self, *, predictions, references, **options):
        """evaluate adds to this text."""
        equal = [np.array_equal(a, b) for a, b in zip(predictions, references)]
        share = float(np.mean(equal))
        return {result}
'''
PER_CLASS = "np.full(options['num_labels'], share)"
RESULTS = {
    "wer": "1 - share",
    "mean_iou": f"{{'per_category_accuracy': {PER_CLASS}, 'per_category_iou': {PER_CLASS}}}",
    "seqeval": "{f'overall_{n}': share for n in ('precision', 'recall', 'f1', 'accuracy')}",
    "sacrebleu": "{'score': share}",
    "rouge": "{'rouge1': share}",
    "squad": "{'exact_match': share, 'f1': share}",
    **{name: f"{{'{name}': share}}" for name in ("accuracy", "f1", "mse", "glue", "xnli")},
}


def write_metrics(home):
    """Puts the metrics where `evaluate.load` of a machine without a network finds them."""
    for name, result in RESULTS.items():
        folder = Path(home, "modules", "evaluate_modules", "metrics", f"evaluate-metric--{name}")
        path = folder / ("0" * 64) / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(METRIC.replace("{result}", result), encoding="utf-8")


def write_data(folder):
    """Writes every data set under `folder`.

    Args:
        folder: An existing folder, which becomes the working directory of the scripts.
    """
    disable_progress_bars()
    rng = random.Random(1)
    folder = Path(folder)
    lines = [sentence(rng) for _ in range(60)]
    Path(folder, "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, row in {
        "classes": lambda: {"label": rng.choice(NAMES), "sentence1": sentence(rng)},
        "numbers": lambda: {"label": rng.gauss(0, 1), "sentence1": sentence(rng)},
        "several": lambda: {"label": rng.sample(NAMES, 2), "sentence1": sentence(rng)},
        "tokens": lambda: tagged(rng),
        "endings": lambda: endings(rng),
        "translation": lambda: {"translation": {"en": sentence(rng), "de": sentence(rng)}},
        "summaries": lambda: {"text": sentence(rng), "summary": sentence(rng)[:10]},
    }.items():
        write_lines(folder / f"{name}.json", [row() for _ in range(ROWS["train"])])
    answers = {"data": [question(rng, number) for number in range(ROWS["train"])]}
    Path(folder, "questions.json").write_text(json.dumps(answers), encoding="utf-8")
    labels = ClassLabel(names=list(NAMES))
    write_dataset(
        folder / "xnli",
        lambda n: {"premise": sentence(rng), "hypothesis": sentence(rng), "label": n % 3},
        Features(premise=Value("string"), hypothesis=Value("string"), label=labels),
        config="en",
    )
    write_images(folder, rng, labels)
    waves = [write_wave(folder / "waves" / f"{number}.wav", rng) for number in range(4)]
    write_dataset(
        folder / "audio",
        lambda n: {"audio": waves[n % 4], "label": n % 3, "text": sentence(rng)},
        Features(audio=Value("string"), label=labels, text=Value("string")),
        audio=Audio(sampling_rate=RATE),
    )


def sentence(rng):
    return " ".join(rng.choices(WORDS, k=rng.randint(5, 9)))


def tagged(rng):
    tokens = sentence(rng).split()
    return {"tokens": tokens, "ner_tags": [rng.choice(["O", "B-X", "I-X"]) for _ in tokens]}


def endings(rng):
    row = {f"ending{number}": sentence(rng) for number in range(4)}
    return row | {"sent1": sentence(rng), "sent2": "the", "label": rng.randrange(4)}


def question(rng, number):
    context = sentence(rng)
    start = context.index(" ") + 1
    answer = {"text": [context[start:]], "answer_start": [start]}
    row = {"id": str(number), "title": "t", "context": context, "question": sentence(rng)}
    return row | {"answers": answer}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_dataset(folder, row, features, config=None, **casts):
    """Writes parquet files that `load_dataset(folder)` reads with their features.

    Args:
        folder: Where.
        row: Function of a row's number.
        features: Of the rows.
        config: Name of the configuration, in a folder of its own; None for a plain folder.
        **casts: Features that columns get in the end: encoding Audio would take torchcodec.
    """
    folder = Path(folder, config or ".")
    for split, size in ROWS.items():
        rows = [row(number) for number in range(size)]
        folder.mkdir(parents=True, exist_ok=True)
        made = Dataset.from_list(rows, features=features)
        for column, feature in casts.items():
            made = made.cast_column(column, feature)
        made.to_parquet(folder / f"{split}.parquet")
    if config:
        files = f"[{{config_name: {config}, data_dir: {config}}}]"
        Path(folder.parent, "README.md").write_text(f"---\nconfigs: {files}\n---\n", "utf-8")


def write_images(folder, rng, labels):
    noise = np.random.default_rng(1)
    pictures = []
    for number in range(6):
        path = folder / "images" / NAMES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(noise.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        pictures.append(str(path))
    captions = [{"image": path, "caption": sentence(rng)} for path in pictures * 2]
    write_lines(folder / "captions.json", captions)

    classes = np.zeros((SIDE, SIDE), np.uint8)
    classes[8:] = 1
    classes[20:, 10:] = 2
    write_dataset(
        folder / "tiny" / "scenes",
        lambda n: {"image": pictures[n % 6], "label": Picture.fromarray(np.roll(classes, n, 1))},
        Features(image=Image(), label=Image()),
    )
    instances = np.stack([classes, classes + 1, 0 * classes], axis=-1)
    ids = {name: number for number, name in enumerate(NAMES)}
    write_dataset(
        folder / "instances",
        lambda n: {
            "image": pictures[n % 6],
            "annotation": Picture.fromarray(instances),
            "semantic_class_to_id": ids,
        },
        Features(
            image=Image(),
            annotation=Image(),
            semantic_class_to_id={name: Value("int64") for name in NAMES},
        ),
    )
    write_dataset(
        folder / "objects",
        lambda n: {
            "image_id": n,
            "image": pictures[n % 6],
            "width": SIDE,
            "height": SIDE,
            "objects": {"id": [n], "area": [400], "bbox": [[4.0, 4, 20, 20]], "category": [n % 3]},
        },
        Features(
            image_id=Value("int64"),
            image=Image(),
            width=Value("int32"),
            height=Value("int32"),
            objects={
                "id": List(Value("int64")),
                "area": List(Value("int64")),
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(labels),
            },
        ),
    )


def write_wave(path, rng):
    path.parent.mkdir(exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        samples = [rng.randint(-9000, 9000) for _ in range(RATE)]
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return str(path)


def cache_folder(home, repo, kind):
    """Where a machine without a network looks for a repository of the Hub.

    Args:
        home: Its `HF_HOME`.
        repo: Name with its owner's.
        kind: "models" or "datasets".

    Returns:
        The folder of the repository's files, made if need be.
    """
    folder = Path(home, "hub", f"{kind}--{repo.replace('/', '--')}")
    files = folder / "snapshots" / "0"
    for path in (files, folder / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0", encoding="utf-8")
    return files
