"""Runs a recipe so that `--bf16` computes what a processor with instructions for it computes.

    python results/precision/rounded.py recipes/glue.py --loss cross_entropy --bf16 ...

Without such instructions (AVX2) PyTorch trains some thirteen times as slowly in bfloat16 as in
float32. Here a product of matrices in bfloat16 is one in float32 of the same, already rounded
numbers, and the result is rounded again. AMX and AVX512_BF16 do that too: they multiply bfloat16
exactly and add in float32, in an order of their own. All else (attention, norms, the optimizer) is
untouched.
"""

import runpy
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {
    operator.default for operator in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm)
}


class RoundedProducts(TorchDispatchMode):
    """Products of bfloat16 matrices on the CPU, summed in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS and args[0].dtype == torch.bfloat16:
            return func(*(each.float() for each in args), **kwargs).bfloat16()
        return func(*args, **kwargs)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: rounded.py RECIPE and its arguments, such as recipes/glue.py --bf16")
    sys.argv = sys.argv[1:]
    with RoundedProducts():
        runpy.run_path(sys.argv[0], run_name="__main__")
