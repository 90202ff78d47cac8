"""Is bf16 faster than float32 on a CPU, and as accurate? And one thread a run rather than all?

    python results/precision/run.py FOLDER

FOLDER is laid out like nyu-mll/glue. MiniLM learns 2,000 phrases of SST-2 by recipes/glue.py with
cross_entropy, as in results/which_loss/sst2, with 6 seeds in each of four ways: float32 or bf16,
and two runs at a time with one thread each or one after the other with two threads. Two seeds are
trained in all four ways, in turns, before the next two. Writes results.json here when all are
done; interrupted, the same command continues.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scipy.stats import ttest_rel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "precision"
PAIRS = [(1, 2), (3, 4), (5, 6)]
FLAGS = ["--task_name", "sst2", "--max_train_samples", "2000", "--train_val_split", "0.0075"]
FLAGS += ["--num_train_epochs", "3", "--max_length", "64", "--learning_rate", "6.325e-5"]
FLAGS += ["--eval_strategy", "no", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true"]
METRICS = ("accuracy", "cross_entropy")
PRECISIONS = {"float32": [], "bf16": ["--bf16"]}
WAYS = {f"{name}, {n} thread{'s' * (n > 1)}": (name, n) for n in (1, 2) for name in PRECISIONS}


def train(folder: str, output: Path, seed: int, precision: str, threads: int) -> None:
    """Fine-tunes once, in a process of its own."""
    command = [sys.executable, str(ROOT / "recipes" / "glue.py"), "--dataset_name", folder, *FLAGS]
    command += [*PRECISIONS[precision], "--seed", str(seed), "--output_dir", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(output.with_suffix(".log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)


def measure(folder: str, way: str, seeds: tuple[int, int]) -> dict:
    """Trains with two seeds: the wall time of both, and the result of each."""
    precision, threads = WAYS[way]
    block = RUNS / f"{precision}-{threads}-{seeds[0]}-{seeds[1]}"
    found = block / "block.json"
    if not found.exists():
        block.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with ThreadPoolExecutor(2 // threads) as pool:
            jobs = [
                pool.submit(train, folder, block / f"seed-{seed}", seed, precision, threads)
                for seed in seeds
            ]
            for job in jobs:
                job.result()
        wall = time.perf_counter() - begin
        results = [json.loads((block / f"seed-{seed}/result.json").read_text()) for seed in seeds]
        scores = [result["metrics"]["test"] for result in results]
        content = {
            "seconds_per_run": round(wall / len(seeds), 1),
            "accuracy": [score["accuracy"] for score in scores],
            "cross_entropy": [score["cross_entropy"] for score in scores],
            "versions": results[0]["versions"],
            "hardware": results[0]["hardware"],
        }
        found.write_text(json.dumps(content))
        print(way, seeds, content["seconds_per_run"], "s", content["accuracy"], flush=True)
    return json.loads(found.read_text())


def compared(blocks: dict[str, list[dict]], way: str, other: str) -> dict:
    """Time of one way over that of another, and their difference by seed with its 95 % interval."""
    ratios = [
        one["seconds_per_run"] / two["seconds_per_run"]
        for one, two in zip(blocks[way], blocks[other], strict=True)
    ]
    entry: dict = {"time": {"median_ratio": statistics.median(ratios), "ratios": ratios}}
    for metric in METRICS:
        values = [
            [value for block in blocks[name] for value in block[metric]] for name in (way, other)
        ]
        interval = ttest_rel(*values).confidence_interval(0.95)
        mean = statistics.mean(values[0]) - statistics.mean(values[1])
        entry[metric] = {"difference": mean, "interval": [interval.low, interval.high]}
    return entry


def main() -> None:
    """Measures all ways in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="laid out like nyu-mll/glue")
    folder = str(Path(parser.parse_args().folder).resolve())
    blocks: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number, seeds in enumerate(PAIRS):
        for way in list(WAYS)[:: (1, -1)[number % 2]]:
            blocks[way].append(measure(folder, way, seeds))
    pairs = [
        ("bf16, 1 thread", "float32, 1 thread"),
        ("bf16, 2 threads", "float32, 2 threads"),
        ("bf16, 1 thread", "bf16, 2 threads"),
        ("float32, 1 thread", "float32, 2 threads"),
    ]
    result = {
        "flags": FLAGS,
        "seeds": [seed for seeds in PAIRS for seed in seeds],
        "ways": {
            way: {"seconds_per_run": [block["seconds_per_run"] for block in found]}
            | {key: [v for block in found for v in block[key]] for key in METRICS}
            for way, found in blocks.items()
        },
        "comparisons": {f"{way} / {other}": compared(blocks, way, other) for way, other in pairs},
        "versions": blocks["bf16, 1 thread"][0]["versions"],
        "hardware": blocks["bf16, 1 thread"][0]["hardware"],
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
