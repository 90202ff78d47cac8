"""Cross-entropy in the trainer is what a model computes from its labels itself, or is refused.

The right value is always the model's own: `model(**batch).loss`.
"""

from __future__ import annotations

import sys

import pytest
import tiny
import tiny_heads
import torch
import transformers
from torch.nn import functional as F
from transformers import Trainer

from hf_losses import LossTrainer, compute_loss_func
from hf_losses.models.builtin import UNSHIFTED_LOOKALIKE, shifts_labels
from hf_losses.models.decoder_inputs import decoder_inputs

# Of this class alone, whenever it is given labels.
pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")

# Encoder-decoders with a language model's head.
WRITERS = [
    *list(tiny_heads.HEADS)[list(tiny_heads.HEADS).index("T5ForConditionalGeneration") :],
    "Blip2ForConditionalGeneration around T5",
]
# Their outputs do not tell them from others with other labels.
UNCERTAIN = {"GPT2LMHeadModel", "BartForCausalLM", "TrOCRForCausalLM", *WRITERS}


def trainer_of(model, folder, **keywords):
    return LossTrainer(model=model, args=tiny.arguments(folder, loss="cross_entropy", **keywords))


def without_labels(model, batch):
    inputs = dict(batch)
    labels = inputs.pop("labels")
    return model(**(decoder_inputs(model, labels) | inputs)), labels


@pytest.mark.parametrize("name", tiny_heads.HEADS)
def test_cross_entropy_is_the_loss_of_the_model_itself(name, tmp_path):
    model, batch = tiny_heads.head(name)
    trainer = trainer_of(model, tmp_path)
    with torch.no_grad():
        expected = model.eval()(**batch).loss
        loss = trainer.compute_loss(model, batch)
        # Trainer counts as many items as the model takes the mean over.
        items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        counted = trainer.compute_loss(model, batch, num_items_in_batch=items)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    assert counted.item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize("name", WRITERS)
def test_the_decoder_reads_what_the_model_would_make_of_its_labels(name):
    model, batch = tiny_heads.head(name)
    with torch.no_grad():
        assert torch.equal(without_labels(model, batch)[0].logits, model(**batch).logits)


def test_an_encoder_decoder_trains_saves_and_goes_on_like_the_stock_trainer(tmp_path):
    name = "M2M100ForConditionalGeneration"
    batch = tiny_heads.translated()
    rows = [{key: value[i] for key, value in batch.items()} for i in (0, 1)] * 4

    def train(trainer, folder, steps, resume=False):
        args = tiny.arguments(
            folder,
            loss="cross_entropy",
            per_device_train_batch_size=2,
            max_steps=steps,
            save_strategy="steps",
            save_steps=2,
            lr_scheduler_type="constant",
        )
        transformers.set_seed(0)
        built = trainer(model=tiny_heads.head(name)[0], args=args, train_dataset=rows)
        built.train(resume_from_checkpoint=resume)
        return [line["loss"] for line in built.state.log_history if "loss" in line], built.model

    expected, stock_model = train(Trainer, tmp_path / "stock", 4)
    train(LossTrainer, tmp_path / "ours", 2)
    losses, model = train(LossTrainer, tmp_path / "ours", 4, resume=True)
    assert losses == pytest.approx(expected, rel=1e-5)
    reloaded = type(model).from_pretrained(tmp_path / "ours" / "checkpoint-4")
    for key, value in stock_model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[key], value)


def test_what_a_decoder_reads_is_not_guessed():
    model, batch = tiny_heads.head("M2M100ForConditionalGeneration")
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="config has no decoder_start_token_id: set it"):
        decoder_inputs(model, batch["labels"])

    class Unknown(transformers.PreTrainedModel):
        config_class = transformers.BartConfig
        loss_type = "ForConditionalGeneration"

        def forward(self, input_ids, decoder_input_ids=None):
            """Of a file without shift_tokens_right."""

    model = Unknown(transformers.BartConfig())
    model.loss_type = "ForConditionalGeneration"
    with pytest.raises(ValueError, match=r"of Unknown reads .* put decoder_input_ids into the"):
        decoder_inputs(model, batch["labels"])


def test_a_module_of_ones_own_may_have_any_name(tmp_path):
    class ToyForSequenceClassification(torch.nn.Linear):
        def forward(self, x, labels=None):
            """A model that transformers does not know."""
            return {"logits": super().forward(x)}

    model, x, labels = ToyForSequenceClassification(4, 3), torch.randn(5, 4), torch.arange(5) % 3
    loss = trainer_of(model, tmp_path).compute_loss(model.eval(), {"x": x, "labels": labels})
    assert loss.item() == pytest.approx(F.cross_entropy(model(x)["logits"], labels).item())


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "GPT2LMHeadModel",
        "BartForCausalLM",
        "LlavaForConditionalGeneration",
        "BartForConditionalGeneration",
        "WhisperForConditionalGeneration",
        "EncoderDecoderModel",
    ],
)
@pytest.mark.parametrize("wraps", [False, True])
def test_a_subclass_of_any_name_is_what_its_class_is(name, wraps, tmp_path):
    """Transformers goes by the name of the subclass, and does not know it."""
    model, batch = tiny_heads.head(name)

    def forward(self, *args, **kwargs):
        return type(model).forward(self, *args, **kwargs)

    mine = type("Mine", (type(model),), {"forward": forward} if wraps else {})
    copy = mine(model.config).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(**batch).loss.item()
        assert trainer_of(copy, tmp_path).compute_loss(copy.eval(), batch).item() == pytest.approx(
            expected, rel=2e-6
        )


# ---- Refused -----------------------------------------------------------------------------------

XVECTOR = tiny_heads.HEARING | {
    "tdnn_dim": (32, 32),
    "tdnn_kernel": (3, 3),
    "tdnn_dilation": (1, 1),
    "xvector_output_dim": 8,
}
PROPHET = {
    "vocab_size": tiny_heads.VOCABULARY,
    "hidden_size": 32,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
}
GIT = tiny_heads.BERT | {"vision_config": tiny_heads.EYES}
ELECTRA = tiny_heads.BERT | {"embedding_size": 32}
OTHERS = {
    "Wav2Vec2ForXVector": XVECTOR,
    "WavLMForXVector": XVECTOR,
    "Wav2Vec2ForAudioFrameClassification": tiny_heads.HEARING,
    "ProphetNetForConditionalGeneration": PROPHET,
    "ProphetNetForCausalLM": PROPHET,
    "GitForCausalLM": GIT,
    "ElectraForPreTraining": ELECTRA,
    "BertForPreTraining": tiny_heads.BERT,
    "BertModel": tiny_heads.BERT,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_with_another_objective_is_refused_when_the_trainer_is_built(name, tmp_path):
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**OTHERS[name]))
    with pytest.raises(ValueError, match=rf"{name}.* logits and 'labels'"):
        trainer_of(model, tmp_path)


def test_a_subclass_is_refused_too_unless_it_has_a_forward_of_its_own(tmp_path):
    class Same(transformers.Wav2Vec2ForXVector):
        """Nothing of its own."""

    class Plain(transformers.Wav2Vec2ForXVector):
        def forward(self, input_values, labels=None):
            """A classifier of its embeddings."""
            return {"logits": super().forward(input_values).embeddings}

    config = transformers.Wav2Vec2Config(**XVECTOR)
    with pytest.raises(ValueError, match="Same is not a model"):
        trainer_of(Same(config), tmp_path)
    model, batch = Plain(config).eval(), {**tiny_heads.sound(), "labels": torch.tensor([1, 0])}
    expected = F.cross_entropy(model(batch["input_values"])["logits"], batch["labels"])
    loss = trainer_of(model, tmp_path).compute_loss(model.eval(), batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_settings_that_change_the_loss_of_the_model_are_refused(tmp_path):
    model, batch = tiny_heads.head("BlipForConditionalGeneration")
    plain = model(**batch).loss
    config = model.config
    config.text_config.label_smoothing = 0.1
    smooth = type(model)(config).eval()
    smooth.load_state_dict(model.state_dict())
    assert (smooth(**batch).loss - plain).abs() > 1e-2
    with pytest.raises(ValueError, match=r"label_smoothing=0.1 makes the loss of BlipFor"):
        trainer_of(smooth, tmp_path)


def test_labels_that_the_model_leaves_out_are_left_out(tmp_path):
    model, batch = tiny_heads.head("BioGptForTokenClassification")
    hidden = batch["attention_mask"] == 0
    assert hidden.any()
    batch["labels"] = batch["labels"].masked_fill(hidden, 1)
    trainer = trainer_of(model, tmp_path)
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert count == ((batch["labels"] != -100) & ~hidden).sum()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_labels_of_a_second_kind_are_refused(tmp_path):
    config = tiny_heads.BERT | {"entity_vocab_size": 9, "entity_emb_size": 32}
    model = transformers.LukeForMaskedLM(transformers.LukeConfig(**config))
    with pytest.raises(ValueError, match=r"\['labels', 'entity_labels'\]"):
        trainer_of(model, tmp_path)
    trainer = trainer_of(model.eval(), tmp_path, label_names=["labels"])
    batch = tiny_heads.same_tokens()
    with torch.no_grad():
        expected = model.eval()(**batch).loss
        assert trainer.compute_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="also entity_labels, which would be left out"):
        trainer.compute_loss(model, batch | {"entity_labels": torch.tensor([[0], [1]])})


def test_rows_of_probabilities_for_deberta_must_be_called_so(tmp_path):
    model, batch = tiny_heads.head("DebertaV2ForSequenceClassification")
    batch["labels"] = torch.tensor([[0.3, 0.7], [0.9, 0.1]])
    expected = model(**batch).loss
    with pytest.raises(ValueError, match="are probabilities of the classes for DebertaV2"):
        trainer_of(model, tmp_path).compute_loss(model, batch)
    model.config.problem_type = "single_label_classification"
    loss = trainer_of(model, tmp_path).compute_loss(model.eval(), batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["LukeForEntityClassification", "LukeForEntityPairClassification"])
def test_several_labels_of_an_entity_are_refused(kind, tmp_path):
    config = tiny_heads.BERT | {"entity_vocab_size": 9, "entity_emb_size": 32}
    model = getattr(transformers, kind)(transformers.LukeConfig(**config))
    batch = tiny_heads.of_rows() | {"labels": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="several yes/no labels for LukeForEntity"):
        trainer_of(model, tmp_path).compute_loss(model, batch)


def test_the_experts_of_a_vision_language_model_are_weighed_as_it_says(tmp_path):
    config = transformers.Qwen3VLMoeConfig(
        text_config=tiny_heads.LLAMA
        | {
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "head_dim": 16,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.7,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]},
        },
        vision_config=tiny_heads.EYES | {"depth": 1, "out_hidden_size": 32, "num_heads": 2},
    )
    model = transformers.Qwen3VLMoeForConditionalGeneration(config).eval()
    batch = tiny_heads.same_tokens()
    expected = model(**batch, output_router_logits=True)
    assert expected.aux_loss > 0.1
    loss = trainer_of(model, tmp_path).compute_loss(
        model.eval(), batch | {"output_router_logits": True}
    )
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


# ---- compute_loss_func, which sees the outputs alone -------------------------------------------


@pytest.mark.parametrize("name", tiny_heads.HEADS)
def test_labels_are_shifted_by_what_the_outputs_say_or_not_at_all(name):
    model, batch = tiny_heads.head(name)
    model.config.output_router_logits = False
    with torch.no_grad():
        expected = model(**batch).loss.item()
        outputs, labels = without_labels(model, batch)
    if name in UNCERTAIN:
        with pytest.raises(ValueError, match=r"shift_labels=.* LossTrainer"):
            compute_loss_func("cross_entropy")(outputs, labels)
    else:
        loss = compute_loss_func("cross_entropy")(outputs, labels)
        assert loss.item() == pytest.approx(expected, rel=2e-6)
    informed = compute_loss_func("cross_entropy", shift_labels=shifts_labels(model))
    assert informed(outputs, labels).item() == pytest.approx(expected, rel=2e-6)


def test_outputs_of_llama_say_nothing_where_cpmant_may_have_made_them():
    model, batch = tiny_heads.head("LlamaForCausalLM")
    outputs, labels = without_labels(model, batch)
    compute_loss_func("cross_entropy")(outputs, labels)
    config = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "dim_ff": 16}
    config |= {"num_attention_heads": 2, "dim_head": 8, "prompt_length": 2, "prompt_types": 4}
    try:
        cpm = transformers.CpmAntForCausalLM(transformers.CpmAntConfig(**config)).eval()
        ids = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(1))
        for ambiguous in (outputs, cpm(input_ids=ids)):
            with pytest.raises(ValueError, match=r"shift_labels=True .* LossTrainer"):
                compute_loss_func("cross_entropy")(ambiguous, ids)
        same_position = compute_loss_func("cross_entropy", shift_labels=False)
        expected = cpm(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(same_position(cpm(input_ids=ids), ids), expected)
    finally:
        del sys.modules[UNSHIFTED_LOOKALIKE]


def test_the_stock_trainer_stops_at_an_encoder_decoder_that_may_read_its_own_input(tmp_path):
    model, batch = tiny_heads.head("BartForConditionalGeneration")
    rows = [{key: value[i] for key, value in batch.items()} for i in (0, 1)]

    def trainer(**options):
        loss = compute_loss_func("cross_entropy", **options)
        args = tiny.arguments(tmp_path, max_steps=1)
        return Trainer(model=model, args=args, train_dataset=rows, compute_loss_func=loss)

    with pytest.raises(ValueError, match=r"DataCollatorForSeq2Seq.*shift_labels=False"):
        trainer().train()
    made = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    for row, ids in zip(rows, made, strict=True):
        row["decoder_input_ids"] = ids
    with torch.no_grad():
        expected = model(**batch).loss.item()
    informed = trainer(shift_labels=False)
    informed.train()
    assert informed.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_experts_are_not_left_out_without_a_word():
    model, batch = tiny_heads.head("MixtralForCausalLM")
    with torch.no_grad():
        outputs, labels = without_labels(model, batch)
    with pytest.raises(ValueError, match="aux_loss of the mixture of experts"):
        compute_loss_func("cross_entropy")(outputs, labels)
