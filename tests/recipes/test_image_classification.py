"""recipes/image_classification.py as users call it, on tiny random models and images made here."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from products import diagonals, product
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    set_seed,
)

from hf_losses import list_losses

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import image_classification  # noqa: E402

from hf_losses.data.images import dataset as image_data  # noqa: E402
from hf_losses.data.images import files  # noqa: E402
from hf_losses.data.images import inputs as image_pipeline  # noqa: E402
from hf_losses.data.images import pictures as images  # noqa: E402
from hf_losses.data.labels import encode  # noqa: E402
from hf_losses.training import output_folder as output  # noqa: E402

CLASSES = ["blue", "green", "red"]
RECIPE, FLAGS = image_classification, ("--dataloader_num_workers", "0")


def picture(label, rng, size=(12, 10)):
    """A noisy image in which one channel is the brightest."""
    pixels = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., 2 - label] += 120
    return PIL.Image.fromarray(pixels)


def folder(path, count, seed=0, ending="png", classes=CLASSES):
    rng = np.random.default_rng(seed)
    for i in range(count):
        label = i % len(classes)
        (path / classes[label]).mkdir(parents=True, exist_ok=True)
        picture(label, rng).save(path / classes[label] / f"{i:03}.{ending}")
    return str(path)


def idx_folder(path, train=60, test=20, prefix="", packed=True):
    path.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 2
        pixels = rng.integers(0, 100, (count, 8, 8), dtype=np.uint8)
        pixels[:, :, :4] += (120 * labels)[:, None, None].astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            content = header + array.tobytes()
            file = path / f"{prefix}{name}-{kind}-ubyte"
            if packed:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny ViT without a head, and its image processor."""
    path = tmp_path_factory.mktemp("models") / "tiny-vit"
    set_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        initializer_range=0.2,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.4] * 3).save_pretrained(path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    data = tmp_path / "photos"
    return [
        *("--train_dir", folder(data / "train", 48)),
        *("--validation_dir", folder(data / "validation", 18, seed=1)),
    ]


# ---- What it does ------------------------------------------------------------------------------


def test_trains_on_folders_and_says_where_everything_lies(run, photos, tmp_path, capsys, pictures):
    test = folder(tmp_path / "photos" / "test", 12, seed=2, ending="jpg")
    result, out = run(
        *(*photos, "--test_dir", test, "--loss", "liberal_exp", "--learning_rate", "5e-3"),
        *("--num_train_epochs", "12", "--do_predict", "--augmentation", "none"),
    )
    assert result["metrics"]["test"]["accuracy"] == 1.0
    assert set(result["metrics"]["validation"]) == {
        "accuracy",
        "f1_macro",
        "loss",
        "cross_entropy",
        "ece",
    }
    assert result["loss"] == {"name": "liberal_exp"}
    assert (result["task"], result["model"], result["kind"]) == ("train", "tiny-vit", "liberal")
    assert result["training"]["global_step"] == 24
    assert result["skipped_images"] == []
    assert str(tmp_path) not in (out / "result.json").read_text()
    assert all((out / picture).exists() for picture in pictures)
    shown = capsys.readouterr().out
    for part in ("48 train, 18 validation, 12 test", "tiny-vit", "blue, green, red", str(out)):
        assert part in shown.split("--help")[0]
    tags = ModelCard.load(out / "README.md").data.tags
    assert {"hf_losses", "loss:liberal_exp"} <= set(tags)
    header, *lines = (out / "predictions_test.tsv").read_text().splitlines()
    assert header == "index\tprediction\tlabel"
    for line in lines:
        name, _, label = line.split("\t")
        assert Path(name).parent.name == label
    # What was saved predicts the same by the pipeline that anyone would use.
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    processor = AutoImageProcessor.from_pretrained(out)
    for line in lines[::4]:
        name, prediction, label = line.split("\t")
        image = PIL.Image.open(Path(test) / name).convert("RGB")
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits
        assert logits.argmax(-1).item() == int(prediction)
        assert model.config.id2label[int(prediction)] == label


def rows(count, seed, names=CLASSES):
    rng = np.random.default_rng(seed)
    return {
        "image": [picture(i % 3, rng) for i in range(count)],
        "label": [names[i % 3] if names else i % 3 for i in range(count)],
    }


@pytest.mark.parametrize("kind", ["words", "numbers", "names"])
def test_parquet(run, tmp_path, kind):
    for name, count, seed in (("train", 24, 0), ("validation", 9, 1)):
        table = datasets.Dataset.from_dict(
            rows(count, seed, CLASSES if kind == "words" else None),
            features=datasets.Features(
                image=datasets.Image(),
                label={
                    "words": datasets.Value("string"),
                    "numbers": datasets.Value("int64"),
                    "names": datasets.ClassLabel(names=CLASSES),
                }[kind],
            ),
        )
        table.to_parquet(tmp_path / f"{name}.parquet")
    files = ("--train_file", "train.parquet", "--validation_file", "validation.parquet")
    _, out = run(*files, "--num_train_epochs", "1")
    labels = AutoModelForImageClassification.from_pretrained(out).config.id2label
    assert list(labels.values()) == (["0", "1", "2"] if kind == "numbers" else CLASSES)


def test_folder_laid_out_like_a_dataset_of_the_hub(run, tmp_path):
    folder(tmp_path / "pets" / "train", 30)
    folder(tmp_path / "pets" / "test", 9, seed=1)
    result, _ = run("--dataset_name", "./pets", "--num_train_epochs", "1")
    assert result["task"] == "pets"
    # Without a validation set a tenth of the training set is held out.
    assert set(result["metrics"]) == {"validation", "test"}


@pytest.mark.parametrize(("prefix", "packed"), [("", True), ("", False)])
def test_idx_files(run, tmp_path, prefix, packed):
    data = idx_folder(tmp_path / "drawings", prefix=prefix, packed=packed)
    result, out = run(
        *("--dataset_name", data, "--loss", "strict_m", "--num_train_epochs", "10"),
        *("--augmentation", "none", "--learning_rate", "3e-3"),
        model=None,
    )
    assert result["metrics"]["test"]["accuracy"] >= 0.95
    assert result["model"] == "vit from scratch"
    card = (out / "README.md").read_text()
    assert "`ViTForImageClassification`, trained from scratch for image classification" in card
    assert " on drawings, with the loss `strict_m`" in card
    assert "The data: files of the folder `drawings`. Examples: " in card
    assert "datasets:" not in card  # Nothing of that name is on the Hub.


@pytest.mark.parametrize("limit", [None, 2])
def test_result_json_says_whose_images_they_are(tmp_path, monkeypatch, limit):
    splits = {"train": folder(tmp_path / "a", 30), "test": folder(tmp_path / "b", 9, seed=1)}
    splits = {name: files.load_folder(path) for name, path in splits.items()}
    monkeypatch.setattr(image_data, "load_from_hub", lambda *_: splits)
    data = image_data.ImageArguments(dataset_name="me/pets", max_eval_samples=limit).load()
    facts = output.dataset_facts(data)
    assert (facts["id"], facts["name"], facts["config"]) == ("me/pets", "me/pets", None)
    # A tenth of the training set is held out: neither it nor the rest is the dataset's split.
    assert facts["splits"] == {"train": "train", "validation": "train", "test": "test"}
    assert facts["partial"] == ["train", "validation", *(["test"] if limit else [])]
    assert facts["rows"] == {"train": 27, "validation": limit or 3, "test": limit or 9}


def test_local_images_have_no_name_of_the_hub(tmp_path):
    path = folder(tmp_path / "photos", 30)
    for source in ({"train_dir": path}, {"dataset_name": None}):
        facts = output.dataset_facts(image_data.ImageArguments(**source).load())
        assert (facts["id"], facts["splits"]) == (None, {})
        assert str(tmp_path) not in json.dumps(facts)
        assert ("`photos`" if "train_dir" in source else "scikit-learn") in facts["about"]


def test_no_held_out_images(run, tmp_path):
    data = idx_folder(tmp_path / "drawings")
    arguments = ("--train_val_split", "0", "--num_train_epochs", "1")
    result, _ = run("--dataset_name", data, *arguments)
    assert set(result["metrics"]) == {"test"}
    assert result["training"]["global_step"] == 2  # All 60 images, 32 at once.


def test_selects_by_any_metric_that_an_evaluation_reports(check_best_metrics, photos):
    check_best_metrics(*photos, "--num_train_epochs", "1")


def test_the_best_model_needs_held_out_images(refused, tmp_path):
    data = idx_folder(tmp_path / "drawings")
    message = refused("--dataset_name", data, "--train_val_split", "0", "--load_best_model_at_end")
    assert "--load_best_model_at_end needs a validation set" in message


def test_a_convolutional_network_from_scratch(run, photos):
    _, out = run(
        *(*photos, "--model_type", "resnet", "--num_train_epochs", "1", "--config_overrides"),
        "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic,image_size=16",
        model=None,
    )
    config = AutoModelForImageClassification.from_pretrained(out).config
    assert (config.model_type, config.hidden_sizes) == ("resnet", [8, 16])
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 16, "width": 16}


def test_a_head_for_other_classes_is_replaced(run, photos, tmp_path):
    _, out = run(*photos, "--num_train_epochs", "1")
    drawings = idx_folder(tmp_path / "drawings")
    run("--dataset_name", drawings, "--num_train_epochs", "1", name="next", model=str(out))
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "next").num_labels == 2


def test_a_frozen_backbone_stays_as_it_was(run, photos, tmp_path):
    set_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    base = tmp_path / "resnet"
    ResNetForImageClassification(config).save_pretrained(base)
    ConvNextImageProcessor(size={"shortest_edge": 16}).save_pretrained(base)
    _, out = run(*photos, "--freeze_backbone", "--num_train_epochs", "2", model=str(base))
    before, after = (load_file(path / "model.safetensors") for path in (base, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Running statistics of the batch norms are among those that did not change.
    assert {name.split(".")[0] for name in changed} == {"classifier"}


def test_an_adapter_trains_the_head_of_a_checkpoint_with_as_many_classes(tiny):
    model = AutoModelForImageClassification.from_pretrained(tiny, num_labels=2)
    config = image_classification.ModelArguments(lora=True, lora_r=4)
    known = {"missing_keys": set(), "mismatched_keys": set()}
    wrapped = image_classification.add_adapter(model, config, known, None)
    trained = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert any("classifier" in name for name in trained)
    assert any("lora_A" in name for name in trained)


def test_of_several_heads_the_first_predicts():
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    for given in (logits, (logits, -logits, 3 * logits)):
        assert image_classification.predicted(given, None).tolist() == [1, 0]


def test_adapter_predicts_the_same_on_the_same_base(run, photos, tiny, tmp_path):
    test = folder(tmp_path / "photos" / "test", 12, seed=2)
    arguments = ("--lora", "--lora_r", "4", "--test_dir", test, "--do_predict")
    _, out = run(*photos, *arguments, "--num_train_epochs", "3", "--learning_rate", "5e-3")
    assert not (out / "model.safetensors").exists()
    base = AutoModelForImageClassification.from_pretrained(tiny, num_labels=3)
    torch.nn.init.normal_(base.classifier.weight)  # It must come from the adapter.
    model = PeftModel.from_pretrained(base, out).eval()
    processor = AutoImageProcessor.from_pretrained(out)
    for line in (out / "predictions_test.tsv").read_text().splitlines()[1:]:
        name, prediction, _ = line.split("\t")
        image = PIL.Image.open(Path(test) / name).convert("RGB")
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits
        assert logits.argmax(-1).item() == int(prediction)


def test_balanced_class_weights_need_no_pixels(run, photos, monkeypatch):
    more = Path(photos[1]) / "red"
    for i in range(4):
        picture(2, np.random.default_rng(i)).save(more / f"more{i}.png")
    # Training asks for whole batches.
    monkeypatch.setattr(image_pipeline.ModelInputs, "__getitem__", pytest.fail)
    arguments = [*photos, "--loss", "strict_l", "--loss_kwargs", '{"weight": "balanced"}']
    result, _ = run(*arguments, "--mixup_alpha", "0.8", "--max_steps", "1")
    assert result["loss"]["weight"] == [52 / (3 * 16), 52 / (3 * 16), 52 / (3 * 20)]


@pytest.mark.parametrize("loss", product(list_losses(task="classification"), keep=diagonals(4)))
def test_every_loss_with_mixup_and_cutmix(run, photos, loss):
    mixing = ("--mixup_alpha", "0.8", "--cutmix_alpha", "1")
    result, out = run(*photos, *mixing, "--loss", loss, "--max_steps", "3", "--logging_steps", "1")
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert log[-1].get("train_nonfinite_grad_steps", 0) == 0
    assert result["metrics"]["validation"]["accuracy"] >= 0


@pytest.mark.slow
def test_workers_and_resuming_do_not_change_the_weights(run, photos):
    arguments = [
        *(*photos, "--mixup_alpha", "0.5", "--num_train_epochs", "3", "--augmentation"),
        *("crop_flip", "--save_strategy", "steps", "--save_steps", "3", "--save_total_limit", "9"),
        *("--per_device_train_batch_size", "12", "--learning_rate", "1e-3"),
    ]
    _, out = run(*arguments)
    _, by_two = run(*arguments, "--dataloader_num_workers", "2", name="by-two")
    last = out / "checkpoint-12"
    (out / "checkpoint-3").rename(out / "kept")
    expected = (out / "model.safetensors").read_bytes()
    assert (by_two / "model.safetensors").read_bytes() == expected
    # From the middle of the first epoch, and from the end of it on.
    for start in (out / "kept", by_two / "checkpoint-6"):
        _, resumed = run(*arguments, "--resume_from_checkpoint", str(start), name="resumed")
        assert (resumed / "model.safetensors").read_bytes() == expected
    assert last.exists()


def test_bfloat16(run, photos):
    result, _ = run(*photos, "--bf16", "--loss", "strict_l", "--num_train_epochs", "1")
    assert np.isfinite(result["metrics"]["validation"]["loss"])


# ---- What it does not take ---------------------------------------------------------------------


@pytest.fixture
def damaged(photos):
    """Images of which two cannot be read: one is cut short, one is text."""
    train = Path(photos[1])
    files = sorted((train / "red").iterdir())
    whole = train / "red" / "cut.jpg"
    picture(2, np.random.default_rng(0), (64, 64)).save(whole)
    whole.write_bytes(whole.read_bytes()[:-400])
    files[0].write_text("no image")
    return photos, files[0].name


def test_names_images_that_cannot_be_read(refused, damaged):
    photos, text = damaged
    message = refused(*photos)
    assert "2 of 49 images cannot be read" in message
    assert f"red/{text}: cannot identify image file" in message
    assert "red/cut.jpg: image file is truncated" in message
    assert "--skip_corrupt" in message


def test_leaves_out_images_that_cannot_be_read(run, damaged, capsys):
    photos, text = damaged
    result, _ = run(*photos, "--skip_corrupt", "--num_train_epochs", "1")
    assert sorted(result["skipped_images"]) == [f"train: red/{text}", "train: red/cut.jpg"]
    shown = capsys.readouterr().out
    assert "47 train" in shown
    assert "Skipped 2 that cannot be read: train: red/" in shown


def test_names_a_corrupt_row_of_a_parquet_file(refused, tmp_path):
    table = rows(6, 0)
    table["image"][4] = {"bytes": b"no image", "path": None}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    assert "row 5: cannot identify" in refused("--train_file", "a.parquet")


def test_names_an_image_that_a_parquet_file_lacks(refused, run, tmp_path):
    table = rows(12, 0)
    table["image"][4] = None
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    assert "row 5: there is no image" in refused("--train_file", "a.parquet")
    result, _ = run("--train_file", "a.parquet", "--skip_corrupt", "--num_train_epochs", "1")
    assert result["skipped_images"] == ["train: row 5"]


@pytest.mark.parametrize(("name", "count"), [("train", 48), ("validation", 18)])
def test_needs_an_image_of_each_set_that_can_be_read(refused, photos, tmp_path, name, count):
    for path in (tmp_path / "photos" / name).rglob("*.png"):
        path.write_bytes(b"no image")
    assert f"none of the {count} {name} images can be read" in refused(*photos, "--skip_corrupt")


def test_a_split_leaves_images_to_train_on(refused, tmp_path):
    photos = folder(tmp_path / "photos", 12)
    message = refused("--train_dir", photos, "--train_val_split", "0.99")
    assert "--train_val_split 0.99 of 12 training images leaves none to train on" in message


def test_refuses_what_is_not_there(refused, photos, tmp_path):
    assert "Did you mean 'train'?" in refused("--train_dir", photos[1] + "s")
    assert "no folder './nowhere'" in refused("--dataset_name", "./nowhere")
    assert "no file 'a.parquet'" in refused("--train_file", "a.parquet")
    (tmp_path / "a.parquet").write_text("text")
    assert "is no parquet file" in refused("--train_file", "a.parquet")
    (tmp_path / "empty").mkdir()
    assert "no images found" in refused("--train_dir", "empty")
    for name in ("a.HEIC", "b.avif"):
        Path("empty", name).touch()
    message = refused("--train_dir", "empty")
    assert "images in formats that cannot be read: a.HEIC, b.avif; convert" in message
    assert "cannot load the model" in refused(*photos, model="./empty")


@pytest.mark.parametrize(
    ("names", "flag", "right"),
    [
        (
            ["train/cat", "train/dog", "test/cat", "test/dog", "validation/cat"],
            "--train_dir",
            ["--train_dir ./photos/train", "--test_dir ./photos/test", "--dataset_name ./photos)"],
        ),
        (
            ["Training/cat", "Training/dog", "Testing/cat", "Testing/dog"],
            "--train_dir",
            ["--train_dir ./photos/Training", "--test_dir ./photos/Testing"],
        ),
        (["train", "test", "unlabeled"], "--train_dir", ["--train_dir ./photos/train"]),
        (["TrainData/cat", "TestData/cat"], "--train_dir", ["--train_dir ./photos/TrainData"]),
        # An unlabelled test set.
        (["train/cat", "train/dog", "test"], "--train_dir", ["--train_dir ./photos/train"]),
        (["train", "val"], "--train_dir", ["--train_dir ./photos/train"]),
        (
            ["animals/train2017/cat", "animals/val2017/cat"],
            "--train_dir",
            ["--train_dir ./photos/animals/train2017", "--dataset_name ./photos/animals)"],
        ),
        (
            ["Train/cat", "Train/dog", "Test/cat"],
            "--dataset_name",
            ["photos/Test is called after the test set", "call it test"],
        ),
    ],
)
def test_refuses_a_folder_whose_sets_would_become_one(refused, tmp_path, names, flag, right):
    folder(tmp_path / "photos", 12, classes=names)
    message = refused(flag, "./photos")
    for part in right:
        assert part.replace("./", "") in message


def test_refuses_sets_of_which_one_holds_another(refused, tmp_path, photos):
    train, validation = photos[1], tmp_path / "photos" / "train" / "held_out"
    folder(validation, 6)
    message = refused("--train_dir", train, "--validation_dir", str(validation))
    assert f"--train_dir {train} holds --validation_dir {validation}" in message
    folder(tmp_path / "more" / "train", 6)
    message = refused(*photos[:2], "--validation_dir", str(tmp_path / "more"))
    assert f"--validation_dir {tmp_path / 'more'} holds folders of sets" in message


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([i / 10 for i in range(24)], "float64", "row 2: label 0.1 is a number that is not whole"),
        ([f"{i / 10}" for i in range(24)], "string", "row 2: label '0.1' is a number that is not"),
        (["2,4", "1"] * 12, "string", "row 1: label '2,4' is a number with a comma"),
        ([f"scan {i}" for i in range(24)], "string", "24 labels would be 24 classes"),
        ([[i % 2, 1] for i in range(24)], None, "column 'label' holds List(Value('int64')), not"),
    ],
)
def test_refuses_labels_that_are_no_classes(refused, tmp_path, labels, kind, message):
    table = rows(24, 0) | {"label": labels}
    kind = datasets.Value(kind) if kind else datasets.List(datasets.Value("int64"))
    features = datasets.Features(image=datasets.Image(), label=kind)
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    assert message in refused("--train_file", "a.parquet")


def test_refuses_a_folder_for_each_image(refused, tmp_path):
    for i in range(24):
        folder(tmp_path / "photos" / f"scan{i:02}", 1, classes=["."])
    assert "photos: 24 labels would be 24 classes" in refused("--train_dir", "photos")


@pytest.mark.parametrize("names", [["train", "car", "bus"], ["test", "control"], ["a/x", "a/y"]])
def test_a_class_may_have_the_name_of_a_set(tmp_path, names):
    path = folder(tmp_path / "photos", 30, classes=names)
    (tmp_path / "photos" / ".cache" / "test" / "x").mkdir(parents=True)
    data = image_data.ImageArguments(train_dir=path).load()
    assert data.classes == sorted(name.rpartition("/")[2] for name in names)
    assert sum(map(len, data.splits.values())) == 30


def test_sets_are_known_by_their_folders(tmp_path):
    for name, seed in (("train", 0), ("val", 1), ("test_images", 2)):
        folder(tmp_path / "photos" / name, 6 + 6 * seed, seed)
    data = image_data.ImageArguments(dataset_name=str(tmp_path / "photos")).load()
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 6, "validation": 12, "test": 18}


def test_refuses_images_without_labels(refused, tmp_path):
    folder(tmp_path / "flat", 4, classes=["."])
    assert "every class needs a folder" in refused("--train_dir", "flat")


def test_refuses_a_class_that_was_not_trained(refused, photos, tmp_path):
    folder(tmp_path / "photos" / "validation", 4, classes=["yellow", "red"])
    message = refused(*photos)
    assert "label 'yellow' is not one of the training set's 3 classes" in message
    with pytest.raises(
        ValueError, match="row 2: label 'yellow' is not one of the training set's 1"
    ):
        encode([0, 1], ["red"], "a.parquet", names=["red", "yellow"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "liberal_ex"], "Did you mean 'liberal_exp'?"),
        (["--loss", "smae"], "is a classification task and 'smae' a regression loss"),
        (["--augmentation", "crop_flop"], "Did you mean 'crop_flip'?"),
        (["--min_crop", "0"], "--min_crop must be above 0"),
        (["--mixup_alpha", "-1"], "--mixup_alpha must be 0 or more"),
        (["--dataset_name", "beans"], "--dataset_name and --train_dir contradict each other"),
        (["--train_val_split", "1"], "--train_val_split must be in [0, 1)"),
        (["--max_train_samples", "0"], "--max_train_samples must be at least 1"),
        (["--do_predict"], "--do_predict needs a test set"),
        (["--lora", "--freeze_backbone"], "--lora and --freeze_backbone contradict"),
        (["--config_overrides", "hidden_size=8"], "--config_overrides is for a model from scratch"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value).strip("-"),
)
def test_refuses_arguments(refused, photos, arguments, message):
    assert message in refused(*photos, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_type", "vitt"], "Did you mean 'vit'?"),
        (["--config_overrides", "hiden_size=8"], "Did you mean 'hidden_size'?"),
        (["--config_overrides", "hidden_size"], "takes key=value,key=value"),
        (["--config_overrides", "hidden_size=wide"], "--config_overrides hidden_size=wide: "),
        (["--config_overrides", "image_size=big"], "image_size must be a number of pixels"),
        (["--freeze_backbone"], "--freeze_backbone and --lora need a pretrained model"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value).strip("-"),
)
def test_refuses_models(refused, photos, arguments, message):
    assert message in refused(*photos, *arguments, model=None)


def test_large_images_ask_for_a_model(refused, tmp_path):
    for label in CLASSES:
        (tmp_path / "large" / label).mkdir(parents=True)
        for i in range(4):
            picture(0, np.random.default_rng(i), (200, 100)).save(
                tmp_path / "large" / label / f"{i}.png"
            )
    message = refused("--train_dir", "large", model=None)
    assert "images of 200×100 are large for a model from scratch" in message
    assert "--model_name_or_path" in message


def test_refuses_idx_files_that_do_not_fit(refused, tmp_path):
    data = Path(idx_folder(tmp_path / "drawings", packed=False))
    labels = data / "train-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(content[:-1])
    assert "says that it holds (60,) numbers, but there are 59" in refused(
        "--dataset_name", str(data)
    )
    labels.write_bytes(b"text")
    assert "is no idx file" in refused("--dataset_name", str(data))
    labels.unlink()
    assert "needs train-labels-idx1-ubyte" in refused("--dataset_name", str(data))


@pytest.mark.slow
def test_says_what_to_do_without_the_hub(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(RECIPES / "image_classification.py"), "--dataset_name"),
            *("cifar10", "--use_cpu", "--output_dir", "out"),
        ],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "cannot load 'cifar10'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# ---- Parts of it -------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    data = image_data.ImageArguments().load()
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 1294, "validation": 144, "test": 359}
    everything = np.concatenate([split.rows for split in data.splits.values()])
    assert sorted(everything) == list(range(1797))
    for split in data.splits.values():
        assert set(split.labels) == set(range(10))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(mode):
    gradient = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    if mode == "I;16":
        image = PIL.Image.fromarray(gradient.astype(np.uint16) * 257)
        assert image.mode == mode
    else:
        image = PIL.Image.fromarray(gradient).convert(mode)
    converted = images.to_rgb(image)
    assert converted.mode == "RGB"
    if mode not in ("1", "P"):
        difference = np.abs(np.asarray(converted, np.int64) - gradient[..., None])
        assert difference.max() <= 1


@pytest.mark.parametrize(("ending", "mode"), [("png", "I;16"), ("pgm", "I"), ("tif", "I;16")])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, ending, mode):
    exact = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    PIL.Image.fromarray(exact).save(tmp_path / f"a.{ending}")
    image = PIL.Image.open(tmp_path / f"a.{ending}")
    assert image.mode in (mode, "I")  # Older versions of Pillow read a png into 32 bits, too.
    pixels = np.asarray(images.to_rgb(image), np.float64)
    assert np.abs(pixels - exact[..., None] / 65535 * 255).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_names_images_of_which_nobody_knows_what_is_white(refused, photos, dtype, largest):
    pixels = np.linspace(0, largest, 64).reshape(8, 8).astype(dtype)
    PIL.Image.fromarray(pixels).save(Path(photos[1]) / "red" / "scan.tif")
    message = refused(*photos)
    assert "1 of 49 images cannot be read" in message
    kind = "floats" if dtype == np.float32 else "32-bit numbers"
    assert f"red/scan.tif: its pixels are {kind}, and nothing says which" in message


def test_leaves_out_rows_of_float_pixels_or_names_them(run, refused, tmp_path):
    table = rows(24, 0)
    table["image"][3] = np.full((8, 8), 0.5, np.float32)
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    assert "row 4: its pixels are floats" in refused("--train_file", "a.parquet")
    result, _ = run("--train_file", "a.parquet", "--skip_corrupt", "--num_train_epochs", "1")
    assert result["skipped_images"] == ["train: row 4"]


def test_small_sets_are_decoded_once_and_leave_no_file_open(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.gif" for i in range(3)]
    for path in paths:
        picture(0, np.random.default_rng(), size=(8, 8)).save(path)
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in paths]})
    rows = rows.cast_column("image", datasets.Image())
    small = images.Stored(rows, "image", str(tmp_path))
    first = [np.asarray(small[i]) for i in range(3)]
    assert {type(small[i]) for i in range(3)} == {PIL.Image.Image}
    monkeypatch.setattr(images, "KEPT", 3 * 4 * 8 * 8 - 1)
    large = images.Stored(rows, "image", str(tmp_path))
    assert all((np.asarray(large[i]) == first[i]).all() for i in range(3))
    for path in paths:
        path.unlink()
    assert all((np.asarray(small[i]) == first[i]).all() for i in range(3))
    with pytest.raises(ValueError, match=r"cannot read 2\.gif"):
        large[2]


# `datasets` leaves the file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_labels_of_a_metadata_file(run, tmp_path):
    for name, seed in (("train", 0), ("validation", 1)):
        folder(tmp_path / "data" / name, 24, seed)
        paths = sorted((tmp_path / "data" / name).glob("*/*.png"))
        lines = [f"{path.parent.name}/{path.name},colour {path.parent.name}" for path in paths]
        text = "\n".join(["file_name,label", *lines])
        (tmp_path / "data" / name / "metadata.csv").write_text(text)
    sets = [f"--{n}_dir {tmp_path}/data/{n}" for n in ("train", "validation")]
    result, _ = run(*" ".join(sets).split(), "--num_train_epochs", "1")
    assert result["classes"] == ["colour blue", "colour green", "colour red"]


def test_predictions_stay_beside_their_images(run, photos, tmp_path):
    """Trainer would predict grouped by length, without the rows that fill no batch."""
    test = folder(tmp_path / "photos" / "test", 12, seed=2)
    result, out = run(
        *(*photos, "--test_dir", test, "--learning_rate", "5e-3", "--num_train_epochs", "12"),
        *("--train_sampling_strategy", "group_by_length", "--dataloader_drop_last", "true"),
        *("--augmentation", "none", "--per_device_eval_batch_size", "5", "--do_predict"),
    )
    assert result["metrics"]["test"]["accuracy"] == 1.0
    assert sum(result["predictions"]["test"]["classes"]["true"]) == 12
    lines = (out / "predictions_test.tsv").read_text().splitlines()[1:]
    assert len(lines) == 12
    for name, _, label in (line.split("\t") for line in lines):
        assert Path(name).parent.name == label
    arguments = json.loads((out / "training_args.json").read_text())
    assert arguments["train_sampling_strategy"] == "group_by_length"
    assert arguments["dataloader_drop_last"]


def test_a_test_folder_of_one_class_has_labels(run, photos, tmp_path):
    folder(tmp_path / "test", 5, classes=["red"])
    flags = ["--test_dir", str(tmp_path / "test"), "--num_train_epochs", "1", "--do_predict"]
    result, _ = run(*photos, *flags)
    assert result["predictions"]["test"]["classes"]["true"] == [0, 0, 5]


def test_images_beside_the_folders_of_classes_are_named(refused, photos):
    picture(0, np.random.default_rng(0)).save(Path(photos[3]) / "stray.png")
    message = refused(*photos)
    assert "stray.png" in message
    assert "lie at different depths; the class of an image is the folder" in message


def test_an_image_processor_that_is_not_transformers_own_is_refused():
    class Foreign:
        """Has no filter for resizing, as that of timm's models."""

    with pytest.raises(ValueError, match="Foreign, the image processor of this model, is none of"):
        image_pipeline.training_inputs(None, Foreign(), None, 0)


SQUARE = np.add.outer(np.arange(60), 2 * np.arange(60)).astype(np.uint8)


@pytest.mark.parametrize("name", ["crop", "crop_flip", "randaugment"])
def test_augmentation_depends_on_its_generator_alone(name):
    image = PIL.Image.fromarray(SQUARE).convert("RGB")
    augment = image_pipeline.build_augmentation(name, (24, 16), PIL.Image.Resampling.BILINEAR)
    before = torch.random.get_rng_state()
    copy = pickle.loads(pickle.dumps(augment))  # As for processes that are not forked.
    augments = zip((augment, copy, augment), (0, 0, 1), strict=True)
    arrays = [np.asarray(each(image, np.random.default_rng(seed))) for each, seed in augments]
    assert torch.equal(torch.random.get_rng_state(), before)
    shape = (3, 16, 24) if name == "randaugment" else (16, 24, 3)
    assert {array.shape for array in arrays} == {shape}
    np.testing.assert_array_equal(arrays[0], arrays[1])
    assert (arrays[0] != arrays[2]).any()


def test_crops_keep_their_least_share_and_mirror_half():
    image = PIL.Image.fromarray(SQUARE).convert("RGB")
    rngs = [np.random.default_rng(seed) for seed in range(200)]
    boxes = [image_pipeline._random_box(image.size, 0.25, rng) for rng in rngs]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 60
        assert 0.2499 <= (right - left) * (bottom - top) / 3600 <= 1
        assert 0.7499 <= (right - left) / (bottom - top) <= 1.3335
    for name, mirrored in (("crop", 0), ("crop_flip", 100)):
        augment = image_pipeline.build_augmentation(name, (60, 60), 2, min_crop=1.0)
        crops = [np.asarray(augment(image, np.random.default_rng(n)), int) for n in range(200)]
        # Whole, brightness rises to the right; mirrored, to the left.
        assert abs(sum(array[0, 0, 0] > array[0, 40, 0] for array in crops) - mirrored) <= 25


def test_mixup_and_cutmix_share_labels_as_they_share_pixels():
    labels = torch.tensor([0, 1, 2, 1])
    pixels = labels[:, None, None, None].float().eq(torch.arange(3)[:, None, None]).float()
    pixels = pixels.expand(4, 3, 16, 12)  # Channel k is 1 where the class is k.
    kinds = set()
    for seed in range(60):
        mixing = image_pipeline.Mixing(3, 0.5, 1.0)
        mixed, soft = mixing(pixels, labels, np.random.default_rng(seed))
        assert soft.dtype == torch.float32
        torch.testing.assert_close(soft.sum(-1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((2, 3)), soft)
        kinds.add("mixup" if mixed.unique().numel() > 2 else "cutmix")
    assert kinds == {"mixup", "cutmix"}
    mixing = image_pipeline.Mixing(3, 0.0, 1.0)
    boxes = [mixing(pixels, labels, np.random.default_rng(seed))[1][0, 0] for seed in range(200)]
    assert 0.4 < np.mean(boxes) < 0.75  # λ is uniform, and boxes end at the border.


@pytest.mark.parametrize("alpha", [1e-320, 1e-3, 1.0, 1e300])
@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_mixed_targets_are_probabilities_for_every_alpha(kind, alpha):
    mixing = image_pipeline.Mixing(3, **({"mixup_alpha": 0.0, "cutmix_alpha": 0.0} | {kind: alpha}))
    for seed in range(50):
        labels = torch.tensor([0, 0, 2, 1])
        pixels = torch.rand(4, 3, 7, 5)
        mixed, targets = mixing(pixels, labels, np.random.default_rng(seed))
        assert mixed.min() >= 0
        assert mixed.max() <= 1
        assert targets.min() >= 0
        assert targets.max() <= 1
        torch.testing.assert_close(targets.sum(-1), torch.ones(4))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 1], [-100, 0], [0.5, 1.0]])
def test_mixing_refuses_what_is_no_class(labels):
    mixing = image_pipeline.Mixing(3, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"class ids from 0 to 2, got \["):
        mixing(torch.rand(2, 3, 4, 4), torch.tensor(labels), np.random.default_rng(0))


def test_every_epoch_changes_an_image_in_another_way():
    data = image_data.ImageArguments(max_train_samples=40).load()
    inputs = image_pipeline.training_inputs(
        data,
        ViTImageProcessor(size={"height": 8, "width": 8}),
        image_pipeline.AugmentationArguments(),
        seed=0,
    )
    first, again = inputs[3]["pixel_values"], inputs[3]["pixel_values"]
    assert torch.equal(first, again)
    state = type("State", (), {"epoch": 1.0})
    image_pipeline.NewEpoch(inputs).on_epoch_begin(None, state, None)
    assert not torch.equal(inputs[3]["pixel_values"], first)


def test_a_processor_without_a_fixed_size_is_refused():
    processor = ConvNextImageProcessor(size={"shortest_edge": 400}, crop_pct=None)
    assert image_pipeline.image_size(processor) == (400, 400)
    with pytest.raises(ValueError, match="gives images of different shapes"):
        image_pipeline.image_size(ViTImageProcessor(do_resize=False))


def test_is_a_page_that_a_user_reads():
    assert len((RECIPES / "image_classification.py").read_text().splitlines()) < 200


# ---- As users launch it ------------------------------------------------------------------------

ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]


def launch(path, *arguments, launcher=ACCELERATE):
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        [*launcher, str(RECIPES / "image_classification.py"), *arguments],
        cwd=path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(path.rglob("result.json")).read_text())


@pytest.mark.slow
def test_the_default_model_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # By default it goes on to 40 epochs.
    image_classification.main(["--loss", "strict_l", "--num_train_epochs", "8"])
    (file,) = tmp_path.rglob("result.json")
    result = json.loads(file.read_text())
    assert result["metrics"]["test"]["accuracy"] >= 0.8


@pytest.mark.slow
def test_equal_configurations_give_equal_weights(run, tiny, tmp_path):
    arguments = [
        *("--train_dir", folder(tmp_path / "train", 96)),
        *("--validation_dir", folder(tmp_path / "validation", 27, seed=1)),
        *("--loss", "strict_l", "--learning_rate", "1e-3", "--num_train_epochs", "2"),
        *("--augmentation", "crop_flip", "--max_grad_norm", "0.5"),
    ]

    def sizes(batch, steps):
        accumulation = ("--gradient_accumulation_steps", str(steps))
        return ("--per_device_train_batch_size", str(batch), *accumulation)

    model = ("--model_name_or_path", tiny, "--use_cpu", "--output_dir", "out")
    by_two = [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]
    two = tmp_path / "two"
    results = {
        "16": run(*arguments, *sizes(16, 1), name="16"),
        "8x2": run(*arguments, *sizes(8, 2), name="8x2"),
        "2 processes of 4x2": (
            launch(two, *model, *arguments, *sizes(4, 2), launcher=by_two),
            two / "out",
        ),
    }
    expected, out = results["16"]
    weights = load_file(out / "model.safetensors")
    for name, (result, out) in results.items():
        assert result["training"]["global_step"] == 12
        assert result["training"]["batch_size"] == 16
        assert result["training"]["world_size"] == (2 if "processes" in name else 1)
        validation = expected["metrics"]["validation"]
        assert result["metrics"]["validation"] == pytest.approx(validation, rel=1e-4)
        others = load_file(out / "model.safetensors")
        for key, weight in weights.items():
            if key.endswith("key.bias"):
                continue  # Attention does not depend on it: Adam makes steps of its rounding noise.
            torch.testing.assert_close(others[key], weight, rtol=1e-4, atol=2e-6)
