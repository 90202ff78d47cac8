"""A run is published whole, or its folder stays as it is and the message says how to go on."""

import ast
import hashlib
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from hub import TOKEN, Fault
from huggingface_hub import HfApi, ModelCard, constants
from peft import LoraConfig, get_peft_model
from products import diagonals, product
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from hf_losses import LossTrainer
from hf_losses.cli.main import main
from hf_losses.hub import run_folder, upload
from hf_losses.hub.publish import publish

# The client's own, of the HTTP library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")

REPO = "me/model"
PUBLISH = ["publish", "run", "--repo", REPO]
COMMIT, CREATE, INFO = f"/api/models/{REPO}/commit/", "/api/repos/create", f"/api/models/{REPO}$"
BATCH, STORE, PREUPLOAD = "/info/lfs/objects/batch", "/store/", "/preupload/"
SENTENCES = ["w7 w9 w11", "w48 w3", "w20 w21 w22 w23"]


def train(folder, base, **settings):
    """A run in the current folder: a tiny BERT and tokenizer, loaded from a folder at home."""
    words = {f"w{i}": i for i in range(2, tiny.VOCABULARY)} | {"[PAD]": 0, "[UNK]": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(base)
    tiny.bert().save_pretrained(base)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    if settings.pop("lora", False):
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    return LossTrainer(
        model=model,
        args=tiny.arguments(folder, loss="liberal_exp", **settings),
        train_dataset=tiny.texts(),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, `run` in a folder that is the home too."""
    home = tmp_path_factory.mktemp("somebody")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HOME", str(home))
        patch.delenv("HF_TOKEN", raising=False)
        trainer = train("run", home / "base", save_strategy="steps", save_steps=2, hub_token=TOKEN)
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        trainer.create_model_card()
        yield home


@pytest.fixture
def home(finished, tmp_path, monkeypatch, no_pictures):
    """The current folder and the home, with a finished run in `run`."""
    subprocess.run(["cp", "-a", f"{finished}/run", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail; returns its one line, with the folder's bytes unchanged."""

    def refused(command):
        before = contents("run")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        assert contents("run") == before
        bars, _, line = capsys.readouterr().err.rpartition("hf-losses: error: ")
        assert line.count("\n") == 1
        assert "Traceback" not in bars
        return line.rstrip("\n")

    return refused


def contents(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def resume(line):
    """The command that a message names."""
    command = line.split("The local files are whole; to resume: ")[1]
    return shlex.split(command)[1:]


# ---- Without faults ------------------------------------------------------------------------------

RELOAD = """
import json, sys
sys.modules["hf_losses"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
repo, sentences = sys.argv[1], sys.argv[2:]
model = AutoModelForSequenceClassification.from_pretrained(repo).eval()
inputs = AutoTokenizer.from_pretrained(repo)(sentences, padding=True, return_tensors="pt")
found = pipeline("text-classification", model=repo, top_k=None)(sentences)
print(json.dumps([model(**inputs).logits.tolist(), found]))
"""


def predictions(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(SENTENCES, padding=True, return_tensors="pt")).logits


@pytest.mark.slow
def test_anybody_can_load_what_was_published_and_no_secret_is_in_it(home, hub, pictures):
    def run(*command):
        environment = os.environ | hub.environment(home)
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    before = contents("run")
    done = run(sys.executable, "-m", "hf_losses", *PUBLISH)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"published {hub.url}/{REPO}\n"
    assert contents("run") == before
    published = hub.files[REPO]
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    wanted |= {"hf_losses.json", "training_args.json", "trainer_state.json"}
    wanted |= {"README.md", "loss.png"}
    assert wanted <= published.keys()
    allowed = {*wanted, ".gitattributes", "learning_curve.png"}
    assert published.keys() <= allowed
    assert published["model.safetensors"] == Path("run/model.safetensors").read_bytes()
    shown = json.loads(published["training_args.json"])
    assert (shown["loss"], shown["seed"], shown["output_dir"]) == ("liberal_exp", 3, "run")
    assert "loss:liberal_exp" in ModelCard(published["README.md"].decode()).data.tags

    found = run(sys.executable, "-c", RELOAD, REPO, *SENTENCES)
    assert found.returncode == 0, found.stderr
    logits, by_pipeline = json.loads(found.stdout.splitlines()[-1])
    expected = predictions("run")
    assert torch.equal(torch.tensor(logits), expected)
    for scores, row in zip(by_pipeline, expected.softmax(-1), strict=True):
        found = {score["label"]: score["score"] for score in scores}
        assert [found[f"LABEL_{i}"] for i in range(3)] == pytest.approx(row.tolist())

    main([*PUBLISH, "--dry_run", "shown"])
    written = [path for path in Path().rglob("*") if path.is_file() and "hub" not in path.parts]
    assert any("training_args.bin" in path.name for path in written)
    everything = [done.stdout, done.stderr, *map(str, hub.files), *hub.received]
    everything += [path.read_bytes() for path in written]
    everything += [content for files in hub.files.values() for content in files.values()]
    for text in everything:
        text = text.encode() if isinstance(text, str) else text
        for secret in (TOKEN, str(home), str(home.parent), os.path.expanduser("~")):
            assert secret.encode() not in text


def test_what_is_there_is_not_uploaded_again(home, hub, pictures):
    main(PUBLISH)
    content, commits = hub.files[REPO], list(hub.commits[REPO])
    uploaded = hub.uploaded()
    assert uploaded > Path("run/model.safetensors").stat().st_size
    main(PUBLISH)
    assert hub.uploaded() == uploaded
    assert hub.commits[REPO] == commits
    assert hub.files[REPO] == content

    Path("run/result.json").write_text('{"metrics": {}}')
    main(PUBLISH)
    changed = {path for _, path in hub.commits[REPO][-1]}
    assert "result.json" in changed
    assert changed <= {"result.json", "README.md"}
    assert hub.counted("PUT", STORE) == len(hub.blobs)


def test_through_the_pipeline_of_xet_too(home, hub, monkeypatch):
    hub.large = ()  # Its store for large files has no stand-in.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.faults = [Fault("POST", COMMIT, status=503, headers={"Retry-After": "7"})]
    main(PUBLISH)
    assert hub.files[REPO]["model.safetensors"] == Path("run/model.safetensors").read_bytes()
    assert hub.waits == []
    assert hub.waits_of_client == [8]


def test_a_private_repository_and_a_name_without_owner(home, hub, capsys):
    main(["publish", "run", "--repo", "model", "--private"])
    assert hub.private == {REPO}
    assert capsys.readouterr().out == f"published {hub.url}/{REPO}\n"


def test_weights_of_another_layout_do_not_stay(home, hub):
    main(PUBLISH)
    hub.files[REPO] |= {"model-00001-of-00002.safetensors": b"", "training_args.bin": b"secret"}
    hub.files[REPO] |= {"model.safetensors.index.json": b"", "last-checkpoint/optimizer.bin": b""}
    hub.files[REPO] |= {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    own = {"openvino_model.bin": b"", "openvino_model.xml": b"", "model.fp16.safetensors": b""}
    hub.files[REPO] |= own  # Exports that a user has added.
    main(PUBLISH)
    gone = {"training_args.bin", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}
    gone |= {"adapter_config.json", "adapter_model.safetensors"}
    assert set(hub.commits[REPO][-1]) == {("deletedFile", name) for name in gone}
    assert own.keys() | {"last-checkpoint/optimizer.bin"} <= hub.files[REPO].keys()


def test_an_adapter(home, hub):
    trainer = train("run", home / "base", lora=True)
    trainer.train()
    for path in Path("run").glob("*.*"):
        path.unlink()
    trainer.save_model()
    main(PUBLISH)
    published = hub.files[REPO]
    assert published["adapter_model.safetensors"] == (
        Path("run/adapter_model.safetensors").read_bytes()
    )
    assert "model.safetensors" not in published
    config = json.loads(published["adapter_config.json"])
    assert config["base_model_name_or_path"] == "base"
    for content in published.values():
        assert str(home).encode() not in content


# ---- Faults that pass ----------------------------------------------------------------------------

# What the client does not try again itself, and what it does.
OURS = [("POST", CREATE), ("GET", INFO), ("POST", "/validate-yaml"), ("POST", COMMIT)]
CLIENTS = [("POST", PREUPLOAD), ("POST", BATCH), ("PUT", STORE), ("POST", "/verify")]


FAULTS = [
    {"status": 500},
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "7"}},
    {"drop": 100},
    {"lose": True},
    {"sleep": True},
]


@pytest.mark.parametrize(
    ("asked", "fault"), product(OURS + CLIENTS, FAULTS, keep=diagonals(2)), ids=str
)
def test_what_passes_is_tried_again(home, hub, monkeypatch, caplog, asked, fault):
    method, path = asked
    monkeypatch.setattr(upload, "TIMEOUT", 0.3)
    carried_out = path == COMMIT and "lose" in fault  # The next try finds that all is there.
    tries = 1 if carried_out else 2
    hub.faults = [Fault(method, path, times=tries, **fault)]
    before = contents("run")
    main(PUBLISH)
    assert hub.faults[0].times == 0
    assert contents("run") == before
    assert hub.files[REPO]["model.safetensors"] == Path("run/model.safetensors").read_bytes()
    if (method, path) in OURS:
        waits = [7, 7] if "headers" in fault else [1, 2]
        assert hub.waits == waits[:tries]
        lines = [record.message for record in caplog.records if record.name == upload.__name__]
        messages = [line.rpartition("; ")[2] for line in lines]
        assert messages == [f"trying again in {wait} s" for wait in waits[:tries]]
        assert hub.waits_of_client == []
    else:
        assert hub.waits == []
        assert hub.waits_of_client == ([8, 8] if "headers" in fault else [1, 2])
    assert len(hub.commits[REPO]) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", COMMIT), ("PUT", STORE)])
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": 1000}], ids=["503", "drop"])
def test_after_five_more_tries_the_message_says_how_to_go_on(
    home, hub, refused, pictures, method, path, fault
):
    hub.faults = [Fault(method, path, times=100, **fault)]
    options = ["--private", "--revision", "main", "--overwrite"]
    line = refused([*PUBLISH, *options])
    assert hub.counted(method, path) == 6
    assert len(hub.waits) == (5 if path == COMMIT else 0)
    assert resume(line) == [*PUBLISH, *options]
    stored = set(hub.blobs)
    hub.faults, hub.requests = [], []
    main(resume(line))
    assert hub.files[REPO]["model.safetensors"] == Path("run/model.safetensors").read_bytes()
    again = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "PUT"}
    assert not again & stored


def test_no_network(home, hub, refused, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # Nobody listens there.
    line = refused(PUBLISH)
    assert "the connection to the Hub failed" in line
    assert hub.waits == [1, 2, 4, 8, 16]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.waits.clear()
    assert "HF_HUB_OFFLINE" in refused(PUBLISH)
    assert hub.waits == []


# ---- Faults that stay ----------------------------------------------------------------------------


def test_without_a_token_nothing_is_sent(home, hub, refused, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    line = refused(PUBLISH)
    assert "no Hugging Face token: log in by `hf auth login`" in line
    assert resume(line) == PUBLISH
    assert "no Hugging Face token" in refused(["publish", "run", "--repo", "model"])
    assert hub.requests == []


@pytest.mark.parametrize(("method", "path"), [OURS[0], OURS[-1], CLIENTS[0]])
@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "the token is not valid"), (403, "no right to write to me/model"), (404, "there is no")],
)
def test_what_stays_is_said_at_once(home, hub, refused, method, path, status, message):
    hub.faults = [Fault(method, path, status=status, times=100)]
    line = refused(PUBLISH)
    assert f"the Hub answered {status}" in line
    assert message in line
    assert hub.counted(method, path) == 1
    assert hub.waits == hub.waits_of_client == []
    hub.faults = []
    main(resume(line))
    assert "model.safetensors" in hub.files[REPO]


def test_an_answer_that_the_client_cannot_read(home, hub, refused):
    hub.faults = [Fault("POST", BATCH, status=200, times=100)]  # A plain ValueError of the client.
    line = refused(PUBLISH)
    assert "Malformed response from server" in line
    hub.faults = []
    main(resume(line))
    assert "model.safetensors" in hub.files[REPO]


@pytest.mark.parametrize("bug", [ValueError("a bug"), RuntimeError("a bug")], ids=repr)
def test_a_bug_is_no_fault_of_the_hub(home, hub, monkeypatch, bug):
    def create_repo(*_, **__):
        raise bug

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    with pytest.raises(type(bug)) as raised:
        publish("run", REPO)
    assert raised.value is bug


def test_a_wrong_token_and_somebody_elses_name(home, hub, refused, monkeypatch):
    assert "You don't have the rights to write to google" in refused(
        ["publish", "run", "--repo", "google/bert"]
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused(PUBLISH)
    assert "the token is not valid" in line
    assert "hf_wrong" not in line


def test_a_name_that_is_taken(home, hub, refused):
    files = {"model.safetensors": b"precious", "config.json": b"{}"}
    hub.files[REPO], hub.commits[REPO] = dict(files), []
    line = refused(PUBLISH)
    assert f"the name {REPO} is taken" in line
    assert "--overwrite" in line
    assert hub.files[REPO] == files
    main([*PUBLISH, "--overwrite"])
    assert hub.files[REPO]["model.safetensors"] == Path("run/model.safetensors").read_bytes()


def test_an_empty_repository_is_filled(home, hub):
    hub.files[REPO], hub.commits[REPO] = {".gitattributes": b"", "README.md": b"# soon"}, []
    main(PUBLISH)
    assert "model.safetensors" in hub.files[REPO]


@pytest.mark.parametrize("repo", ["me/a/b", "me/--", "a b", ""])
@pytest.mark.parametrize("flags", [[], ["--dry_run"]], ids=["push", "dry run"])
def test_a_name_that_cannot_be(home, hub, refused, repo, flags):
    refused(["publish", "run", "--repo", repo, *flags])
    assert hub.requests == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run.rename("elsewhere"), "no folder 'run'"),
        (lambda run: (run / "hf_losses.json").unlink(), "run has no hf_losses.json"),
        (lambda run: (run / "model.safetensors").unlink(), "publish its last checkpoint, run/ch"),
        (
            lambda run: os.truncate(run / "model.safetensors", 5000),
            "run/model.safetensors is cut short",
        ),
        (
            lambda run: (run / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
            ),
            "run lacks model-2.safetensors",
        ),
        *(
            (
                lambda run, name=name, text=text: (run / name).write_text(text),
                f"run/{name} is damaged",
            )
            for name in ("hf_losses.json", "config.json", "trainer_state.json", "result.json")
            for text in ('{"a": ', "[]")
        ),
        (lambda run: (run / "hf_losses.json").write_text("{}"), "it names no loss"),
        (
            lambda run: (run / "hf_losses.json").write_text('{"name": "strict_m"}'),
            "another training has saved its model there",
        ),
        *(
            (
                lambda run, text=text: (run / "model.safetensors.index.json").write_text(text),
                "run/model.safetensors.index.json is damaged",
            )
            for text in ("", "[]", "{}", '{"weight_map": []}')
        ),
        (
            lambda run: (run / "README.md").write_text("---\n[: x\n---\n"),
            "run/README.md has metadata that cannot be read",
        ),
        (
            lambda run: (run / "notes.md").write_text(f"my token: {TOKEN}"),
            "notes.md of run holds a Hugging Face token",
        ),
    ],
)
@pytest.mark.parametrize("command", [PUBLISH, [*PUBLISH, "--dry_run"]], ids=["push", "dry run"])
def test_a_folder_that_is_no_finished_run(home, hub, refused, command, spoil, message):
    spoil(Path("run"))
    assert message in refused(command)
    assert hub.requests == []


def test_a_checkpoint_is_a_finished_run_too(home, hub):
    main(["publish", "run/checkpoint-2", "--repo", REPO])
    published = hub.files[REPO]
    assert published["model.safetensors"] == (
        Path("run/checkpoint-2/model.safetensors").read_bytes()
    )
    assert not [name for name in published if name.endswith((".pt", ".pth", ".bin"))]


# ---- The dry run ---------------------------------------------------------------------------------


def test_a_dry_run_writes_what_would_be_uploaded(home, hub, monkeypatch, capsys, refused):
    monkeypatch.delenv("HF_TOKEN")
    before = contents("run")
    main([*PUBLISH, "--dry_run"])
    assert contents("run") == before
    assert "wrote run-publish; nothing was uploaded" in capsys.readouterr().out
    main([*PUBLISH, "--dry_run"])  # Its own folder is made anew.
    assert hub.requests == []
    assert torch.equal(predictions("run-publish"), predictions("run"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    main(PUBLISH)
    shown = {p.name: p.read_bytes() for p in Path("run-publish").iterdir() if p.name[0] != "."}
    assert shown == {name: c for name, c in hub.files[REPO].items() if name != ".gitattributes"}
    assert "run holds other files" in refused([*PUBLISH, "--dry_run", "run"])


# ---- What is cleaned -----------------------------------------------------------------------------


def test_paths_become_their_last_part(tmp_path, monkeypatch):
    home = tmp_path / "jörg"
    run = home / "runs/glue"
    run.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    (run / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/scratch/models/bert", "note": f"in {home}"})
    )
    (run / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": f"{run}/checkpoint-3", "log": [{"at": f"{run}/a b"}]})
    )
    (run / "training_args.json").write_text(json.dumps({"output_dir": "/mnt/x/run", "lr": 0.1}))
    (run / "predictions.tsv").write_text(f"{home}/pictures/cat.png\t1\nhttps://a.b/c\t2\n")
    (run / "tokenizer.json").write_text(json.dumps({"vocab": {str(home): 1}}))
    # Of another machine, on which the run was made; a script of the user's wrote them.
    elsewhere = {
        "file": "/mnt/clients/acme/train.csv",
        "by": "/home/alice",
        "x": "C:\\Users\\Bob\\a.csv",
    }
    (run / "args.json").write_text(json.dumps(elsewhere))
    (run / "notes.txt").write_text(
        "from /scratch/acme/b.csv, see https://a.b/data/c or w/mnt/d\nfile:///home/alice/x\n"
    )
    (run / "chat_template.jinja").write_text(r"'Q:\n{{q}}\nA:\n{{a}}\n'")
    (run / "config.json").write_text('{"id2label":  {"0": "/m/0dv5r"}}')
    run_folder.copy_files(run, home / "out", run_folder.is_published)

    def read(name):
        return json.loads((home / "out" / name).read_text())

    assert read("adapter_config.json") == {"base_model_name_or_path": "bert", "note": "in ~"}
    state = {"best_model_checkpoint": "checkpoint-3", "log": [{"at": "a b"}]}
    assert read("trainer_state.json") == state
    assert read("training_args.json") == {"output_dir": "run", "lr": 0.1}
    assert (home / "out/predictions.tsv").read_text() == "cat.png\t1\nhttps://a.b/c\t2\n"
    assert read("args.json") == {"file": "train.csv", "by": "~", "x": "a.csv"}
    notes = "from b.csv, see https://a.b/data/c or w/mnt/d\nfile://x\n"
    assert (home / "out/notes.txt").read_text() == notes
    for name in (
        "tokenizer.json",
        "config.json",
        "chat_template.jinja",
    ):  # As they were, to the byte.
        assert (home / "out" / name).read_bytes() == (run / name).read_bytes()


def test_the_vocabulary_of_every_tokenizer_of_transformers_is_published():
    names, models = set(), Path(transformers.__file__).parent / "models"
    for file in models.rglob("tokenization_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VOCAB_FILES_NAMES":
                names |= {*ast.literal_eval(node.value).values()}
    assert len(names) > 10
    assert [name for name in sorted(names) if not run_folder.is_published(name)] == []


# ---- From a trainer ------------------------------------------------------------------------------


def hub_settings(**settings):
    return {"push_to_hub": True, "hub_model_id": "model"} | settings


def test_a_trainer_without_a_token_says_so_before_it_trains(home, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="no Hugging Face token") as error:
        train("new", "base", **hub_settings())
    assert str(error.value).endswith("hf-losses publish new --repo model")
    assert not Path("new").exists()


def test_push_to_hub_of_a_trainer(home, hub):
    trainer = train("new", "base")
    trainer.train()
    commit = trainer.push_to_hub(tasks="text-classification", language="en", private=True)
    assert commit.commit_message == "End of training"
    assert hub.private == {"me/new"}
    published = hub.files["me/new"]
    assert {"model.safetensors", "trainer_state.json", "tokenizer.json"} <= published.keys()
    assert ModelCard(published["README.md"].decode()).data.language == ["en"]
    job = trainer.push_to_hub(blocking=False, tasks="text-classification", language="en")
    assert job.result().oid == commit.oid
    assert len(hub.commits["me/new"]) == 1

    trainer.model.classifier.bias.data.zero_()
    hub.faults = [Fault("POST", "/commit/", status=403)]
    with pytest.raises(ValueError, match="no right to write to me/new") as error:
        trainer.push_to_hub()
    main(resume(str(error.value)))
    assert hub.files["me/new"]["model.safetensors"] == Path("new/model.safetensors").read_bytes()


def test_a_push_at_a_save_that_fails_does_not_stop_the_training(home, hub, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "hub_token": TOKEN}
    trainer = train("new", "base", **hub_settings(**settings, hub_always_push=True))
    hub.faults = [Fault("POST", COMMIT, status=403)]
    trainer.train()
    assert trainer.state.global_step == 3
    (line,) = [r.getMessage() for r in caplog.records if "was not pushed" in r.getMessage()]
    assert resume(line) == ["publish", "new/checkpoint-1", "--repo", REPO]
    assert len(hub.commits[REPO]) == 2  # Of the steps after the first.
    hub.faults = [Fault("POST", COMMIT, status=403)]
    trainer.model.classifier.bias.data.zero_()
    trainer.save_model()
    assert "The model is saved but not pushed" in caplog.text
    trainer.push_to_hub()
    published = hub.files[REPO]
    assert published["model.safetensors"] == Path("new/model.safetensors").read_bytes()
    assert not load_file("new/model.safetensors")["classifier.bias"].any()
    for text in [*published.values(), *hub.received, *map(Path.read_bytes, files("new"))]:
        assert TOKEN.encode() not in text


def test_a_checkpoint_that_is_removed_meanwhile_is_published(home, hub, monkeypatch, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = train("new", "base", **hub_settings(**settings))
    gone = threading.Event()

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:  # Only the checkpoint of step 2 is left.
                assert not Path("new/checkpoint-1").exists()
                gone.set()

    trainer.add_callback(Watch())
    hub.faults = [Fault("POST", "/validate-yaml", status=503)]
    monkeypatch.setattr(upload, "sleep", lambda seconds: gone.wait(60))
    trainer.train()
    trainer._finish_current_push()
    assert hub.faults[0].times == 0
    assert gone.is_set()
    assert "was not pushed" not in caplog.text
    assert "model.safetensors" in hub.files[REPO]
    assert {path.name for path in Path().iterdir()} == {"run", "new", "base"}


def files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("strategy", "folder"), [("checkpoint", "last-checkpoint"), ("all_checkpoints", "checkpoint-2")]
)
def test_a_checkpoint_to_go_on_from(home, hub, strategy, folder):
    settings = {"save_strategy": "steps", "save_steps": 2, "hub_strategy": strategy}
    trainer = train("new", "base", **hub_settings(**settings))
    trainer.train()
    published = hub.files[REPO]
    whole = {path.name for path in files("new/checkpoint-2")}
    names = {name.partition("/")[2] for name in published if name.startswith(f"{folder}/")}
    assert "optimizer.pt" in names
    assert names == whole - {"training_args.bin"}
    assert not [name for name in published if "optimizer" in name and "/" not in name]
    for name in names:
        path = Path("downloaded") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(published[f"{folder}/{name}"])
    again = train("again", "base")
    again.train(resume_from_checkpoint="downloaded")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
