"""Every private part of Trainer that is used is listed, and transformers still has it so."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer
from transformers import trainer as trainer_module

from hf_losses import LossMixin
from hf_losses.training import hooks

TRAINING = Path(inspect.getfile(hooks)).parent
FILES = [*TRAINING.rglob("*.py"), *TRAINING.parent.joinpath("script").glob("*.py")]
NODES = [node for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
CALLED = [name for name, reason in hooks.METHODS.items() if reason.startswith("called")]
# The parameters of the methods that are called and not overridden, as they are passed here.
PASSED = {
    "_finish_current_push": [],
    "compute_loss_context_manager": [],
    "get_tp_size": [],
}


def used():
    """Names of Trainer's private methods that the mixin overrides, or that are called."""
    names = {node.attr for node in NODES if isinstance(node, ast.Attribute)}
    names |= {node.name for node in NODES if isinstance(node, ast.FunctionDef)}
    return {
        name
        for name in names
        if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }


def calls(name):
    """The calls of a method of this name."""
    return [
        node
        for node in NODES
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == name
    ]


def test_every_private_method_that_is_used_is_listed_and_no_other():
    private = {name for name in hooks.METHODS if name.startswith("_")}
    assert used() == private


def test_every_private_attribute_that_is_used_is_listed_and_no_other():
    used = {node.attr for node in NODES if isinstance(node, ast.Attribute)}
    own = {node.name for node in NODES if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = [node.targets for node in NODES if isinstance(node, ast.Assign)]
    assigned += [[node.target] for node in NODES if isinstance(node, ast.AnnAssign)]
    for targets in assigned:
        inner = [node for target in targets for node in ast.walk(target)]
        own |= {node.attr for node in inner if isinstance(node, ast.Attribute)}
    private = {name for name in used - own if name.startswith("_") and not name.startswith("__")}
    listed = {*hooks.METHODS, *hooks.ATTRIBUTES, *hooks.OTHERS}
    assert private == {name for name in listed - own if name.startswith("_")}


@pytest.mark.parametrize(("name", "module"), hooks.OTHERS.items())
def test_other_libraries_still_have_it(name, module):
    pytest.importorskip(module.partition(".")[0])
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf"(self\.|class |^ +){name}\b", source, re.MULTILINE)


@pytest.mark.parametrize("name", CALLED)
def test_trainer_takes_what_is_passed(name):
    signature = inspect.signature(getattr(Trainer, name))
    assert calls(name)
    for call in calls(name):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        # Raises if a parameter is unknown, or one without a default is not passed.
        bound = signature.bind("self", *call.args, **keywords)
        assert [*bound.arguments][1:] == PASSED[name]


@pytest.mark.parametrize("name", hooks.METHODS)
def test_trainer_still_has_it(name):
    assert callable(getattr(Trainer, name))
    overridden = hooks.METHODS[name].startswith("overridden")
    assert overridden == any(name in vars(cls) for cls in LossMixin.__mro__[:-1])
    if overridden:
        parameters = inspect.signature(getattr(LossMixin, name)).parameters.values()
        expected = inspect.signature(getattr(Trainer, name)).parameters
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        assert variadic or [p.name for p in parameters] == [*expected]


@pytest.mark.parametrize("name", hooks.ATTRIBUTES)
def test_trainer_still_uses_the_attribute(name):
    source = inspect.getsource(trainer_module)
    assert f"self.{name}" in source or f'"{name}"' in source
