"""A model card is true, runs, shows nothing private and is the same wherever it is made."""

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTImageProcessor,
)

from hf_losses import LossTrainer, get_loss, get_spec, list_losses
from hf_losses.citation import LIBRARY_CITATION, PAPER_CITATION
from hf_losses.hub.card import write_card
from hf_losses.hub.card_plots import curves

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "a" * 34
MRPC = {
    "task": "mrpc",
    "model": "bert-base-uncased",
    "base_model": "bert-base-uncased",
    "pipeline_tag": "text-classification",
    "classes": ["not_equivalent", "equivalent"],
    "columns": ["sentence1", "sentence2"],
    "dataset": {
        "name": "GLUE MRPC",
        "id": "nyu-mll/glue",
        "config": "mrpc",
        "splits": {"validation": "validation", "sample": "validation"},
        "partial": ["sample"],
        "rows": {"train": 3668, "validation": 408, "sample": 10},
    },
    "seed": 42,
    "metrics": {
        "validation": {"f1": 0.9, "accuracy": 0.86, "loss": 0.3, "cross_entropy": 0.4},
        "sample": {"f1": 0.8, "accuracy": 0.7, "loss": None, "cross_entropy": 0.5},
    },
}


@pytest.fixture
def folder(tmp_path):
    """Writes the files of a run; returns its folder."""

    def folder(loss="strict_l", result=None, config=None, **files):
        path = tmp_path / "model"
        path.mkdir(exist_ok=True)
        loss = loss if isinstance(loss, dict) else {"name": loss}
        config = {"architectures": ["BertForSequenceClassification"]} | (config or {})
        files = {"hf_losses": loss, "config": config, "result": result} | files
        for name, content in files.items():
            if content is not None:
                (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return path

    return folder


def card_of(folder, **options):
    """The card's text and metadata, which huggingface_hub reads as they were written."""
    write_card(folder, **options)
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)  # Raises if the model-index lacks something.
    written = yaml.safe_load(text.split("---\n")[1])
    assert ModelCardData(**written).to_dict() == written
    for name in [*written.get("datasets", []), *filter(None, [written.get("base_model")])]:
        validate_repo_id(name)
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (folder / picture).is_file()
    for block in re.findall(r"^\|.*?\n\n", text, re.MULTILINE | re.DOTALL):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.split("\n") if line}) == 1
    assert "\n\n\n" not in text
    assert "None" not in text.replace("top_k=None", "")
    return card.text, card.data


# ---- The loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_losses())
def test_it_says_what_the_registry_says_of_the_loss(folder, no_pictures, name):
    spec = get_spec(name)
    text, data = card_of(folder(get_loss(name).config))
    assert {"hf_losses", f"loss:{name}"} <= set(data.tags)
    assert f"| formula | `{spec.full_formula}` |" in text
    assert f"| kind | {spec.kind}: " in text
    assert ("| gradient weight |" in text) == bool(spec.weight_formula)
    for parameter, record in spec.parameters.items():
        assert f"| `{parameter}` | {record.default:g} ({record.help}) |" in text
    assert (PAPER_CITATION in text) == (spec.is_of_paper or name == "smae")
    assert LIBRARY_CITATION in text
    assert ("`e` is prediction minus target" in text) == (spec.task == "regression")


def test_options_of_the_loss(folder):
    options = {"alpha": 0.3, "max_weight": "inf", "label_smoothing": 0.1, "weight": [1.0, 2.5]}
    text, _ = card_of(folder({"name": "strict_m_power", **options}))
    for row in (
        *("| `alpha` | 0.3 (", "| `max_weight` | inf (", "| label smoothing | 0.1 |"),
        *("| class weights | 1, 2.5 |", "![strict_m_power beside cross_entropy"),
    ):
        assert row in text
    many = {"name": "strict_m", "weight": [1.0] * 1000}
    assert "| class weights | 1000 numbers |" in card_of(folder(many))[0]


@pytest.mark.parametrize(
    ("loss", "x", "value", "weight"),
    [
        ({"name": "strict_m_power", "alpha": 2.0}, 0.5, 3.0, 8.0),
        ({"name": "strict_m", "max_weight": 2.0}, 0.25, 1 + 2 * 0.6931471805599453, 2.0),
        ({"name": "huber", "delta": 0.5}, 3.0, 0.5 * (3 - 0.25), 0.5),
    ],
)
def test_the_picture_has_the_parameters_of_the_run(loss, x, value, weight):
    points = curves(get_loss(**loss, reduction="none"), torch.tensor([x], dtype=torch.float64))
    assert points["loss"].item() == pytest.approx(value, rel=1e-6)
    assert points["weight"].item() == pytest.approx(weight, rel=1e-6)


def test_other_parameters_give_another_picture(folder):
    pictures = set()
    for loss in ({"alpha": 0.5}, {"alpha": 2.0}, {"alpha": 2.0, "max_weight": 5.0}):
        path = folder({"name": "strict_m_power", **loss})
        write_card(path)
        pictures.add((path / "loss.png").read_bytes())
    assert len(pictures) == 3


@pytest.mark.parametrize("name", ["__main__:focal", "registered_elsewhere"])
def test_a_loss_that_is_not_ours(folder, name):
    text, data = card_of(folder(name))
    assert f"loss:{name}" in data.tags
    assert f"`{name}`, a loss of the author's own" in text
    assert "load_loss" not in text
    assert "loss.png" not in text
    assert PAPER_CITATION not in text


# ---- Results and data ----------------------------------------------------------------------------


def test_results_on_a_dataset_of_the_hub(folder, no_pictures):
    text, data = card_of(folder(result=MRPC), repo_id="me/my-mrpc")
    results = {(r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results}
    # Those of the sample are not the split's.
    assert results == {("f1", 0.9, "validation"), ("accuracy", 0.86, "validation")}
    first = data.eval_results[0]
    assert (first.dataset_type, first.dataset_name) == ("nyu-mll/glue", "GLUE MRPC")
    assert (first.dataset_config, first.task_type) == ("mrpc", "text-classification")
    assert (data.model_name, data.datasets) == ("my-mrpc", ["nyu-mll/glue"])
    assert (data.base_model, data.metrics) == ("bert-base-uncased", ["accuracy", "f1"])
    assert "| set | accuracy | f1 | cross_entropy | loss |" in text
    assert "| validation | 0.8600 | 0.9000 | 0.4000 | 0.3000 |" in text
    assert "| sample (a part of `validation`) | 0.7000 | 0.8000 | 0.5000 | – |" in text
    assert "on [GLUE MRPC](https://huggingface.co/datasets/nyu-mll/glue)" in text
    assert "fine-tuned from [bert-base-uncased](https://huggingface.co/bert-base-uncased)" in text
    assert "Examples: 3,668 train, 408 validation, 10 sample." in text
    assert "One run with one seed (42) does not rank losses." in text


def test_local_files_are_named_in_the_text_alone(folder, no_pictures):
    local = {"name": "a.csv", "id": None, "about": "the files `a.csv`, `b.csv`"}
    text, data = card_of(folder(result=MRPC | {"dataset": local, "base_model": None}))
    assert "on a.csv, with the loss" in text
    assert "The data: the files `a.csv`, `b.csv`." in text
    assert "fine-tuned from `bert-base-uncased` for" in text
    assert (data.datasets, data.eval_results, data.base_model) == (None, None, None)


@pytest.fixture
def trained(tmp_path, monkeypatch, no_pictures):
    """Trains a tiny model and makes its card; returns its folder, the working directory's child."""
    monkeypatch.chdir(tmp_path)

    def trained(model=None, data=None, card=None, processor=None, trainer=None, **settings):
        data = data or tiny.texts()
        loss = settings.pop("loss", "liberal_exp")
        trainer = LossTrainer(
            model=model or tiny.bert(),
            args=tiny.arguments(tmp_path / "model", **settings),
            train_dataset=data,
            eval_dataset=data,
            loss=loss,
            processing_class=processor,
            compute_metrics=lambda outputs: {"accuracy": len(outputs.label_ids) / 100},
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card(**(card or {}))
        return tmp_path / "model"

    return trained


def test_a_plain_script_that_names_its_dataset(trained, pictures):
    named = {"dataset": "GLUE MRPC", "dataset_tags": "nyu-mll/glue", "dataset_args": "mrpc"}
    card = named | {"language": "en", "license": "mit", "tags": ["mine"], "model_name": "my-model"}
    path = trained(card=card, eval_strategy="steps", eval_steps=1)
    text, data = card_of(path, repo_id="me/published")
    assert (data.language, data.license, data.model_name) == (["en"], "mit", "published")
    assert {"mine", "hf_losses", "loss:liberal_exp"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("GLUE MRPC", "nyu-mll/glue")
    assert (result.dataset_config, result.metric_value) == ("mrpc", 0.4)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert "| evaluation | 0.4000 | " in text
    assert "![Training and validation by epoch](learning_curve.png)" in text
    for row in (
        '| loss | `{"name": "liberal_exp"}` |',
        "| learning rate | 5e-05, linear |",
        "| batch | 8 per process × 1 accumulated |",
        "| precision | float32 |",
        "| gradient clipping | at norm 1 |",
        "| seed | 3 |",
        "| optimizer steps | 3 (0.6 epochs) |",
        "| steps with a gradient that was not finite | 0 |",
    ):
        assert row in text


def test_a_plain_script_that_names_nothing(trained, pictures):
    text, data = card_of(trained())
    assert (data.datasets, data.eval_results) == (None, None)
    assert "What data it was trained on is not recorded here." in text
    assert "## Results" not in text
    assert "learning_curve.png" in text
    assert text.startswith("\n# model\n")


def test_what_reads_the_files_is_not_the_datasets_name(trained):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(tiny.texts())
    data.info.builder_name = "imagefolder"
    assert card_of(trained(data=data))[1].datasets is None


@pytest.mark.parametrize(("kept", "shown"), [(True, 2), (False, 3)])
def test_the_results_are_those_of_the_weights(folder, no_pictures, kept, shown):
    log = [
        {"eval_accuracy": step / 10, "eval_runtime": 1.0, "epoch": 0.1 * step, "step": step}
        for step in (1, 2, 3)
    ]
    state = {"log_history": log, "global_step": 4, "epoch": 0.4, "best_global_step": 2}
    args = tiny.arguments("unused").to_dict() | {
        "load_best_model_at_end": kept,
        "metric_for_best_model": "accuracy",
    }
    text, _ = card_of(folder(trainer_state=state, training_args=args))
    assert f"| evaluation | {shown / 10:.4f} |" in text
    assert f"Evaluated after step {shown}." in text
    assert ("those of step 2, the best by accuracy" in text) == kept


def test_several_validation_sets_and_numbers_that_are_none(folder, no_pictures):
    log = [
        {"eval_a_accuracy": 0.5, "eval_a_runtime": 1.0, "epoch": 1.0, "step": 4},
        {"eval_b_accuracy": float("nan"), "eval_b_runtime": 1.0, "epoch": 1.0, "step": 4},
        {"train_runtime": 1.0, "train_loss": 0.1, "epoch": 1.0, "step": 4},
    ]
    path = folder(trainer_state={"log_history": log, "global_step": 4, "epoch": 1.0})
    (path / "README.md").write_text("---\ndatasets:\n- me/mine\n---\n", encoding="utf-8")
    text, data = card_of(path)
    assert "| a | 0.5000 |\n| b | – |" in text
    (result,) = data.eval_results
    assert (result.dataset_type, result.metric_name) == ("me/mine", "Accuracy (a)")


# ---- How to use ----------------------------------------------------------------------------------


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Some", "text", ".", "other", "Another"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {name: f"[{name[:4].upper().strip('_')}]" for name in ("pad_token", "mask_token")}
    special |= {"unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, model_input_names=["input_ids", "attention_mask"], **special
    )


def t5():
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=tiny.VOCABULARY, decoder_start_token_id=0, **sizes)
    return T5ForConditionalGeneration(config)


def run_code(folder):
    """Executes the card's code where the folder lies; returns its variables."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    return namespace


def test_the_code_for_text(trained, capsys):
    model = tiny.bert(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    words = tokenizer()
    namespace = run_code(
        trained(model, processor=words, loss=get_loss("strict_m_power", alpha=0.3))
    )
    with torch.no_grad():
        shares = model.eval()(**words("Some text.", return_tensors="pt")).logits.softmax(-1)[0]
    (answer,) = namespace["pipe"]("Some text.")
    assert answer["label"] == "abc"[shares.argmax()]
    assert answer["score"] == pytest.approx(shares.max().item(), abs=1e-6)
    assert str(answer["label"]) in capsys.readouterr().out
    assert namespace["loss"].config == {"name": "strict_m_power", "alpha": 0.3}


def test_the_code_for_images(trained):
    Image.new("RGB", (9, 9), "red").save("photo.jpg")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    model = tiny.vit()
    namespace = run_code(trained(model, tiny.images(), processor=processor))
    inputs = processor(Image.open("photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        best = model.eval()(**inputs).logits.softmax(-1).max().item()
    assert namespace["pipe"]("photo.jpg")[0]["score"] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "label", "task", "loss"),
    [
        (lambda: tiny.bert(num_labels=1), tiny.number, "text-classification", "smae"),
        (tiny.bert, tiny.yes_or_no_per_class, "text-classification", "strict_l"),
        (
            lambda: tiny.bert(BertForTokenClassification),
            tiny.class_of_each_token,
            "token-classification",
            "liberal_exp",
        ),
        (tiny.causal_lm, tiny.some_next_tokens, "text-generation", "strict_m"),
        (t5, tiny.some_next_tokens, "text-generation", "strict_m"),
        (lambda: tiny.bert(BertForMaskedLM), tiny.some_next_tokens, "fill-mask", "strict_m"),
    ],
    ids=["regression", "multi-label", "token", "causal-lm", "seq2seq", "masked-lm"],
)
def test_the_code_for_other_tasks(trained, model, label, task, loss):
    model = model()
    path = trained(model, tiny.texts(label=label), processor=tokenizer(), loss=loss)
    text, data = card_of(path)
    assert data.pipeline_tag == task
    namespace = run_code(path)
    if label is tiny.number:
        assert "(regression)" in text
        inputs = tokenizer()("Some text.", return_tensors="pt")
        (answer,) = namespace["pipe"]("Some text.")
        assert answer["score"] == pytest.approx(model.eval()(**inputs).logits.item(), abs=1e-6)
        assert "without an estimate of their error" in text
    if label is tiny.yes_or_no_per_class:
        assert "(several labels per example)" in text
        assert 'pipe("Some text.", top_k=None)' in text
        assert len(namespace["pipe"]("Some text.", top_k=None)) == tiny.CLASSES


def test_the_code_without_a_tokenizer(trained):
    model = tiny.bert()
    namespace = run_code(trained(model))
    assert torch.equal(namespace["model"].classifier.weight, model.classifier.weight)


def saved_and_loaded(model, path, **options):
    model.save_pretrained(path)
    return type(model).from_pretrained(path, **options)


def test_an_adapter_gets_an_adapters_card(trained, tmp_path):
    base = saved_and_loaded(tiny.bert(), tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    path = trained(model, processor=tokenizer(), card={"dataset_tags": "me/mine"})
    text, data = card_of(path)
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-classification")
    assert (data.base_model, data.datasets) == (None, ["me/mine"])
    assert "A LORA adapter of `base` for text classification" in text
    assert "| adapter | rank 2, alpha 8, dropout 0.0 |" in text
    assert str(tmp_path) not in (path / "README.md").read_text(encoding="utf-8")
    namespace = run_code(path)
    with torch.no_grad():
        logits = model.eval()(**namespace["inputs"]).logits
    assert torch.allclose(namespace["logits"], logits, atol=1e-6)


def test_an_adapter_of_an_image_model_with_another_head(trained, tmp_path):
    Image.new("RGB", (9, 9), "red").save("photo.jpg")
    options = {"num_labels": tiny.CLASSES, "ignore_mismatched_sizes": True}
    base = saved_and_loaded(tiny.vit(num_labels=7), tmp_path / "base", **options)
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["classifier"])
    model = get_peft_model(base, config)
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    path = trained(model, tiny.images(), processor=processor)
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "num_labels=3, ignore_mismatched_sizes=True" in card
    namespace = run_code(path)
    with torch.no_grad():
        logits = model.eval()(**namespace["inputs"]).logits
    assert torch.allclose(namespace["logits"], logits, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        ({"name": "smae"}, "logits"),
        ({"name": "strict_l"}, "logits.softmax(-1)"),
        ({"name": "strict_l", "problem_type": "multi_label_classification"}, "logits.sigmoid()"),
    ],
)
def test_an_adapter_shows_what_its_logits_mean(folder, no_pictures, loss, shown):
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "base"}
    path = folder(loss, adapter_config=adapter)
    tokenizer().save_pretrained(path)
    assert f"\nprint({shown})\n" in card_of(path)[0]


def test_a_bar_does_not_end_a_cell(folder, no_pictures):
    args = tiny.arguments("unused").to_dict() | {"optim": "a|b"}
    assert "| optimizer | a\\|b, weight decay 0 |" in card_of(folder(training_args=args))[0]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ({"name": "poly1", "epsilon": -0.9}, "strict"),
        ({"name": "poly1", "epsilon": 0.5}, "liberal"),
        ({"name": "focal", "gamma": 0}, "neutral"),
        ({"name": "gce", "q": 0.1}, "liberal"),
        ({"name": "strict_m_power", "alpha": 3}, "strict"),
    ],
    ids=str,
)
def test_the_kind_is_that_of_the_parameters(folder, no_pictures, loss, kind):
    text, _ = card_of(folder(loss))
    assert f"| kind | {kind}: " in text
    assert f"`{loss['name']}` ({kind}) of `hf_losses`" in text
    assert get_loss(**loss).kind == kind


def test_an_audio_classifier_reads_no_text(folder, no_pictures):
    for name in ("Wav2Vec2ForSequenceClassification", "ASTForAudioClassification"):
        path = folder(config={"architectures": [name]}, preprocessor_config={})
        text, data = card_of(path)
        assert data.pipeline_tag == "audio-classification"
        assert 'pipeline("audio-classification"' in text
        assert 'pipe("sound.wav")' in text


@pytest.mark.parametrize("names", [{0: 1, 1: 7041}, {0: "LABEL_0", 1: 7041}])
def test_classes_may_be_named_by_anything(folder, no_pictures, names):
    text, _ = card_of(folder(config={"id2label": names}))
    assert f"Classes: `{names[0]}`, `7041`." in text


OLD_CARD = """---
base_model: google-bert/bert-base-uncased
datasets: [nyu-mll/glue]
---
"""


def test_a_result_of_a_users_own_leaves_what_an_older_card_names(folder, no_pictures):
    path = folder(result={"metric": "accuracy", "metrics": {"test": {"accuracy": 0.8}}})
    (path / "README.md").write_text(OLD_CARD)
    text, data = card_of(path)
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", ["nyu-mll/glue"])
    assert "fine-tuned from" in text
    assert "| test | 0.8000 |" in text


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"hardware": {"cpu_count": 8}}, "8 CPU cores"),
        ({"hardware": {"gpu": "A100"}, "training": {"world_size": 2}}, "2 × A100"),
        ({"dataset": "mrpc"}, "on mrpc"),
        ({"dataset": None}, "not recorded here"),
        ({"dataset": ["a", "b"]}, "on a, b"),
        ({"metrics": {"accuracy": 0.8}}, "| evaluation | 0.8000 |"),
        ({"metrics": {"test": {"accuracy": 0.7}, "runtime": 12.5}}, "| test | 0.7000 |"),
    ],
)
def test_a_result_of_a_users_own_may_say_little(folder, no_pictures, result, shown):
    assert shown in card_of(folder(result=result))[0]


@pytest.mark.parametrize(
    ("chosen", "weights", "shown"),
    [
        ({"mixed_precision": "bf16"}, None, "bf16"),
        ({"mixed_precision": "no", "bf16": True}, "float32", "bf16"),
        ({"mixed_precision": "no"}, "bfloat16", "bfloat16"),
        ({"mixed_precision": "fp16"}, "float32", "fp16"),
        ({"mixed_precision": "bf16"}, "bfloat16", "bf16, weights in bfloat16"),
        ({"fp16": True}, None, "fp16"),
        ({}, None, "float32"),
    ],
)
def test_the_precision(folder, no_pictures, chosen, weights, shown):
    args = tiny.arguments("unused").to_dict() | chosen
    text, _ = card_of(folder(config={"dtype": weights}, training_args=args))
    assert f"| precision | {shown} |" in text


def test_the_precision_that_the_launcher_chose(trained, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert "| precision | bf16 |" in card_of(trained())[0]


def test_the_batch_that_was_found_and_all_gpus_of_a_process(folder, no_pictures):
    args = tiny.arguments("unused").to_dict() | {"per_device_train_batch_size": 32}
    state = {"train_batch_size": 8, "global_step": 4, "epoch": 1.0}
    result = {"training": {"world_size": 2}}
    text, _ = card_of(folder(result=result, training_args=args, trainer_state=state))
    assert "| batch | 8 per process × 1 accumulated × 2 processes = 16 |" in text


def test_the_batch_is_that_of_the_resumed_training(trained):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    path = trained(**saving)
    trainer = LossTrainer(
        tiny.bert(),
        tiny.arguments(path, max_steps=4, per_device_train_batch_size=4),
        train_dataset=tiny.texts(),
        loss="liberal_exp",
    )
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    trainer.save_state()
    assert "| batch | 4 per process × 1 accumulated |" in card_of(path)[0]


def test_pairs_of_texts(folder, no_pictures):
    path = folder(result=MRPC)
    tokenizer().save_pretrained(path)
    assert '"text_pair": "Some other text."' in card_of(path)[0]


# ---- The same everywhere, and nothing private ----------------------------------------------------


def test_the_same_run_gives_the_same_card(folder):
    log = [{"loss": 1 / step, "step": step, "epoch": step / 2} for step in (1, 2, 3)]
    state = {"log_history": log, "global_step": 3, "epoch": 1.5}
    path = folder({"name": "strict_m_power", "alpha": 0.3}, result=MRPC, trainer_state=state)
    cards = []
    for _ in range(2):
        write_card(path, repo_id="me/model")
        names = ("README.md", "loss.png", "learning_curve.png")
        cards.append([(path / name).read_bytes() for name in names])
    assert cards[0] == cards[1]


def test_without_matplotlib_there_are_no_pictures(folder, no_pictures):
    path = folder()
    (path / "loss.png").write_bytes(b"of another run")
    text, _ = card_of(path)
    assert "![" not in text
    assert not list(path.glob("*.png"))


def test_no_path_and_no_token(folder, tmp_path):
    home = str(tmp_path / "home")
    old = {
        "base_model": f"{home}/models/bert",
        "tags": [
            f"base_model:adapter:{home}/models/bert",
            f"at:{home}",
            "lora",
            "base_model:adapter:./here",
        ],
        "datasets": [f"{home}/data", "../data"],
        "license": "mit",
    }
    args = tiny.arguments(home, deepspeed=None).to_dict() | {"hub_token": TOKEN, "run_name": home}
    adapter = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": home}
    state = {
        "log_history": [],
        "global_step": 3,
        "epoch": 1.0,
        "best_model_checkpoint": f"{home}/checkpoint-3",
    }
    path = folder(training_args=args, adapter_config=adapter, trainer_state=state)
    (path / "README.md").write_text(f"---\n{yaml.safe_dump(old)}---\n{home} {TOKEN}\n")
    text, data = card_of(path)
    whole = (path / "README.md").read_text()
    assert str(tmp_path) not in whole
    assert "./" not in whole
    assert TOKEN not in whole
    assert "base_model" not in data.to_dict()
    assert data.license == "mit"
    assert set(data.tags) == {"lora", "hf_losses", "loss:strict_l"}
    assert '    "home"\n' in text


def test_the_citation_is_that_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert PAPER_CITATION in readme
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["title"] in LIBRARY_CITATION.replace("\\_", "_")
    assert cff["references"][0]["title"] in " ".join(PAPER_CITATION.split())
