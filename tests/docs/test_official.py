"""The commands that run other projects' scripts and tests: on small ones, written here."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import arguments, bert, texts

from hf_losses import LossTrainer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = """
import sys

if "hf_losses" not in sys.modules:
    sys.exit()  # Alone it would do the same, in twice the time of this test.

from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from transformers import Trainer, TrainingArguments
from datasets import load_dataset
import evaluate

parser = HfArgumentParser(TrainingArguments)
args, rest = parser.parse_args_into_dataclasses(return_remaining_strings=True)
path = rest[rest.index("--model_name_or_path") + 1]
data = load_dataset("xnli", "en")
tokenizer = AutoTokenizer.from_pretrained(path)
data = data.map(lambda row: tokenizer(row["premise"], row["hypothesis"]), batched=True)
trainer = Trainer(
    AutoModelForSequenceClassification.from_pretrained(path, num_labels=3),
    args,
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    processing_class=tokenizer,
)
trainer.train()
trainer.save_model()
metrics = trainer.evaluate()
metrics |= evaluate.load("accuracy").compute(predictions=[1, 0], references=[1, 1])
trainer.save_metrics("eval", metrics)
"""
TESTS = """
import pytest


def test_passes():
    pass


class TestOther:
    @pytest.mark.parametrize("name", ["a.b"])
    def test_fails(self, name):
        raise KeyError("first line\\nsecond")

    def test_is_skipped(self):
        pytest.skip("no reason")
"""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_a_script_runs_with_and_without_us_and_what_it_leaves_is_recorded(tmp_path, monkeypatch):
    import official_scripts
    from official.cases import Case

    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(official_scripts, "CASES", (Case("script.py", "BERT", ""),))
    target = tmp_path / "found" / "scripts.json"
    official_scripts.main([str(tmp_path), "--output", str(target)])
    (run,) = json.loads(target.read_text())["runs"]
    assert run["stock"] == {"outcome": "runs"}
    assert run["ours"] == {
        "outcome": "runs",
        "saved": [
            "hf_losses.json",
            "config.json",
            "checkpoint-2/hf_losses.json",
            "checkpoint-2/config.json",
        ],
        "eval": ["eval_loss", "eval_cross_entropy"],
    }
    assert (run["script"], run["model"], run["wrong"]) == ("script.py", "BERT", "")


RUNS = {"outcome": "runs", "saved": list("abcd"), "eval": ["eval_loss", "eval_cross_entropy"]}
REFUSED = {"outcome": "refused", "why": "…"}
FAILS = {"outcome": "fails", "why": "…"}


@pytest.mark.parametrize(
    ("special_loss", "stock", "ours", "wrong"),
    [
        ("", RUNS, RUNS, ""),
        ("", RUNS, REFUSED, "does not run with another loss"),
        ("", RUNS, FAILS, "does not run with another loss"),
        ("", RUNS, RUNS | {"saved": ["a"]}, "what is saved does not name the loss"),
        ("", RUNS, RUNS | {"eval": ["eval_loss"]}, "evaluation lacks eval_cross_entropy"),
        ("", FAILS, FAILS, "does not run by itself"),
        ("its own", RUNS, REFUSED, ""),
        ("its own", FAILS, REFUSED, ""),
        ("its own", RUNS, RUNS, "is not refused in one line"),
        ("its own", RUNS, FAILS, "is not refused in one line"),
    ],
)
def test_what_counts_as_wrong(special_loss, stock, ours, wrong):
    from official.cases import Case
    from official_scripts import complaint

    case = Case("script.py", "BERT", "", special_loss=special_loss)
    assert complaint(case, stock, ours) == wrong


def test_outcomes_of_tests_are_read_by_name(tmp_path):
    from official_tests import Suite, outcomes

    (tmp_path / "test_it.py").write_text(TESTS)
    suite = Suite("test_it.py", "Trainer", "ours", "transformers", {})
    outcome_of = outcomes(suite, tmp_path, [])
    assert outcome_of == {
        "test_it.test_passes": ("passed", ""),
        "TestOther.test_fails[a.b]": ("failed", "KeyError: 'first line\\nsecond'"),
        "TestOther.test_is_skipped": ("skipped", "no reason"),
    }


def test_what_differs_is_named_with_the_reason_where_it_is_meant():
    from official_tests import Suite, compared

    stock = {"A.test_one": ("passed", ""), "A.test_two": ("passed", ""), "A.test": ("failed", "x")}
    ours = {name: ("failed", "/tmp/f/site-packages/x.py: error") for name in stock}
    suite = Suite("test_it.py", "Trainer", "ours", "transformers", {"test_one": "meant"})
    comparison = compared(suite, stock, ours, Path("/tmp/f"))
    assert comparison["stock"] == {"passed": 2, "failed": 1}
    assert comparison["ours"] == {"failed": 3}
    row = {"stock": "passed", "ours": "failed", "message": "x.py: error"}
    assert comparison["differences"] == [
        {"test": "A.test_one", **row, "allowed": "meant"},
        {"test": "A.test_two", **row, "allowed": ""},
    ]


def test_tests_that_import_the_trainer_get_ours_and_its_loss(tmp_path, monkeypatch):
    import transformers
    from official.swap_trainer import pytest_configure
    from transformers import Trainer

    monkeypatch.setattr(transformers, "Trainer", Trainer)  # So that it is put back.
    pytest_configure(SimpleNamespace(option=SimpleNamespace(swap="Trainer")))
    from transformers import Trainer as swapped

    assert issubclass(swapped, LossTrainer)
    assert swapped.__name__ == "Trainer"
    trainer = swapped(bert(num_labels=1), arguments(tmp_path), train_dataset=texts())
    assert trainer.loss_config["name"] == "mse"


@pytest.mark.parametrize(
    ("command", "message"),
    [("official_scripts", "lacks audio-classification/"), ("official_tests", "has neither tests/")],
)
def test_a_folder_without_them_is_refused(tmp_path, capsys, command, message):
    module = __import__(command)
    with pytest.raises(SystemExit) as ended:
        module.main([str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_every_repair_of_a_case_exists_and_says_what_it_mends():
    from official.cases import CASES
    from official.site import sitecustomize

    for name in {name for case in CASES for name in case.repairs}:
        assert getattr(sitecustomize, name).__doc__.endswith(".")
