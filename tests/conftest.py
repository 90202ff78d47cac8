import gc
import signal
import sys
import types

import hypothesis
import pytest
import torch
from hub import TOKEN, Hub
from huggingface_hub import close_session, constants
from huggingface_hub.utils import _http
from torch.nn.functional import logsigmoid

from hf_losses import register_loss
from hf_losses.losses import registry

# The same examples on every run, and no deadline, which a slow machine would miss.
hypothesis.settings.register_profile(
    "tests", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("tests")

# A shell starts background jobs with SIGINT ignored, which every script here would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors here are tiny, and the tests may run in several processes.
torch.set_num_threads(1)


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
