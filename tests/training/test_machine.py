"""What a run was made with, and a processor that --bf16 would slow down."""

import logging
import os
import platform
from types import SimpleNamespace

import pytest
import torch

from hf_losses.training.recipe.arguments import RecipeTrainingArguments
from hf_losses.training.reports.machine import emulates_bfloat16, hardware, versions


def test_the_processor_is_named_with_its_instructions():
    found = hardware(torch.device("cpu"))
    assert found["gpu"] is None
    assert found["cpu_count"] == os.cpu_count()
    name, _, instructions = found["cpu"].rpartition(" ")
    assert name
    assert instructions == f"({torch.backends.cpu.get_cpu_capability()})"


def test_versions_are_those_that_are_imported():
    found = versions("optuna")
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert {"hf-losses", "transformers", "optuna"} <= set(found)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instructions of x86")
def test_a_processor_emulates_bfloat16_where_onednn_has_no_kernels_for_it():
    assert emulates_bfloat16() == (not torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.parametrize(
    ("instructions", "bf16", "told"),
    [("AVX2", True, True), ("AVX512", True, False), ("AVX2", False, False)],
)
def test_bf16_that_makes_a_training_slower_is_told(
    tmp_path, monkeypatch, caplog, instructions, bf16, told
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    with caplog.at_level(logging.WARNING):
        RecipeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=bf16)
    assert ("no instructions for bfloat16" in caplog.text) == told


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_gpu_that_emulates_bfloat16(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert emulates_bfloat16(torch.device("cuda")) == (capability < (8, 0))
