"""On a GPU a training has the gradients and the figures that it has on the CPU in float32."""

import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch

from hf_losses import LossTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

TASKS = {
    "rows": (tiny.bert, tiny.texts),
    "next tokens": (tiny.causal_lm, lambda: tiny.texts(label=tiny.some_next_tokens)),
    "several labels": (
        lambda: tiny.bert(problem_type="multi_label_classification"),
        lambda: tiny.texts(label=tiny.yes_or_no_per_class),
    ),
    "numbers": (lambda: tiny.bert(num_labels=1), lambda: tiny.texts(label=tiny.number)),
}
# Arguments of a training, and by how much its gradients may differ.
WAYS = {
    "float32": ({}, 1e-4),
    "bf16": ({"bf16": True}, 0.05),
    "fp16": ({"fp16": True}, 0.01),
    "accumulation": (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        1e-4,
    ),
    "gradient checkpointing": ({"gradient_checkpointing": True}, 1e-4),
    # In TensorFloat-32 all the same, which Accelerate switches on.
    "torch.compile": ({"torch_compile": True, "tf32": False}, 1e-3),
}


def gradients(folder, device, task, **settings):
    """The gradients of one epoch."""
    model, data = TASKS[task]
    settings = {"use_cpu": device.type == "cpu", "dataloader_pin_memory": False} | settings
    steps = tiny.gradients(folder, model(), data(), trainer=OneDevice, **settings)
    return [gradient.float().cpu() for gradient in steps]


class OneDevice(LossTrainer):
    """Several GPUs without several processes would be DataParallel, with another batch size."""

    def __init__(self, *, args, **keywords):
        args._n_gpu = min(1, args.n_gpu)
        super().__init__(args=args, **keywords)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", TASKS)
def test_gradients_are_those_of_the_cpu(task, way, device, tmp_path):
    settings, allowed = WAYS[way]
    if device.type == "cpu" and way == "fp16":
        pytest.skip("fp16 needs a GPU")
    loss = {"loss": "huber" if task == "numbers" else "strict_l"}
    expected = gradients(tmp_path, torch.device("cpu"), task, **loss)
    found = gradients(tmp_path, device, task, **loss, **settings)
    assert len(expected) == 5
    assert tiny.difference(expected, found) < allowed


@pytest.mark.parametrize("loss", ["liberal_exp", "strict_m_full"])
@pytest.mark.parametrize("way", ["float32", "bf16"])
def test_the_last_layer_fused_has_the_gradients_of_the_cpu(way, loss, device, tmp_path):
    settings, allowed = WAYS[way]
    expected = gradients(tmp_path, torch.device("cpu"), "next tokens", loss=loss)
    found = gradients(tmp_path, device, "next tokens", loss=loss, fused_linear=True, **settings)
    assert tiny.difference(expected, found) < allowed


def trained(folder, device, task, **settings):
    model, data = TASKS[task]
    args = tiny.arguments(
        folder, use_cpu=device.type == "cpu", dataloader_pin_memory=False, **settings
    )
    trainer = OneDevice(model=model(), args=args, train_dataset=data(), eval_dataset=data()[:13])
    trainer.train()
    return trainer, trainer.evaluate()


@pytest.mark.parametrize("task", TASKS)
def test_the_log_is_that_of_the_cpu(task, device, tmp_path):
    loss = "huber" if task == "numbers" else "strict_l"
    settings = {"loss": loss, "loss_stats_steps": 1, "loss_warmup_steps": 2}
    expected, expected_evaluation = trained(tmp_path, torch.device("cpu"), task, **settings)
    found, evaluation = trained(tmp_path, device, task, **settings)
    for line, wanted in zip(found.state.log_history, expected.state.log_history, strict=True):
        kept = {key: value for key, value in wanted.items() if not key.startswith(CLOCK)}
        assert {key: line[key] for key in kept} == pytest.approx(kept, rel=2e-3, abs=1e-4)
    assert evaluation["eval_loss"] == pytest.approx(expected_evaluation["eval_loss"], rel=2e-3)


CLOCK = ("train_runtime", "train_s", "eval_runtime", "eval_s", "total_flos")


def test_a_gradient_that_is_not_finite_is_counted(device, tmp_path):
    model, data = TASKS["rows"]
    args = tiny.arguments(tmp_path, use_cpu=device.type == "cpu", max_steps=4)
    trainer = OneDevice(model=model(), args=args, train_dataset=data())
    trainer.model.classifier.bias.register_hook(
        lambda grad: grad * math.nan if trainer.state.global_step == 3 else grad
    )
    assert trainer.train().metrics["train_nonfinite_grad_steps"] == 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"loss_stats_steps": 1}, {"loss_warmup_steps": 9}, {"loss_kwargs": {"weight": [1, 2, 1]}}],
    ids=str,
)
@pytest.mark.parametrize("loss", ["cross_entropy", "strict_l", "strict_l_full"])
def test_the_loss_of_a_step_waits_for_nothing(loss, settings, device, without_waiting, tmp_path):
    args = tiny.arguments(tmp_path, loss=loss, use_cpu=device.type == "cpu", **settings)
    trainer = OneDevice(model=tiny.bert(), args=args, train_dataset=tiny.texts())
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.state.max_steps = 10
    labels = batch.pop("labels")
    for step, context in enumerate((nullcontext, without_waiting)):  # In the first, it compiles.
        trainer.state.global_step = step
        outputs = trainer.model.train()(**batch)
        logits = outputs["logits"] = outputs["logits"].detach().requires_grad_()
        with context():
            count = trainer._get_num_items_in_batch([{"labels": labels}], device)
            total = trainer.compute_loss_func(outputs, [labels], count)
            total.backward()
        assert logits.grad.count_nonzero()


def test_two_processes_have_the_gradients_of_one(device, tmp_path):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    file = tmp_path / "found.pt"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    subprocess.run(
        [
            *(sys.executable, *launch, "--rdzv-endpoint=localhost:0"),
            *(__file__, str(file), device.type),
        ],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tiny.__file__).parent)},
    )
    found = torch.load(file)
    for task, steps in found.items():
        expected = gradients(tmp_path, torch.device("cpu"), task, loss=LOSS_OF_TWO)
        assert tiny.difference(expected, steps) < 1e-4


LOSS_OF_TWO = "liberal_exp"


if __name__ == "__main__":
    file, kind = sys.argv[1:]
    found = {
        task: gradients(
            Path(file).parent,
            torch.device(kind),
            task,
            loss=LOSS_OF_TWO,
            per_device_train_batch_size=4,
        )
        for task in ("rows", "next tokens")
    }
    if os.environ["RANK"] == "0":
        torch.save(found, file)
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # As tests/training/test_equivalence.py does, and says why.
