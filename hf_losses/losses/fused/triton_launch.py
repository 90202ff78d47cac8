"""All rows of logits at once, by a Triton kernel: on a GPU, and where `HF_LOSSES_TRITON=1` asks.

No GPU has run the kernels yet, which is why they have to be asked for. With `TRITON_INTERPRET=1`
as well, Triton's interpreter runs them on the CPU: slowly, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import linecache
import logging
import os
import types
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_losses.losses.bound import BoundedLoss
from hf_losses.losses.fused.chunk import Kernel
from hf_losses.losses.fused.triton_source import NotTranslatable, triton_source
from hf_losses.messages import UsageError

VARIABLE = "HF_LOSSES_TRITON"
KERNELS = Path(__file__).with_name("triton_kernels.py")
# The most classes that a Triton program reads at once; full forms keep more numbers per class.
BLOCK, BLOCK_OF_FULL = 2**14, 2**12
PROGRAMS = 1024  # That share a multiplication.

_LOGGER = logging.getLogger(__name__)
_MODULES: weakref.WeakKeyDictionary[BoundedLoss, types.ModuleType | None] = (
    weakref.WeakKeyDictionary()
)


@functools.cache
def is_enabled() -> bool:
    """Whether the environment asks for the kernels, by `HF_LOSSES_TRITON=1`.

    Raises:
        ValueError: If the variable is neither 0 nor 1, or Triton is missing.
    """
    value = os.environ.get(VARIABLE, "0")
    if value not in ("0", "1"):
        raise UsageError(f"{VARIABLE} must be 0 or 1, got {value!r}")
    if value == "1" and importlib.util.find_spec("triton") is None:
        raise UsageError(f"{VARIABLE}=1 needs Triton: pip install triton, or leave it unset")
    return value == "1"


def serves(kernel: Kernel, rows: Tensor) -> bool:
    """Whether Triton makes the losses of these rows.

    Args:
        kernel: `Sparse` or `Full`, of which only the loss is used.
        rows: On the device of the logits.

    Returns:
        False if no kernel was asked for, on other devices, or if the loss has no translation.
    """
    if not _is_asked_for(rows):
        return False
    # Offsets within a row have 32 bits.
    too_wide = rows.stride(1) > 1 and rows.shape[1] * rows.stride(1) >= 2**31
    return not too_wide and _module(kernel.loss) is not None


def losses(
    kernel: Kernel, rows: Tensor, target: Tensor, scale: Tensor, gradient: Tensor | None
) -> Tensor:
    """Losses and gradients of rows of logits, where a kernel `serves`.

    Args:
        kernel: `Sparse` or `Full`, of which only the loss is used.
        rows: `[N, C]`, float32, bfloat16 or float16.
        target: `[N]`, int64; a class that does not exist makes a row NaN.
        scale: `[N]` or `[]`, float32, by which gradients are multiplied; a row with 0 may hold
            anything.
        gradient: Like the rows, which it may be; overwritten with the gradients. None to make
            none.

    Returns:
        `[N]`, float32, not scaled.
    """
    module: Any = _module(kernel.loss)
    count, classes = rows.shape
    values = rows.new_empty(count, dtype=torch.float32)
    if not count:
        return values
    is_full = kernel.loss.spec.is_full
    launch = (module.full_rows if is_full else module.sparse_rows)[(count,)]
    out = rows if gradient is None else gradient
    with _device(rows):
        launch(
            rows,
            out,
            target.contiguous(),
            scale,
            values,
            classes,
            *rows.stride(),
            *out.stride(),
            scale.stride(0) if scale.dim() else 0,
            DIFFERENTIATE=gradient is not None,
            **_launch_options(classes, is_full),
        )
    if gradient is rows:  # So that autograd sees it.
        torch.autograd.graph.increment_version(rows)
    return values


def multiply(numbers: Tensor, factor: Tensor) -> bool:
    """Multiplies numbers in place by a scalar tensor, without reading them if it is 1.

    Returns:
        False if nothing was done, since no kernel was asked for or the numbers lie scattered.
    """
    if not (_is_asked_for(numbers) and numbers.is_contiguous()):
        return False
    if numbers.numel():
        with _device(numbers):
            _kernels("").multiply[(PROGRAMS,)](numbers, factor, numbers.numel(), BLOCK=2**12)
        torch.autograd.graph.increment_version(numbers)
    return True


def _is_asked_for(rows: Tensor) -> bool:
    return is_enabled() and (rows.is_cuda or (rows.is_cpu and _interprets()))


def _device(rows: Tensor) -> Any:
    return torch.cuda.device(rows.device) if rows.is_cuda else contextlib.nullcontext()


def _launch_options(classes: int, is_full: bool) -> dict[str, Any]:
    block = min(1 << (classes - 1).bit_length(), BLOCK_OF_FULL if is_full else BLOCK)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 512)), "enable_fp_fusion": True}


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _module(loss: BoundedLoss) -> types.ModuleType | None:
    """The kernels of a loss; None if it has no translation."""
    if loss not in _MODULES:
        try:
            _MODULES[loss] = _kernels(triton_source(loss))
        except NotTranslatable as error:
            _LOGGER.warning(
                "the loss %s takes PyTorch's operations in spite of %s=1, since it has no "
                "translation to Triton: %s",
                *(loss.spec.name, VARIABLE, error),
            )
            _MODULES[loss] = None
    return _MODULES[loss]


@functools.cache
def _kernels(source: str) -> Any:
    """The kernels around the text of a loss."""
    text = f"{KERNELS.read_text(encoding='utf-8')}\n\n{source}"
    name = f"<hf_losses kernels {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    # Triton reads the source of its functions. None instead of a time stamp says that the text
    # comes from no file, so that linecache keeps it.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    module = types.ModuleType("hf_losses_kernels")
    exec(compile(text, name, "exec"), module.__dict__)
    return module
