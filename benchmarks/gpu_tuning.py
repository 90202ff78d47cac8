"""What the sizes in `triton_launch` and `linear` were chosen by: times on a GPU, in microseconds.

    python benchmarks/gpu_tuning.py results/benchmarks [--parts kernels layers]

Losses and gradients of logits by the kernels with other numbers of classes per read (`BLOCK`) and
of warps, beside a copy of the logits; and `linear_loss`, forward and backward, with other numbers
of rows per product, time and peak memory beyond the inputs. Medians of Triton's `do_bench`. Weights
are random; nothing is downloaded. Writes gpu_tuning_CARD.json, after every figure; those of a part
that is not measured stay.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from gpu import file_name, machine, peak_bytes

from hf_losses import get_loss, linear_loss
from hf_losses.losses import linear
from hf_losses.losses.fused import triton_launch

SHAPE = 4096, 32000
BLOCKS = {"liberal_exp": range(11, 16), "strict_m_full": range(10, 14)}  # Powers of 2.
WARPS = (4, 8, 16, 32)
LAYERS = ((4096, 32000, 2048), (8192, 128256, 4096), (16384, 50257, 768))
LOGITS = range(24, 28)  # That are made together, as powers of 2.


def microseconds(run):
    from triton.testing import do_bench

    return round(1e3 * do_bench(run, warmup=5, rep=40, return_mode="median"), 1)


def of_kernels():
    """Figures by what was measured."""
    rows, classes = SHAPE
    options = triton_launch._launch_options
    for dtype in ("bfloat16", "float32"):
        z = torch.randn(rows, classes, device="cuda", dtype=getattr(torch, dtype))
        target = torch.randint(0, classes, (rows,), device="cuda")
        scale, gradient = torch.full((rows,), 1 / rows, device="cuda"), z.clone()
        yield f"{dtype}: copy", microseconds(lambda out=gradient, z=z: out.copy_(z))
        for name, powers in BLOCKS.items():
            given = get_loss(name).kernel, z, target, scale, gradient
            for power, warps in itertools.product(powers, WARPS):
                if not 128 <= 2**power // warps <= 2048:
                    continue
                chosen = {"BLOCK": 2**power, "num_warps": warps, "enable_fp_fusion": True}
                triton_launch._launch_options = lambda *_, chosen=chosen: chosen
                time = microseconds(lambda given=given: triton_launch.losses(*given))
                yield f"{dtype}: {name}, BLOCK={2**power}, num_warps={warps}", time
    triton_launch._launch_options = options


def of_layers():
    """Figures by what was measured."""
    for rows, classes, width in LAYERS:
        hidden = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(classes, width, device="cuda", dtype=torch.bfloat16) * width**-0.5
        target = torch.randint(0, classes, (rows,), device="cuda")
        loss = get_loss("liberal_exp")

        def run(given=(hidden, weight), target=target, loss=loss):
            leaves = [x.detach().requires_grad_() for x in given]
            linear_loss(*leaves, target, loss=loss).backward()

        chosen = linear.ROWS_ON_GPU
        for power in (*LOGITS, None):
            together = max(1, 2**power // classes) if power else None
            linear.ROWS_ON_GPU = (together, together) if power else chosen
            name = f"linear {rows}x{classes}x{width}, {together or 'chosen'} rows"
            yield name, {"microseconds": microseconds(run), "peak_bytes": peak_bytes(run)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parts = {"kernels": of_kernels, "layers": of_layers}
    parser.add_argument("--parts", nargs="+", choices=parts, default=tuple(parts))
    given = parser.parse_args()
    folder = given.folder
    facts = machine("cuda")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name("gpu_tuning", facts)
    figures = json.loads(path.read_text())["figures"] if path.exists() else {}
    for name, figure in itertools.chain(*(parts[part]() for part in given.parts)):
        figures[name] = figure
        print(name, figure, flush=True)
        path.write_text(json.dumps(facts | {"figures": figures}, indent=1) + "\n", "utf-8")
