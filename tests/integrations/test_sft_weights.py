"""Weights of rows and tokens come through what TRL makes of the rows."""

import pytest
import tiny
from datasets import Dataset
from integrations.test_integrations import need, tokenizer

from hf_losses import LossMixin, LossTrainingArguments

# trl 1.16 still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)


def gradients_by_weight(folder, rows, **settings):
    trl = need("trl")
    arguments = type("Arguments", (trl.SFTConfig, LossTrainingArguments), {})
    usual = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}
    usual |= {"max_steps": 1, "learning_rate": 0.0, "save_strategy": "no", "max_length": None}
    seen = tiny.Gradients()
    type("LossSFTTrainer", (LossMixin, trl.SFTTrainer), {})(
        model=tiny.causal_lm(initializer_range=0.3),
        args=arguments(str(folder), **(usual | settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[seen],
        loss="strict_l",
    ).train()
    return seen.steps


@pytest.mark.parametrize("of_tokens", [False, True])
def test_rows_in_one_line_weigh_as_padded_ones(of_tokens, tmp_path):
    rows = []
    for number in range(4):
        ids = list(range(4, 9 + number))
        weight = [0.5 + i % 3 for i in ids] if of_tokens else number + 0.5
        rows.append({"input_ids": ids, "labels": ids, "loss_weight": weight})
    in_line = gradients_by_weight(tmp_path, rows, padding_free=True)
    assert tiny.difference(gradients_by_weight(tmp_path, rows), in_line) < 1e-5
    for row in rows:
        del row["loss_weight"]
    assert tiny.difference(gradients_by_weight(tmp_path, rows), in_line) > 0.05


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode:FutureWarning")
@pytest.mark.parametrize(
    ("mode", "kept"), [("keep_start", slice(6)), ("keep_end", slice(-6, None))]
)
def test_weights_of_tokens_are_cut_with_them(mode, kept, tmp_path):
    rows = []
    for number in range(4):
        ids = list(range(4, 9 + number))
        rows.append({"input_ids": ids, "labels": ids, "loss_weight": [0.5 + i % 3 for i in ids]})
    cut = gradients_by_weight(tmp_path, rows, max_length=6, truncation_mode=mode)
    by_hand = [{name: values[kept] for name, values in row.items()} for row in rows]
    assert tiny.difference(gradients_by_weight(tmp_path, by_hand), cut) < 1e-6


def test_packing_does_not_lose_weights_in_silence(tmp_path):
    rows = [{"input_ids": [4, 5, 6], "labels": [4, 5, 6], "loss_weight": 2.0}] * 4
    with pytest.raises(ValueError, match="packing loses the column 'loss_weight'"):
        gradients_by_weight(tmp_path, rows, packing=True, max_length=16)
