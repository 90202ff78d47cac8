"""The device of these tests; `HF_LOSSES_TEST_DEVICE=cpu` runs them without a GPU, to debug them."""

import os
import warnings
from contextlib import contextmanager

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    device = torch.device(os.environ.get("HF_LOSSES_TEST_DEVICE", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return device


@pytest.fixture(autouse=True)
def full_float32():
    """transformers and Accelerate switch TensorFloat-32 on for torch_compile, in the whole process.

    The one by the first of these, if PyTorch has it (since 2.9), the other by the second.
    """
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "ieee"
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def without_waiting(device):
    """A context in which it is an error to wait for the GPU."""

    @contextmanager
    def without_waiting():
        if device.type != "cuda":
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That not every kind of waiting is noticed.
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return without_waiting
