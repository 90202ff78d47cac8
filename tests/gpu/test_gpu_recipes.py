"""The recipes train on a GPU, offline: on shipped data, with small models or random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "recipe", ["glue", "causal_lm", "image_classification", "token_classification"]
)
def test_a_recipe_trains(recipe, precision, device, tmp_path):
    subprocess.run(
        [
            *(sys.executable, str(RECIPES / f"{recipe}.py"), "--output_dir", str(tmp_path)),
            *("--loss", "strict_l", "--max_steps", "20", "--logging_steps", "5"),
            *("--per_device_train_batch_size", "4", "--max_train_samples", "200"),
            *("--max_eval_samples", "16"),
            *(() if precision == "float32" else (f"--{precision}",)),
            *(("--use_cpu",) if device.type == "cpu" else ()),
        ],
        check=True,
        timeout=120,  # Of which the processes that load images took more, at the exit.
        # On several GPUs it would be DataParallel.
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["loss"]["name"] == "strict_l"
    assert (result["hardware"]["gpu"] is None) == (device.type == "cpu")
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert len(losses) == 4
    assert all(0 < loss < 1e4 for loss in losses)
