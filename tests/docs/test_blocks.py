"""Every block of code in README and docs runs here, or says what it needs.

A line `<!-- needs: the Hub -->` right before a block says why it cannot run here (several reasons:
`<!-- needs: the Hub, a GPU -->`). The Python of a document runs in order, in one namespace; a
`text` block is what the Python above it prints. The commands of a document run in order in one
folder (slow): with few rows, with two losses where many are compared, and a recipe in this process
where its command is `python`, or `accelerate launch` without flags (the tests of each recipe launch
it). What another document runs, perhaps with another loss, runs once. The flags of all commands, of
marked ones too, are read by the parsers that they are meant for.
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import tiny
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from huggingface_hub import constants
from transformers import TrainingArguments

from hf_losses import LossTrainer, get_spec
from hf_losses.cli.main import main as hf_losses_command
from hf_losses.compare.plan import make_plan
from hf_losses.compare.results import RunSettings
from hf_losses.compare.runs import read_result
from hf_losses.compare.tasks import task_commands
from hf_losses.losses import registry
from hf_losses.losses.registry import match_losses

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DOCUMENTS = {path.name: path for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
NEEDS = {"the Hub", "a GPU", "an installation", "a cluster"}
PYTHON, DATA = ("python", "diff", "text"), {"json": json.loads, "toml": tomllib.loads}
DATA["yaml"] = yaml.safe_load
LANGUAGES = {*PYTHON, *DATA, "sh", "bibtex"}  # The last is no code.
# Its Python and its diffs are run there, against the packages that they are for.
ELSEWHERE = {"swap.md": TESTS / "integrations" / "test_integrations.py"}

MARK = "<!-- needs: "
BLOCK = re.compile(
    rf"(?:^{MARK}(?P<needs>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: the line that its code begins in, and what it needs."""

    line: int
    language: str
    code: str
    needs: tuple[str, ...]


def blocks(text):
    """All blocks of a document; fails where a fence, a language or a mark is not understood."""
    found = [
        Block(
            text[: match.start("code")].count("\n"),
            match["language"],
            match["code"],
            tuple((match["needs"] or "").split(", ")) if match["needs"] is not None else (),
        )
        for match in BLOCK.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^\s*(?:```|~~~)", text, re.M)), "an unread fence"
    assert sum(bool(block.needs) for block in found) == text.count(MARK), "a mark without a block"
    for block in found:
        assert block.language in LANGUAGES, f"{block.language!r} is not run"
        assert set(block.needs) <= NEEDS, f"needs must be some of {NEEDS}, got {block.needs}"
    return found


BLOCKS = {name: blocks(path.read_text(encoding="utf-8")) for name, path in DOCUMENTS.items()}


def having(*languages, but=()):
    """The documents that have blocks in one of these languages to be run."""
    return [
        name
        for name, own in BLOCKS.items()
        if name not in but and any(b.language in languages and not b.needs for b in own)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```rust\nfn main() {}\n```\n",
        "```\nplain\n```\n",
        "  ```sh\n  ls\n  ```\n",
        "```sh\nls\n",
        f"{MARK}a whim -->\n```sh\nls\n```\n",
        f"{MARK}the Hub -->\n\n```sh\nls\n```\n",
    ],
)
def test_what_is_neither_run_nor_marked_fails(text):
    with pytest.raises(AssertionError):
        blocks(text)


# ---- Python and data -----------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the documents take for granted, in an empty folder; what they register is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    torch.manual_seed(0)
    model, args, data = tiny.bert(), tiny.arguments(".", TrainingArguments), tiny.texts(16)

    def accuracy(found):
        return {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean().item()}

    return {
        "model": model,
        "args": args,
        "data": data,
        "trainer": LossTrainer(model, args, train_dataset=data, compute_metrics=accuracy),
        "test_set": tiny.texts(8),
        "hidden": torch.randn(6, 32),
        "lm_head": torch.nn.Linear(32, tiny.VOCABULARY, bias=False),
        "labels": torch.randint(0, tiny.VOCABULARY, (6,)),
    }


def run_python(own, names, path):
    """Runs blocks in order; a traceback shows the lines of the document."""
    printed = io.StringIO()
    for block in own:
        if block.language == "text":
            assert block.code == printed.getvalue()
        if block.language not in PYTHON or block.language == "text" or block.needs:
            continue
        printed = io.StringIO()
        for code in sides(block.code) if block.language == "diff" else [block.code]:
            with contextlib.redirect_stdout(printed):
                exec(compile("\n" * block.line + code, path, "exec"), names)


def sides(diff):
    """What stands before and after a diff."""
    return [
        "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] != other)
        for other in "+-"
    ]


@pytest.mark.parametrize("name", having(*PYTHON, but=ELSEWHERE))
def test_python_runs_and_prints_what_the_document_shows(name, names):
    run_python(BLOCKS[name], names, DOCUMENTS[name])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_runs_elsewhere_is_read_there(name):
    assert f'"{name}"' in ELSEWHERE[name].read_text(encoding="utf-8")


def test_python_that_prints_something_else_fails(names):
    own = blocks("```python\nx = 2\n```\n```python\nprint(x)\n```\n```text\n3\n```\n")
    with pytest.raises(AssertionError):
        run_python(own, names, "a document")


@pytest.mark.parametrize("name", having(*DATA))
def test_data_can_be_read(name):
    for block in BLOCKS[name]:
        if block.language in DATA:
            assert DATA[block.language](block.code)


def test_results_of_ones_own_script_are_what_compare_reads(names):
    plan = make_plan(str(ROOT / "recipes" / "glue.py"), [], ["cross_entropy", "strict_l"], seeds=2)
    settings = RunSettings("strict_l", "main", 1, {})
    (example,) = (block.code for block in BLOCKS["compare.md"] if block.language == "json")
    Path("result.json").write_text(example, encoding="utf-8")
    assert read_result(Path(), settings, plan).value == 0.80
    run_python(BLOCKS["compare.md"], names, "compare.md")
    record = read_result(Path(), settings, plan)
    assert (record.metric.set, record.metric.name) == ("test", "accuracy")


# ---- Commands ------------------------------------------------------------------------------------


def commands(block):
    """The commands of a block as lists of words, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL = [
    pytest.param(words, id=f"{name}:{block.line + 1}-{words[0]}")
    for name, own in BLOCKS.items()
    for block in own
    if block.language == "sh"
    for words in commands(block)
]


class Parsed(Exception):
    """Carries what a parser made of a command line, in the place of what would follow."""


@pytest.fixture
def read(monkeypatch):
    """Lets the parsers of a command read it; they exit with 2 where a flag is not one of theirs."""

    def parsed(main, arguments):
        parse_args = argparse.ArgumentParser.parse_args

        def stop(parser, *given):
            raise Parsed(parse_args(parser, *given))

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            with pytest.raises(Parsed) as caught:
                main(arguments)
        return caught.value.args[0]

    def script(path, arguments):
        if not path.startswith("recipes/"):  # The reader's own: its flags are theirs.
            return
        monkeypatch.syspath_prepend(ROOT / "recipes")
        recipe = importlib.import_module(Path(path).stem)
        assert Path(recipe.__file__) == ROOT / path
        monkeypatch.setattr(recipe, "parse", lambda parser, argv: parser.parse_args(argv))
        found = parsed(recipe.main, arguments)
        match_losses([*filter(None, [getattr(found, "loss", None)]), *getattr(found, "losses", [])])

    def hf_losses(arguments):
        found = parsed(hf_losses_command, arguments)
        if found.command == "run":
            get_spec(found.loss)
            script(found.script, found.arguments)
        if found.command == "compare":
            tasks = task_commands(found.script, found.arguments, *(found.tasks or [None]))
            for name, *flags in tasks.values():
                make_plan(name, flags, found.losses, seeds=found.seeds)
                for loss in found.losses:
                    script(name, [*flags, *shlex.split(loss)[1:]])

    def launched(arguments):
        found = launch_command_parser().parse_args(arguments[1:])
        assert arguments[0] == "launch"
        assert found.config_file is None or (ROOT / found.config_file).is_file()
        if found.module:
            assert found.training_script == "hf_losses"
            return hf_losses(found.training_script_args)
        return script(found.training_script, found.training_script_args)

    def make(arguments):
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)

    def on_slurm(arguments):
        from ray.scripts.scripts import start

        words, command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
        assert words[:2] == ["ray", "symmetric-run"]
        nodes = words.index("--min-nodes")
        assert words[nodes + 1].isdigit()
        start.make_context("start", words[2:nodes] + words[nodes + 2 :])
        assert command[0] == "hf-losses"
        return hf_losses(command[1:])

    readers = {
        "accelerate": launched,
        "hf-losses": hf_losses,
        "make": make,
        "pip": lambda arguments: None,  # Its extras: see below.
        "python": lambda arguments: script(arguments[0], arguments[1:]),
        "srun": on_slurm,
    }

    def read_words(words):
        words = [*itertools.dropwhile(lambda word: re.fullmatch(r"\w+=\S*", word), words)]
        return readers[words[0]](words[1:])

    return read_words


@pytest.mark.parametrize("words", ALL)
def test_commands_have_the_flags_they_are_given(words, read):
    read(words)


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch recipes/glue.py --lose strict_l",
        "accelerate launch --processes 2 recipes/glue.py",
        "accelerate launch -m hf_losses run --loss strict_l --rate 1 train.py",
        "hf-losses compare --losses mae mse --seeds 6 --output_dir x -- recipes/glue.py --rate 1",
        "hf-losses compare --losses mse 'mae --rate 1' --seeds 6 --output_dir x -- recipes/glue.py",
        "hf-losses publish runs/x --repo me/x --rate 1",
        "python recipes/search.py --trials_of_each 3",
    ],
)
def test_a_flag_that_no_longer_exists_fails(command, read):
    with pytest.raises(SystemExit):
        read(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    ["accelerate launch recipes/glue.py --loss strict_x", "python recipes/search.py --losses x"],
)
def test_a_loss_that_does_not_exist_fails(command, read):
    with pytest.raises(ValueError, match="matches"):
        read(shlex.split(command))


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS.values()]
    named = {
        extra
        for text in texts
        for group in re.findall(r"'(?:\.|hf-losses)\[([^]]*)\]'", text)
        for extra in group.split(",")
    }
    assert named
    assert named <= set(extras)


# So that a command ends within seconds: words, and the values of flags.
SMALLER = {"strict_*": "strict_l"}
VALUES = {"--seeds": "1"}
FEW = "--max_train_samples 64 --max_eval_samples 32 --num_train_epochs 1 --use_cpu".split()
TRAIN = """
import tiny
from transformers import Trainer, TrainingArguments

args = tiny.arguments("out", TrainingArguments, max_steps=1)
Trainer(tiny.bert(), args, train_dataset=tiny.texts(8)).train()
"""


def shrunk(words):
    """The same command, over sooner."""
    words = [
        VALUES.get(before, SMALLER.get(word, word))
        for before, word in zip(["", *words], words, strict=False)
    ]
    recipes = [word for word in words if word.startswith("recipes/") and word.endswith(".py")]
    if words[:2] == ["hf-losses", "compare"]:
        words = with_two_losses(words)
    if recipes and words[:3] == ["accelerate", "launch", recipes[0]]:  # One process.
        words = ["python", *words[2:]]
    if recipes == ["recipes/search.py"]:
        words += ["--n_trials", "2"]
    return words + FEW if recipes else words


def with_two_losses(words):
    """The same comparison, of the first loss that has flags, or the first, with the baseline."""
    start = words.index("--losses") + 1
    losses = list(itertools.takewhile(lambda word: not word.startswith("--"), words[start:]))
    assert "cross_entropy" in losses
    loss = next((loss for loss in losses if " " in loss), losses[0])
    return [*words[:start], loss, "cross_entropy", *words[start + len(losses) :]]


@pytest.fixture
def folder(tmp_path):
    """The recipes, and the files that the documents take for granted."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "package").mkdir()
    rows = "".join(f"a {('good', 'bad')[i % 2]} film,{i % 2}\n" for i in range(32))
    words = "Anna B-PER\nsings O\n\nno O\none O\n\n" * 16
    files = {"train.py": TRAIN, "package/train.py": TRAIN}
    files |= dict.fromkeys(("a.csv", "b.csv"), f"sentence,label\n{rows}")
    files |= dict.fromkeys(("train.conll", "dev.conll"), words)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


# Documents that run the commands which these have as well, perhaps with another loss.
ELSEWHERE_TOO = {"README.md": ("recipes.md", "run.md"), "scaling.md": ("publish.md",)}


def commands_of(name):
    """The commands of a document that run with it: trainings are what takes long here."""
    again = [
        but_for_the_loss(words)
        for other in ELSEWHERE_TOO.get(name, ())
        for words in commands_of(other)
    ]
    found = [
        words
        for block in BLOCKS[name]
        if block.language == "sh" and not block.needs
        for words in commands(block)
        if but_for_the_loss(words) not in again
    ]
    # Of comparisons by the same script, each of which trains four times, the last one.
    scripts = [words[words.index("--") + 1] if "compare" in words else None for words in found]
    return [
        words
        for number, (words, script) in enumerate(zip(found, scripts, strict=True))
        if script is None or script not in scripts[number + 1 :]
    ]


def but_for_the_loss(words):
    """A command without the value of `--loss`."""
    return [word for before, word in zip(["", *words], words, strict=False) if before != "--loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in having("sh") if commands_of(name)])
def test_commands_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    interrupt = signal.getsignal(signal.SIGINT)  # A script may set its own.
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
    }
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for words in map(shrunk, commands_of(name)):
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
            signal.signal(signal.SIGINT, interrupt)
            continue
        done = subprocess.run(
            words,
            env=os.environ | paths | offline,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
