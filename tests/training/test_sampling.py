"""The order of the training data is that of an uninterrupted run, also within a later epoch."""

import pytest
import tiny
import torch
from transformers import Trainer, TrainerCallback

from hf_losses import LossTrainer

STRATEGIES = pytest.mark.parametrize("strategy", ["group_by_length", "random"])


def trained(folder, data, resumed=None, trainer=LossTrainer, callbacks=None, **settings):
    """Trains for two epochs of five steps; returns the weights and the rows in their order."""
    seen = []

    def collate(rows):
        seen.append([row["row"] for row in rows])
        columns = ("input_ids", "attention_mask", "labels")
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in columns}

    settings = {"save_strategy": "steps", "save_steps": 7, "max_steps": 10} | settings
    args = tiny.arguments(folder, remove_unused_columns=False, **settings)
    model = tiny.bert(hidden_dropout_prob=0.1)
    trainer = trainer(
        model=model, args=args, train_dataset=data, data_collator=collate, callbacks=callbacks
    )
    trainer.train(resumed)
    return trainer.model.state_dict(), seen


@pytest.fixture
def data():
    return [row | {"row": number} for number, row in enumerate(tiny.texts())]


@STRATEGIES
def test_a_run_that_is_resumed_within_its_second_epoch_ends_with_the_same_weights(
    strategy, data, tmp_path
):
    settings = {"loss": "strict_l", "train_sampling_strategy": strategy}
    whole, _ = trained(tmp_path, data, **settings)
    resumed, _ = trained(tmp_path, data, str(tmp_path / "checkpoint-7"), **settings)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@STRATEGIES
def test_each_epoch_has_all_rows_in_an_order_of_its_own(strategy, data, tmp_path):
    orders = []
    for seed in (1, 1, 2 if strategy == "group_by_length" else 7):  # accelerate adds the epoch.
        settings = {"loss": "strict_l", "train_sampling_strategy": strategy, "seed": seed}
        _, seen = trained(tmp_path, data, save_strategy="no", **settings)
        rows = [row for batch in seen for row in batch]
        assert sorted(rows[:40]) == sorted(rows[40:]) == list(range(40))
        orders += [rows[:40], rows[40:]]
    assert orders[0] == orders[2]
    assert orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 4


def test_an_epoch_that_is_ended_early_is_not_begun_again(data, tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step % 2 == 0

    settings = {"train_sampling_strategy": "group_by_length", "save_strategy": "no", "max_steps": 6}
    _, seen = trained(tmp_path, data, callbacks=[Stops()], **settings)
    assert len({tuple(batch) for batch in seen}) == len(seen)


def test_batches_that_one_process_dispatches_are_resumed(data, tmp_path):
    settings = {"loss": "strict_l", "accelerator_config": {"dispatch_batches": True}}
    whole, _ = trained(tmp_path, data, **settings)
    resumed, _ = trained(tmp_path, data, str(tmp_path / "checkpoint-7"), **settings)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_random_order_is_that_of_the_stock_trainer(data, tmp_path):
    settings = {"train_sampling_strategy": "random", "save_strategy": "no"}
    _, stock = trained(tmp_path, data, trainer=Trainer, **settings)
    _, ours = trained(tmp_path, data, **settings)
    assert ours == stock
