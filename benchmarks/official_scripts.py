"""Which of transformers' official training scripts run unmodified with another loss.

    python benchmarks/official_scripts.py FOLDER [--only PART …]

FOLDER is `examples/pytorch` of a public copy of transformers at 5.0.0. Its scripts are run as they
are: once by Python and once by `hf-losses run`, two steps on tiny random models and small random
data, which this command makes itself; without a network, so that stand-ins take the place of
what the Hub would serve (the metrics, one file of label names). With `--only`, the runs whose
"script (model)" holds one of the parts are done again, and the others stay as they are in
results/official/scripts.json.

Beside the project's own packages the scripts need these:

    pip install --no-deps torchvision torchcodec torchmetrics lightning-utilities pycocotools nltk \
        albumentations==2.0.8 albucore==0.0.24 opencv-python-headless stringzilla simsimd

torchcodec also needs FFmpeg's libraries, and be built for the same device as torch. Some scripts do
not start with the installed transformers, whatever the loss: official/site/sitecustomize.py repairs
that from outside, for both runs, and the results name it.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from official.cases import CASES, TRAIN
from official.data import NAMES, cache_folder, write_data, write_metrics
from official.models import write_model
from official.offline import environment, repair_torchvision, write_results
from official.site import sitecustomize

TARGET = Path(__file__).parent.parent / "results" / "official" / "scripts.json"
PACKAGES = ("transformers", "torch", "accelerate", "datasets", "evaluate")
SECONDS = 600


def prepare(folder):
    """Makes the scripts' working directory and what they find in the place of the Hub.

    Args:
        folder: An empty folder.
    """
    home = folder / "home"
    write_data(folder)
    write_metrics(home)
    names = cache_folder(home, "tiny/scenes", "datasets") / "id2label.json"
    names.write_text(json.dumps(dict(enumerate(NAMES))), encoding="utf-8")
    (folder / "nltk_data" / "tokenizers" / "punkt").mkdir(parents=True)


def run(case, scripts, folder, repairs, *, swapped):
    """One run of a script.

    Args:
        case: What to run.
        scripts: Folder of the examples.
        folder: Working directory, of `prepare`.
        repairs: What every script needs, of `repair_torchvision`.
        swapped: Whether by `hf-losses run`; else as it is.

    Returns:
        Dict of "outcome" ("runs", "refused" or "fails") and either "why", the line that it ended
        with, or what "eval" and "saved" name of the loss.
    """
    output = folder / "output" / Path(tempfile.mkdtemp(dir=folder)).name
    command = [sys.executable]
    if swapped:
        command += ["-m", "hf_losses", "run", "--loss", case.loss]
    command += [str(scripts / case.script), *TRAIN.split(), *case.arguments.split()]
    command += ["--model_name_or_path", write_model(folder / "home", case.model)]
    command += ["--output_dir", str(output)]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(folder, [*repairs, *case.repairs]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "fails", "why": f"still running after {SECONDS} seconds"}
    if done.returncode:
        last = ended_with(done.stderr, (scripts, folder))
        told = "hf-losses run: error: "
        if last.startswith(told):
            return {"outcome": "refused", "why": last.removeprefix(told)}
        print(done.stderr[done.stderr.rfind("Traceback") :], file=sys.stderr)
        return {"outcome": "fails", "why": last}
    return {"outcome": "runs"} | (named(output) if swapped else {})


def ended_with(text, private):
    """The last line of an output, without folders of this machine."""
    for path in map(str, private):
        text = text.replace(f"{path}{os.sep}", "")
    text = re.sub(r"\S*/site-packages/", "", text)
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def named(output):
    """What a finished run says of its loss: saved model, last checkpoint, evaluation."""
    names = {"saved": [], "eval": []}
    for name in ("", "checkpoint-2"):
        record = output / name / "hf_losses.json"
        config = json.loads((output / name / "config.json").read_text(encoding="utf-8"))
        if record.exists() and json.loads(record.read_text(encoding="utf-8"))["name"]:
            names["saved"].append(f"{name}/hf_losses.json".lstrip("/"))
        if config.get("hf_losses"):
            names["saved"].append(f"{name}/config.json".lstrip("/"))
    results = output / "eval_results.json"
    if results.exists():
        measured = json.loads(results.read_text(encoding="utf-8"))
        baselines = ("eval_loss", "eval_cross_entropy", "eval_mse")
        names["eval"] = [name for name in baselines if name in measured]
    return names


def complaint(case, stock, ours):
    """What is not as it must be, in a few words; empty if all is."""
    refused = ours["outcome"] == "refused"
    if stock["outcome"] != "runs":
        return "" if case.special_loss and refused else "does not run by itself"
    if case.special_loss:
        return "" if refused else "is not refused in one line"
    if ours["outcome"] != "runs":
        return "does not run with another loss"
    missing = [] if len(ours["saved"]) == 4 else ["what is saved does not name the loss"]
    if case.reports not in {"", *ours["eval"]}:
        missing.append(f"evaluation lacks {case.reports}")
    return "; ".join(missing)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="examples/pytorch of a copy of transformers")
    parser.add_argument("--only", nargs="+", metavar="PART", help="of 'script (model)'")
    parser.add_argument("--output", type=Path, default=TARGET, help="file of the results")
    options = parser.parse_args(argv)
    options.folder = options.folder.resolve()
    missing = sorted({c.script for c in CASES if not (options.folder / c.script).is_file()})
    if missing:
        parser.error(f"{options.folder} lacks {', '.join(missing)}; give examples/pytorch")
    before = {}
    if options.only and options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))["runs"]
        before = {(run["script"], run["model"]): run for run in earlier}
    repairs = repair_torchvision()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        prepare(folder)
        for case in CASES:
            title = f"{case.script} ({case.title})"
            if options.only and not any(part in title for part in options.only):
                if (case.script, case.title) in before:
                    runs.append(before[case.script, case.title])
                continue
            stock, ours = (
                run(case, options.folder, folder, repairs, swapped=swapped)
                for swapped in (False, True)
            )
            wrong = complaint(case, stock, ours)
            print(f"{title}: {wrong or ours['outcome']}", flush=True)
            row = {"script": case.script, "model": case.title, "loss": case.loss}
            row["own"] = case.special_loss
            row["repairs"] = [getattr(sitecustomize, name).__doc__ for name in case.repairs]
            runs.append(row | {"stock": stock, "ours": ours, "wrong": wrong})
    write_results(options.output, PACKAGES, runs=runs)


if __name__ == "__main__":
    main()
