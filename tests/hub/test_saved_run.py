"""A saved model gives back the very loss it was trained with."""

import json
import os
import subprocess
import sys

import pytest
import tiny
import torch
from hub import Fault, Hub
from huggingface_hub import constants
from transformers import Trainer, TrainerCallback, ViTForImageClassification

from hf_losses import LossTrainer, get_loss, load_loss
from hf_losses.hub.outage import HubUnreachable

OPTIONS = {"alpha": 0.3, "label_smoothing": 0.1, "weight": [1.0, 2.0, 0.5], "max_weight": 50.0}
LOSS = {"name": "strict_m_power", **OPTIONS}


@pytest.fixture
def saved(tmp_path):
    """Saves a tiny model that was to be trained with a loss; returns its folder."""

    def saved(loss):
        trainer = LossTrainer(model=tiny.vit(), args=tiny.arguments(tmp_path), loss=loss)
        trainer.save_model(str(tmp_path / "model"))
        return tmp_path / "model"

    return saved


def test_it_is_the_same_loss(saved):
    loss = get_loss("strict_m_power", **OPTIONS)
    loaded = load_loss(saved(loss))
    assert loaded.config == loss.config
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    assert torch.equal(loaded(logits, labels), loss(logits, labels))
    assert not torch.equal(loaded(logits, labels), get_loss("strict_m_power")(logits, labels))


def test_a_record_that_another_training_left_behind_is_not_believed(saved):
    folder = saved("strict_l")
    assert load_loss(folder).spec.name == "strict_l"
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hf_losses": {"name": "focal", "gamma": 2.0}}))
    with pytest.raises(ValueError, match="the loss 'focal': another training has saved its model"):
        load_loss(folder)
    # It may have been named before the first batch told the problem type.
    path.write_text(json.dumps(config | {"hf_losses": {"name": "strict_l", "problem_type": "x"}}))
    assert load_loss(folder).spec.name == "strict_l"


@pytest.mark.parametrize("state", [(1, 1), (0, 0), (1, 0)], ids=str)
def test_a_stock_training_in_the_folder_of_one_before(tmp_path, caplog, state):
    for cls, saves in zip((LossTrainer, Trainer), state, strict=True):
        settings = {"loss": "strict_l"} if cls is LossTrainer else {}
        args = tiny.arguments(tmp_path)
        trainer = cls(tiny.bert(), args, train_dataset=tiny.texts(), **settings)
        trainer.train()
        trainer.save_model()
        if saves:
            trainer.save_state()
    if state[1]:
        with pytest.raises(ValueError, match="loss none: another training has saved its model"):
            load_loss(tmp_path)
    else:  # It may be a part of a user's own model, whose record this is.
        assert load_loss(tmp_path).spec.name == "strict_l"
        assert "may be that of an earlier training" in caplog.text


class SaveInBetween(TrainerCallback):
    def on_step_end(self, args, state, control, model, **kwargs):
        model.save_pretrained(args.output_dir)


def test_a_model_that_is_saved_in_between_names_the_loss_with_its_problem_type(tmp_path):
    trainer = LossTrainer(
        tiny.bert(),
        tiny.arguments(tmp_path),
        train_dataset=tiny.texts(label=tiny.yes_or_no_per_class),
        loss="strict_l",
        callbacks=[SaveInBetween()],
    )
    trainer.train()
    assert load_loss(tmp_path).problem_type == "multi_label_classification"


def test_what_cannot_be_given_back_is_said(saved, tmp_path):
    with pytest.raises(ValueError, match="a loss without a registered name"):
        load_loss(saved(torch.nn.MultiMarginLoss()))
    with pytest.raises(ValueError, match=r"cannot read hf_losses\.json of"):
        load_loss(tmp_path)
    (tmp_path / "hf_losses.json").write_text('{"name": "strict_n"}')
    with pytest.raises(ValueError, match="Did you mean 'strict_m'"):
        load_loss(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read hf_losses\.json of 'no such name'"):
        load_loss("no such name")


@pytest.mark.parametrize("record", ['{"alpha": 1}', "[]", "null", '{"name": null}', '"dft"'])
@pytest.mark.parametrize("file", ["hf_losses.json", "config.json"])
def test_a_record_that_is_damaged_is_an_error(tmp_path, file, record):
    content = record if file == "hf_losses.json" else f'{{"hf_losses": {record}}}'
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_loss(tmp_path)


@pytest.fixture
def reachable(hub, monkeypatch, tmp_path):
    """Downloads come from the stand-in, or from a server that does not exist."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def reachable(yes=True):
        url = hub.url if yes else "http://127.0.0.1:9"  # Nobody listens there.
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    reachable()
    return reachable


@pytest.mark.parametrize(
    ("method", "fault", "reason"),
    [
        (None, "no server", "Connection refused"),
        (None, "offline", "HF_HUB_OFFLINE"),
        ("HEAD", {"status": 503}, "503"),
        ("HEAD", {}, "disconnected"),
        ("GET", {"status": 500}, "500"),
    ],
)
def test_an_outage_of_the_hub(hub, reachable, monkeypatch, method, fault, reason):
    hub.files["me/model"] = {"hf_losses.json": json.dumps(LOSS).encode(), "config.json": b"{}"}
    hub.commits["me/model"] = []
    reachable(fault != "no server")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", fault == "offline")
    if method:
        hub.faults = [Fault(method, "/resolve/", times=100, **fault)]
    message = rf"the Hub could not be reached for hf_losses\.json of 'me/model' \(.*{reason}"
    with pytest.raises(HubUnreachable, match=message):
        load_loss("me/model")
    reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.faults = []
    assert load_loss("me/model").config == LOSS


@pytest.mark.parametrize("files", [None, {"config.json": b"{}"}], ids=["repository", "file"])
def test_what_the_hub_does_not_have_is_no_outage(hub, reachable, files):
    if files:
        hub.files["me/model"], hub.commits["me/model"] = files, []
    with pytest.raises(ValueError, match=r"cannot read hf_losses\.json of 'me/model'") as raised:
        load_loss("me/model")
    assert not isinstance(raised.value, HubUnreachable)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["me/model", "me/other"])
def test_from_the_hub(tmp_path, name):
    with Hub() as hub:
        hub.files["me/model"] = {"hf_losses.json": json.dumps(LOSS).encode()}
        hub.commits["me/model"] = []
        program = f"import hf_losses, json; loss = hf_losses.load_loss({name!r}, revision='v1'); "
        program += "print(json.dumps(loss.config))"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | hub.environment(tmp_path),
            capture_output=True,
            text=True,
        )
    if name == "me/model":
        assert json.loads(done.stdout) == LOSS, done.stderr
        assert hub.counted("GET", "/me/model/resolve/v1/hf_losses.json") == 1
    else:
        assert "UsageError: cannot read hf_losses.json of 'me/other'" in done.stderr


class WithOwnArguments(ViTForImageClassification):
    def __init__(self, config, dropout):
        super().__init__(config)
        self.dropout = torch.nn.Dropout(dropout)


def test_the_best_model_is_loaded_into_a_class_with_arguments_of_its_own(tmp_path):
    data, model = tiny.images(16), WithOwnArguments(tiny.vit().config, 0.1)
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    settings |= {"eval_steps": 1, "learning_rate": 0.1, "load_best_model_at_end": True}
    args = tiny.arguments(tmp_path, metric_for_best_model="cross_entropy", **settings)
    trainer = LossTrainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_cross_entropy"] == pytest.approx(best, rel=1e-5)
