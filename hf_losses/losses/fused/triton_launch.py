"""All rows of logits at once, by a Triton kernel: on a GPU, unless `HF_LOSSES_TRITON=0`.

With `HF_LOSSES_TRITON=1` and `TRITON_INTERPRET=1`, Triton's interpreter runs the kernels on the
CPU: slowly, for tests.
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
# The most classes that a Triton program reads at once, by the bytes of a logit, and for full forms,
# which keep more numbers per class. The fastest on an H200.
BLOCKS, BLOCK_OF_FULL = {2: 2**12, 4: 2**14}, 2**12
PROGRAMS = 1024  # That share a multiplication.
# Shows whether the kernels compile.
NO_LOSS = "@triton.jit\ndef loss(m):\n    return m, m\n"

_LOGGER = logging.getLogger(__name__)
# By the loss, and by device, dtype and classes per read.
_MODULES: weakref.WeakKeyDictionary[BoundedLoss, dict[Any, types.ModuleType | None]] = (
    weakref.WeakKeyDictionary()
)
_SOURCES: weakref.WeakKeyDictionary[BoundedLoss, str] = weakref.WeakKeyDictionary()


@functools.cache
def choice() -> bool | None:
    """Whether the environment asks for the kernels, by `HF_LOSSES_TRITON`; None if it is unset.

    Raises:
        ValueError: If the variable is neither 0 nor 1, or Triton is asked for and missing.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{VARIABLE} must be 0 or 1, got {value!r}")
    if value == "1" and importlib.util.find_spec("triton") is None:
        raise UsageError(f"{VARIABLE}=1 needs Triton: pip install triton, or leave it unset")
    return None if value == "" else value == "1"


def serves(kernel: Kernel, rows: Tensor) -> bool:
    """Whether Triton makes the losses of these rows.

    Args:
        kernel: `Sparse` or `Full`, of which only the loss is used.
        rows: On the device of the logits.

    Returns:
        False if the environment says so, on other devices, or if the loss has no translation that
        compiles.
    """
    if not _runs_on(rows):
        return False
    # Offsets within a row have 32 bits.
    too_wide = rows.stride(1) > 1 and rows.shape[1] * rows.stride(1) >= 2**31
    return not too_wide and _module(kernel.loss, rows) is not None


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

    Raises:
        ValueError: If logits and targets are on different devices: a kernel takes addresses.
    """
    if target.device != rows.device:
        raise UsageError(
            f"the logits are on {rows.device} and the targets on {target.device}: move one of them"
        )
    module: Any = _module(kernel.loss, rows)
    values = rows.new_empty(len(rows), dtype=torch.float32)
    if not len(rows):
        return values
    _launch_rows(module, kernel.loss.spec.is_full, rows, target, scale, values, gradient)
    if gradient is rows:  # So that autograd sees it.
        torch.autograd.graph.increment_version(rows)
    return values


def multiply(numbers: Tensor, factor: Tensor) -> bool:
    """Multiplies numbers in place by a scalar tensor, without reading them if it is 1.

    Returns:
        False if nothing was done, since no kernel is to be used or the numbers lie scattered.
    """
    if not (_runs_on(numbers) and numbers.is_contiguous()):
        return False
    if numbers.numel():
        _launch_multiply(numbers, factor)
        torch.autograd.graph.increment_version(numbers)
    return True


def _launch_rows(
    module: Any,
    is_full: bool,
    rows: Tensor,
    target: Tensor,
    scale: Tensor,
    values: Tensor,
    gradient: Tensor | None,
) -> None:
    count, classes = rows.shape
    out = rows if gradient is None else gradient
    with _device(rows):
        (module.full_rows if is_full else module.sparse_rows)[(count,)](
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
            **_launch_options(classes, rows.element_size(), is_full),
        )


def _launch_multiply(numbers: Tensor, factor: Tensor) -> None:
    with _device(numbers):
        _kernels("").multiply[(PROGRAMS,)](numbers, factor, numbers.numel(), BLOCK=2**12)


def _runs_on(rows: Tensor) -> bool:
    if type(rows) not in (Tensor, torch.nn.Parameter):  # A DTensor or FakeTensor has no address.
        return False
    asked = choice()
    if rows.is_cuda and asked is None:
        return _works_on(rows.device)
    return bool(asked) and (rows.is_cuda or (rows.is_cpu and _interprets()))


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton can be used without being asked for: not if it is missing or cannot compile.

    On ROCm nobody has measured the kernels yet.
    """
    if torch.version.hip or importlib.util.find_spec("triton") is None:
        return False
    one = torch.ones(1, device=device)
    try:
        _launch_multiply(one, one)
        _try(_kernels(NO_LOSS), False, one.new_zeros(1, 2))
    except Exception as error:  # Such as a machine without a C compiler.
        if _is_out_of_memory(error):
            raise
        _LOGGER.warning(
            "losses take PyTorch's operations, which are slower, since Triton does not work here "
            "(%s=0 says so without a warning): %s",
            *(VARIABLE, error),
        )
        return False
    return True


def _try(module: Any, is_full: bool, rows: Tensor) -> None:
    """Compiles and runs kernels on a row, which they overwrite; raises what they raise."""
    one = rows.new_ones(1, dtype=torch.float32)
    _launch_rows(module, is_full, rows, one.long(), one, torch.empty_like(one), rows)


def _device(rows: Tensor) -> Any:
    return torch.cuda.device(rows.device) if rows.is_cuda else contextlib.nullcontext()


def _launch_options(classes: int, bytes_of_logit: int, is_full: bool) -> dict[str, Any]:
    most = BLOCK_OF_FULL if is_full else BLOCKS[bytes_of_logit]
    block = min(1 << (classes - 1).bit_length(), most)
    most_warps = 16 if torch.version.hip else 32  # Of 64 and of 32 threads: 1024 are the most.
    warps = max(1, min(most_warps, block // 512))
    return {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": True}


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _module(loss: BoundedLoss, rows: Tensor) -> types.ModuleType | None:
    """The kernels of a loss; None if it has no translation that compiles for such rows."""
    modules = _MODULES.setdefault(loss, {})
    options = _launch_options(rows.shape[1], rows.element_size(), loss.spec.is_full)
    kind = rows.device, rows.dtype, options["BLOCK"]
    if kind not in modules:
        modules[kind] = _compiled(loss, rows) if _source(loss) else None
    return modules[kind]


def _compiled(loss: BoundedLoss, rows: Tensor) -> types.ModuleType | None:
    module: Any = _kernels(_source(loss))
    try:
        _try(module, loss.spec.is_full, rows.new_zeros(1, rows.shape[1]))
    except Exception as error:  # Anything that a compiler raises.
        if choice() or _is_out_of_memory(error):
            raise  # Who asks for the kernels is to know.
        _warn(loss, " that works here", error)
        return None
    return module  # type: ignore[no-any-return]


def _source(loss: BoundedLoss) -> str:
    """The loss in Triton's language; empty if it has no translation."""
    if loss not in _SOURCES:
        try:
            _SOURCES[loss] = triton_source(loss)
        except NotTranslatable as error:
            _warn(loss, "", error)
            _SOURCES[loss] = ""
    return _SOURCES[loss]


def _warn(loss: BoundedLoss, more: str, error: Exception) -> None:
    _LOGGER.warning(
        "the loss %s takes PyTorch's operations, which are slower, since it has no translation to "
        "Triton%s: %s",
        *(loss.spec.name, more, error),
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says nothing about the kernels; that of Triton has no class of its own."""
    triton_error = isinstance(error, RuntimeError) and "out of memory" in str(error)
    return triton_error or isinstance(error, torch.OutOfMemoryError)


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
