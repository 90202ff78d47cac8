"""The list of Trainer's private parts that are used is complete, and they are there."""

import ast
import inspect
from pathlib import Path

import pytest
from transformers import Trainer
from transformers import trainer as trainer_module

from hf_losses import LossMixin
from hf_losses.training import hooks

TRAINING = Path(inspect.getfile(hooks)).parent


def used():
    """Names of Trainer's private methods that the mixin overrides, or that are called."""
    names = set()
    for path in [*TRAINING.rglob("*.py"), *TRAINING.parent.joinpath("script").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.FunctionDef):
                name = node.attr if isinstance(node, ast.Attribute) else node.name
                if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name):
                    names.add(name)
    return names


def test_every_private_method_that_is_used_is_listed_and_no_other():
    private = {name for name in hooks.METHODS if name.startswith("_")}
    assert used() == private


@pytest.mark.parametrize("name", hooks.METHODS)
def test_trainer_still_has_it(name):
    assert callable(getattr(Trainer, name))
    overridden = hooks.METHODS[name].startswith("overridden")
    assert overridden == any(name in vars(cls) for cls in LossMixin.__mro__[:-1])
    if overridden:
        ours = inspect.signature(getattr(LossMixin, name)).parameters.values()
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        variadic = any(p.kind is p.VAR_POSITIONAL for p in ours)
        assert variadic or [p.name for p in ours] == [*theirs]


@pytest.mark.parametrize("name", hooks.ATTRIBUTES)
def test_trainer_still_uses_the_attribute(name):
    source = inspect.getsource(trainer_module)
    assert f"self.{name}" in source or f'"{name}"' in source
