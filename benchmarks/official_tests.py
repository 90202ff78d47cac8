"""The trainers' own tests, once as they are and once with a trainer of this project in their place.

    python benchmarks/official_tests.py FOLDER …

Each FOLDER is a public copy of transformers at 5.0.0 (for `tests/trainer/test_trainer.py`, with
`LossTrainer` as `Trainer`: `loss="mse"` for the tests' regression models, else the baseline) or of
TRL at 1.10 (for `tests/test_sft_trainer.py`, with `LossMixin` on its `SFTTrainer`). The files run
unchanged against what is installed, without a network; the tiny models and data that they ask the
Hub for are made here as far as they go, and tests that ask for others fail on both sides.
Writes results/official/tests.json: counts, and every test whose outcome differs.

Beside the project's own packages, transformers' tests need `parameterized`.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from datasets import Features, Value
from official import trl_models
from official.data import sentence, write_dataset
from official.models import write_model
from official.offline import environment, repair_torchvision, write_results
from official.site import sitecustomize

TARGET = Path(__file__).parent.parent / "results" / "official" / "tests.json"
PACKAGES = ("transformers", "torch", "accelerate", "peft", "trl")


@dataclass(frozen=True)
class Suite:
    """A file of tests.

    Attributes:
        file: Below the copy.
        trainer: The name that another class gets.
        ours: What that class is.
        package: Whose trainer is tested.
        allowed: Why a test may end differently, by the name of the test.
        repairs: Functions of `official/site/sitecustomize.py` without which it does not start.
    """

    file: str
    trainer: str
    ours: str
    package: str
    allowed: dict
    repairs: tuple = ()


TWO = "two columns of labels"
FUNCTION = "it gives a `compute_loss_func`, which is another way to choose the loss"
OTHER = "it asks TRL for another loss than its default"
SUITES = (
    Suite(
        file="tests/trainer/test_trainer.py",
        trainer="Trainer",
        ours="LossTrainer",
        package="transformers",
        allowed={
            "test_predict": TWO,
            "test_predict_with_batch_eval_metrics": TWO,
            "test_gradient_accumulation_loss_alignment_with_loss_func": FUNCTION,
            "test_train_and_predict_loss_parity": FUNCTION,
        },
        repairs=("removed_classes",),
    ),
    Suite(
        file="tests/test_sft_trainer.py",
        trainer="SFTTrainer",
        ours="LossMixin with SFTTrainer",
        package="trl",
        allowed={"test_train_dft_loss": OTHER},
        repairs=("removed_functions",),
    ),
)


# What transformers' tests ask the Hub for, and the tiny model that they get.
HUB = {
    "bert-base-cased": "BERT",
    "bert-base-uncased": "BERT",
    "facebook/wav2vec2-base-960h": "Wav2Vec2",
    "hf-internal-testing/tiny-random-LlamaForCausalLM": "Llama",
    "openai/clip-vit-base-patch32": "CLIP",
    "roneneldan/TinyStories-33M": "Llama",
}


def write_hub(folder):
    """Makes what transformers' tests find in the place of the Hub."""
    for repo, name in HUB.items():
        write_model(folder / "home", name, repo)
    rng = random.Random(1)
    write_dataset(
        folder / "wikitext",
        lambda _: {"text": sentence(rng)},
        Features(text=Value("string")),
        config="wikitext-2-raw-v1",
    )


def outcomes(suite, folder, repairs, arguments=()):
    """Runs the tests.

    Args:
        suite: Which.
        folder: Working directory that holds them.
        repairs: What every test needs, of `repair_torchvision`.
        arguments: Of pytest.

    Returns:
        Dict from the name of a test to its outcome ("passed", "failed" or "skipped") and the first
        line of its message.
    """
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", suite.file, f"--junitxml={report}", "-q"]
    command += ["-p", "official.swap_trainer", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, [*repairs, *suite.repairs]), check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}: {' '.join(command)}")
    by_name = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}.{case.get('name')}"
        bad = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if bad is None:
            by_name[name] = ("passed", "")
        else:
            kind = "skipped" if bad.tag == "skipped" else "failed"
            by_name[name] = (kind, (bad.get("message") or "").partition("\n")[0])
    return by_name


def compared(suite, stock, ours, folder):
    """Counts of both sides and what differs."""
    differences = []
    missing = ("missing", "")
    for name in [*stock, *(name for name in ours if name not in stock)]:
        before, (after, message) = stock.get(name, missing)[0], ours.get(name, missing)
        if after != before:
            why = suite.allowed.get(name.partition(".")[2].partition("[")[0], "")
            message = re.sub(rf"{re.escape(str(folder))}\S*/|\S*/site-packages/", "", message)
            row = {"test": name, "stock": before, "ours": after, "message": message}
            differences.append(row | {"allowed": why})
    counts = [dict(Counter(kind for kind, _ in side.values())) for side in (stock, ours)]
    made_elsewhere = sum(1 for kind, text in stock.values() if kind == "failed" and hub(text))
    return {
        "package": suite.package,
        "file": suite.file,
        "trainer": suite.trainer,
        "ours_is": suite.ours,
        "repairs": [getattr(sitecustomize, name).__doc__ for name in suite.repairs],
        "stock": counts[0],
        "ours": counts[1],
        "need_the_hub": made_elsewhere,
        "differences": differences,
    }


def hub(message):
    """Whether a test failed because what it asks for is neither here nor made."""
    return any(word in message for word in (trl_models.OWNER, "huggingface.co", "on the Hub"))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="copies of transformers or TRL")
    parser.add_argument("--output", type=Path, default=TARGET, help="file of the results")
    parser.add_argument("-k", default="", help="only tests whose names match, as of pytest")
    options = parser.parse_args(argv)
    repairs = repair_torchvision()
    tables = []
    for copy in options.folders:
        suite = next((one for one in SUITES if (copy / one.file).is_file()), None)
        if suite is None:
            files = " nor ".join(one.file for one in SUITES)
            parser.error(f"{copy} has neither {files}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            # A copy without the package beside it, so that the installed one is tested.
            shutil.copytree(copy / "tests", folder / "tests")
            if suite.package == "trl":
                trl_models.write_models(folder)
                trl_models.write_seeing_models(folder)
                trl_models.write_data(folder, copy / "scripts")
            else:
                write_hub(folder)
            chosen = ["-k", options.k] if options.k else []
            stock = outcomes(suite, folder, repairs, chosen)
            ours = outcomes(suite, folder, repairs, [*chosen, "--swap", suite.trainer])
            tables.append(compared(suite, stock, ours, folder))
    write_results(options.output, PACKAGES, suites=tables)


if __name__ == "__main__":
    main()
