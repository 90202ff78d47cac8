"""Imports go one way, and the losses need torch alone."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import hf_losses

FILES = {path.stem: path for path in Path(hf_losses.__file__).parent.glob("*.py")}

# What each of the lower rooms may import; the rooms above them may import these and one another,
# as long as no circle arises.
MATHS = {
    "registry": set(),
    "margin": {"torch"},
    "functional": {"torch", "registry", "margin"},
    "fused": {"torch"},
    "criterion": {"torch", "functional", "fused", "margin", "registry"},
    "linear": {"torch", "criterion", "fused"},
}
TRAINING = {
    "schedule": {"registry"},
    "builtin": set(),
    "decoder_inputs": {"builtin"},
    "heads": {"builtin", "criterion"},
    "normalise": {*MATHS, "builtin", "heads"},
    "loss_stats": {*MATHS, "builtin"},
    "direction": {"registry"},
    "class_weights": {"registry", "builtin", "criterion", "heads"},
    "arguments": {"registry", "class_weights", "direction", "schedule", "loss_stats"},
    "choice": {*MATHS, "heads", "class_weights"},
    "checkpoint": {"criterion"},
    "gradients": set(),
    "calibration": {"builtin"},
    "evaluation": {"calibration"},
    "adapters": set(),
    "base_trainers": {"builtin", "heads"},
    "model_card": {*MATHS, "checkpoint", "plots", "table"},
    "publish": {"__init__", "checkpoint", "model_card"},
    "trainer": {
        *(*MATHS, "schedule"),
        *("adapters", "arguments", "base_trainers", "builtin", "class_weights"),
        *("decoder_inputs", "heads", "normalise"),
        *("choice", "checkpoint", "evaluation", "gradients", "loss_stats", "model_card", "publish"),
    },
}


def imports(room):
    """The rooms of the package that a file names anywhere, and other packages."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(FILES[room].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, rest in (name.partition(".") for name in names):
            if package == "hf_losses":
                found = rest.split(".")[0]
                ours.add(found if found in FILES else "__init__")
            elif package not in sys.stdlib_module_names:
                others.add(package)
    return ours, others


@pytest.mark.parametrize("room", MATHS)
def test_the_maths_imports_torch_and_what_lies_below(room):
    ours, others = imports(room)
    assert ours | others <= MATHS[room]


@pytest.mark.parametrize("room", TRAINING)
def test_training_imports_what_lies_below(room):
    ours, _ = imports(room)
    assert ours <= TRAINING[room]


def test_there_is_no_circle():
    graph = {room: imports(room)[0] - {"__init__"} for room in FILES if room != "__init__"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("registry") < order.index("functional") < order.index("criterion")
    assert order.index("criterion") < order.index("arguments") < order.index("trainer")


def test_using_a_loss_loads_torch_and_nothing_else():
    program = """
import sys, torch
before = {name.partition(".")[0] for name in sys.modules}
import hf_losses
hf_losses.get_loss("liberal_exp", label_smoothing=0.1)(torch.zeros(1, 2), torch.tensor([0]))
hf_losses.get_loss("smae")(torch.zeros(1), torch.zeros(1))
after = {name.partition(".")[0] for name in sys.modules}
print(*sorted(after - before - sys.stdlib_module_names))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["hf_losses"]


def test_every_public_name_exists_and_no_other():
    for name in hf_losses.__all__:
        assert getattr(hf_losses, name).__module__.startswith("hf_losses.")
    with pytest.raises(AttributeError, match="no attribute 'get_los'"):
        _ = hf_losses.get_los
