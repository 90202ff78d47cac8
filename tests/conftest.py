import functools
import gc
import os
import signal
import sys
import types

# Triton's interpreter runs the kernels on the CPU (`make test-gpu` says 0). Triton asks this once,
# when something imports it.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import jinja2
import numpy
import pytest
import torch
from hub import TOKEN, Hub
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http
from torch.nn.functional import logsigmoid

from hf_losses import list_losses, register_loss
from hf_losses.compare.engines import local_pool
from hf_losses.losses import linear, modules, registry
from hf_losses.losses.fused import function, triton_launch

# The same examples on every run, and no deadline, which a slow machine would miss.
hypothesis.settings.register_profile(
    "tests", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("tests")

# A shell starts background jobs with SIGINT ignored, which every script here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors here are tiny, and the tests may run in several processes.
torch.set_num_threads(1)

# A model card's template is compiled as often as a card is made, which takes as long as a tiny run.
jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)

local_pool.POLL = 0.005  # Most runs that are compared here take a tenth of a second.

LOSSES = list_losses(task="classification")


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Spares what is imported from every training's garbage collection, two thirds of its time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def eleventh_loss(monkeypatch):
    """A loss that a user registers, unregistered after the test."""
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))

    @register_loss(
        "strict_square",
        kind="strict",
        formula="p**(-2) - 1",
        weight_formula="2*p**(-2)",
        reference="somebody 2026, arXiv:2601.00001",
    )
    def strict_square(m):
        exponent = -2 * logsigmoid(m)
        return torch.expm1(exponent), -2 * torch.exp(exponent) * torch.sigmoid(-m)

    return "strict_square"


@pytest.fixture
def pictures():
    """The pictures of a model card; they are drawn for the tests that ask for this."""
    return ("loss.png", "learning_curve.png")


@pytest.fixture
def no_pictures(request, monkeypatch):
    """Model cards as where matplotlib is missing: drawing takes most of the time of a tiny run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.style", None)


@pytest.fixture
def hub(monkeypatch):
    """A local stand-in for the Hub; waits are recorded rather than waited for."""
    with Hub() as hub:
        hub.waits, hub.waits_of_client = [], []
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no such file")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("hf_losses.hub.upload.sleep", hub.waits.append)
        clock = types.SimpleNamespace(sleep=hub.waits_of_client.append)
        monkeypatch.setattr(_http, "time", clock)
        yield hub
        close_session()


BY_TRITON = ("strict_l", "liberal_exp", "focal", "strict_m_power", "strict_l_full")


def pytest_collection_modifyitems(config, items):
    """Of tests of every loss, Triton's interpreter, which takes long, has those of some losses.

    `test_triton.py` has the values and gradients of every loss.
    """
    kept, left_out = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        of_every_loss = any(
            mark.args[0] == "name" and mark.args[1] == LOSSES
            for mark in item.iter_markers("parametrize")
        )
        by_triton = params.get("engine") == "triton" and of_every_loss
        (left_out if by_triton and params["name"] not in BY_TRITON else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(
    params=[
        "cpu",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("accelerator", "triton")),
    ],
)
def engine(request, monkeypatch):
    """What makes a fused loss: as on a CPU, as on a GPU (tensors must not be asked), or Triton."""
    if request.param != "cpu":
        for module in (function, linear, modules):
            monkeypatch.setattr(module, "may_wait", lambda tensor: False)
    if request.param == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr(triton_launch, "choice", lambda: True)
    # The interpreter computes with NumPy, which warns of what a GPU does in silence.
    with numpy.errstate(all="ignore"):
        yield request.param
