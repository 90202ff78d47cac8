"""A user's module around a model of transformers learns what that model learns."""

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    set_seed,
)

from hf_losses import LossTrainer

WORDS = 50


def trainer_of(folder, model, data, loss="cross_entropy", **settings):
    args = tiny.arguments(folder, **settings)
    return LossTrainer(model, args, train_dataset=data, eval_dataset=data, loss=loss)


class Around(nn.Module):
    """A module that transformers does not know, around one that it does."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **self.options
        )


class Logits(Around):
    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask, labels)
        return {"logits": outputs.logits} | ({} if labels is None else {"loss": outputs.loss})


def bart():
    set_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "init_std": 0.3}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
    return BartForConditionalGeneration(BartConfig(vocab_size=WORDS, **sizes))


def mixtral():
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(vocab_size=WORDS, initializer_range=0.3, **sizes))


def llama():
    return tiny.causal_lm(initializer_range=0.3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Around(llama()),
        lambda: Logits(llama()),
        lambda: Around(bart()),
        lambda: Around(mixtral(), output_router_logits=True),
    ],
    ids=["causal", "dict", "seq2seq", "experts"],
)
def test_a_module_around_a_language_model_learns_what_that_model_learns(build, tmp_path):
    data, model = tiny.texts(8, lambda generator, ids: ids.flip(0)), build()
    batch = {key: torch.stack([row[key] for row in data]) for key in data[0]}
    with torch.no_grad():
        expected = model.eval()(**batch)["loss"].item()
    trainer = trainer_of(tmp_path, model, data, max_steps=1)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] == pytest.approx(expected, rel=1e-5)


def test_other_classes_than_those_of_the_language_model_within_are_refused(tmp_path):
    class Tagger(Around):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"logits": self.model(input_ids=input_ids).logits[..., :3]}

    data = tiny.texts(8, tiny.class_of_each_token)
    with pytest.raises(ValueError, match="built around LlamaForCausalLM, whose labels are the"):
        trainer_of(tmp_path, Tagger(llama()), data).train()


def test_rows_have_one_label_whatever_is_within(tmp_path):
    class Classifier(Around):
        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"logits": self.model(input_ids=input_ids).logits[:, -1, :3]}

    data, model = tiny.texts(8), Classifier(llama())
    with torch.no_grad():
        logits = model(torch.stack([row["input_ids"] for row in data]))["logits"]
    expected = F.cross_entropy(logits, torch.tensor([row["labels"] for row in data])).item()
    trainer = trainer_of(tmp_path, model, data)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_type_of_the_users_is_not_transformers(tmp_path):
    class Focal(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss_type, self.table = "focal", nn.Embedding(WORDS, 3)

        def forward(self, input_ids, attention_mask=None, labels=None):
            return {"logits": self.table(input_ids).mean(1)}

    assert trainer_of(tmp_path, Focal(), tiny.texts(8), "strict_l").evaluate()["eval_loss"] > 0
