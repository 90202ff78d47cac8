"""The kernels compile for GPUs that are not here, as far as a GPU's binary.

A process of its own: in the others Triton interprets.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")  # It exists for Linux alone.

COMPILE = """
import sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hf_losses import get_loss, list_losses
from hf_losses.losses.fused import triton_launch, triton_source

backend, arch, warp, *names = sys.argv[1:]
target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, int(warp))
torch.version.hip = "6.4" if backend == "hip" else None
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
CASES = ("bf16", 128256, 1), ("fp16", 32000, 1), ("fp32", 32000, 1), ("fp32", 2, None)
# A loss of each kernel is compiled in all cases. The kernels read and write the numbers; what
# differs from loss to loss is put behind them, and computes in float32 whatever the dtype.
IN_ALL_CASES = ("liberal_exp", "strict_l_full")
for name in names or list_losses(task="classification"):
    loss = get_loss(name)._function
    is_full = loss.spec.is_full
    module = triton_launch._kernels(triton_source.triton_source(loss))
    kernel = module.full_rows if is_full else module.sparse_rows
    for dtype, classes, step in CASES if name in IN_ALL_CASES else CASES[:1]:
        types = {argument: "i32" for argument in kernel.arg_names}
        types |= {"logits": f"*{dtype}", "gradient": f"*{dtype}", "target": "*i64"}
        types |= {"scale": "*fp32", "values": "*fp32"}
        options = triton_launch._launch_options(classes, BYTES[dtype], is_full)
        assert options["num_warps"] * target.warp_size <= 1024
        constants = {"DIFFERENTIATE": step is not None, "BLOCK": options.pop("BLOCK")}
        if step:  # Triton takes a stride of 1 for a constant.
            constants |= {"logits_step": step, "gradient_step": step}
        types |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, types, constexprs=constants)
        compiled = triton.compile(source, target=target, options=options)
        assert compiled.asm["cubin" if backend == "cuda" else "hsaco"]
        # The fast logarithm has no digits left near 1.
        assert "lg2.approx" not in compiled.asm.get("ptx", "")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        ("cuda", "80", "32"),
        ("cuda", "90", "32", "liberal_exp", "strict_l_full"),
        ("hip", "gfx942", "64", "liberal_exp", "strict_l_full"),
    ],
    ids=lambda target: target[1],
)
def test_every_kernel_compiles(target, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "error", "-c", COMPILE, *target]
    subprocess.run(command, check=True, env=environment)
