"""A model given as `torch.compile(model)` is treated as the model that it is."""

import datasets
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_losses import LossTrainer

# transformers asks for it when it compiles an attention mask; torch 2.6 lacks it.
pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"),
    reason="transformers cannot compile with this torch",
)


def compiled(model):
    return torch.compile(model, backend="eager")


def rows(**more):
    """Eight of the random texts, in columns."""
    columns = {"input_ids": [], "labels": []} | more
    for row in tiny.texts(8):
        columns["input_ids"].append(row["input_ids"].tolist())
        columns["labels"].append(row["labels"])
    return datasets.Dataset.from_dict(columns)


def trained(folder, model, data, resume=None, **settings):
    seen = tiny.Gradients()
    args = tiny.arguments(folder, max_grad_norm=0.0, learning_rate=1e-2, **settings)
    trainer = LossTrainer(model=model, args=args, train_dataset=data, callbacks=[seen])
    trainer.train(resume)
    return seen.steps


def test_unused_columns_are_left_out_and_the_gradient_is_that_of_the_loss(tmp_path):
    data = rows(sentence=["words"] * 8)
    (gradient,) = trained(tmp_path, compiled(tiny.bert()), data, max_steps=1)
    model = tiny.bert()
    logits = model(input_ids=torch.tensor(data["input_ids"])).logits
    cross_entropy(logits, torch.tensor(data["labels"])).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (gradient - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("wrap", [compiled, lambda model: model], ids=["compiled", "plain"])
def test_an_error_of_unused_columns_names_those_of_the_model(tmp_path, wrap):
    data = datasets.Dataset.from_dict({"sentence": ["words"], "number": [1]})
    with pytest.raises(ValueError, match="No columns in the dataset match") as error:
        trained(tmp_path, wrap(tiny.bert()), data)
    message = str(error.value)
    assert "(input_ids, attention_mask," in message
    assert "labels" in message
    assert "remove_unused_columns=False" in message


@pytest.mark.parametrize(
    ("model", "data"), [(tiny.bert, tiny.texts), (tiny.vit, tiny.images)], ids=["bert", "vit"]
)
def test_what_is_saved_is_loaded_and_resumed(tmp_path, model, data):
    whole = model()
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, compiled(whole), data(8), **settings)
    loaded = type(whole).from_pretrained(tmp_path / "checkpoint-2")
    resumed = model()
    trained(tmp_path, compiled(resumed), data(8), str(tmp_path / "checkpoint-1"), **settings)
    for other in (loaded, resumed):
        for name, weight in whole.state_dict().items():
            assert torch.equal(other.state_dict()[name], weight), name


def test_gpt2_learns_the_next_token(tmp_path):
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=1, n_head=2))
    data = tiny.texts(8, tiny.some_next_tokens)
    args = tiny.arguments(tmp_path, per_device_eval_batch_size=8)
    metrics = LossTrainer(model=compiled(model), args=args, eval_dataset=data).evaluate()
    batch = {key: torch.stack([row[key] for row in data]) for key in data[0]}
    assert metrics["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-6)


def test_a_fused_head_is_refused(tmp_path):
    data = tiny.texts(8, tiny.some_next_tokens)
    with pytest.raises(ValueError, match="fused_linear does not work with torch_compile"):
        trained(tmp_path, compiled(tiny.causal_lm()), data, fused_linear=True)
