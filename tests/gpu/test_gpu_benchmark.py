"""`benchmarks/gpu.py` runs, here on tiny shapes and without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
CASES = {
    "8192x128256-bfloat16": {"F.cross_entropy", "liberal_exp, overwriting", "strict_l_full"},
    "linear-16384x50257-float32": {"F.linear + F.cross_entropy", "linear_loss liberal_exp"},
    "llama": {"Trainer", "LossTrainer, liberal_exp, fused_linear"},
    "sft": {"SFTTrainer, loss_type='dft'", "LossMixin, dft", "LossMixin, dft, fused_linear"},
}
LIGER = "Liger fused linear cross-entropy, token scaling"


@pytest.mark.slow
def test_every_peer_is_measured_with_and_without_triton(tmp_path):
    subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "--device", "cpu", "--tiny", "--cases", *CASES],
        check=True,
    )
    found = json.loads((tmp_path / "gpu_none.json").read_text())
    assert {"torch", "transformers"} <= found["versions"].keys()
    assert found["cases"].keys() == CASES.keys()
    for peers in found["cases"]["sft"].values():
        assert peers.pop(LIGER) in ("liger-kernel is not installed", "Liger's kernels need a GPU")
    for case, names in CASES.items():
        assert found["cases"][case].keys() == {"torch", "HF_LOSSES_TRITON=1"}
        for peers in found["cases"][case].values():
            assert names <= peers.keys()
            assert all(peer["milliseconds"] > 0 for peer in peers.values())
