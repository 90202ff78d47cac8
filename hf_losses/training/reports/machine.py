"""What a run was made with: the versions of the packages, and the processor that computed."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch
from joblib import cpu_count

PACKAGES = ("hf-losses", "torch", "transformers", "accelerate", "datasets", "peft")


def versions(*more: str) -> dict[str, str]:
    """The versions of the packages that every run needs, of `more` packages, and of Python."""
    found = {name: importlib.metadata.version(name) for name in (*PACKAGES, *more)}
    return found | {"python": platform.python_version()}


def hardware(device: torch.device | None = None) -> dict[str, str | int | None]:
    """The processor with the instructions that torch uses on it, its cores, and the GPU.

    Args:
        device: What was computed on; without one, the GPU that there is, if any.

    Returns:
        `cpu`, such as `AMD EPYC (AVX2)`; `cpu_count`, the cores that this process may use; and
        `gpu`, None if nothing ran on one.
    """
    cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "cpu": f"{_cpu_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "cpu_count": cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
    }


def emulates_bfloat16(device: torch.device | None = None) -> bool:
    """Whether a device has no instructions for products of bfloat16, as far as is known.

    A product of matrices took torch 50 times as long as in float32 on a processor with AVX2 alone.
    Nothing is known of other processors than x86's, and of other devices than NVIDIA's and AMD's.

    Args:
        device: By default the processor.
    """
    if device is not None and device.type != "cpu":
        return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # There is none but on Linux.
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
