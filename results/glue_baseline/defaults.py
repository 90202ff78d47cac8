"""Would another batch size, or no warm-up, be a better default of recipes/glue.py?

    python results/glue_baseline/defaults.py FOLDER

FOLDER is laid out like nyu-mll/glue. CoLA, with the learning rate of results.json, on the tenth of
the training set that is held out, with three seeds: by the defaults, with batches of 16, and
without a warm-up. Two runs go on at a time, with one thread each. Writes defaults.json when all are
done; interrupted, the same command continues.
"""

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import HERE, METRICS, train
from scipy.stats import ttest_rel

TASK = "cola"
SEEDS = (1, 2, 3)
SETTINGS = {
    "batches of 32, a warm-up over a tenth": (),
    "batches of 16": ("--per_device_train_batch_size", "16"),
    "no warm-up": ("--warmup_steps", "0"),
}


def main() -> None:
    """Measures every setting, and its difference to the first, by seed, with a 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="laid out like nyu-mll/glue")
    folder = str(Path(parser.parse_args().folder).resolve())
    stored = json.loads((HERE / "results.json").read_text(encoding="utf-8"))[TASK]
    rate, metric = str(stored["learning_rate"]), METRICS[TASK][0]

    def score(setting: str, seed: int) -> tuple[float, dict]:
        name = f"{setting.replace(' ', '_')}-seed-{seed}"
        held_out = ("--train_val_split", "0.1", "--seed", str(seed), "--learning_rate", rate)
        result = train(TASK, name, folder, *held_out, *SETTINGS[setting])
        return result["metrics"]["validation"][metric], result

    with ThreadPoolExecutor(2) as pool:
        # Seed by seed, so that all settings share what else goes on on the machine.
        jobs = {(s, seed): pool.submit(score, s, seed) for seed in SEEDS for s in SETTINGS}
        found = {key: job.result() for key, job in jobs.items()}
    first = next(iter(SETTINGS))
    content: dict = {"task": TASK, "metric": metric, "learning_rate": float(rate), "settings": {}}
    for setting, flags in SETTINGS.items():
        scores = [found[setting, seed][0] for seed in SEEDS]
        entry: dict = {"flags": flags, "scores": scores}
        if setting != first:
            base = [found[first, seed][0] for seed in SEEDS]
            interval = ttest_rel(scores, base).confidence_interval(0.95)
            entry["difference"] = statistics.mean(scores) - statistics.mean(base)
            entry["interval"] = [interval.low, interval.high]
        content["settings"][setting] = entry
    last = found[first, SEEDS[-1]][1]
    content |= {"versions": last["versions"], "hardware": last["hardware"]}
    (HERE / "defaults.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
