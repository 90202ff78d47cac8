"""Would a slip in a loss be noticed? Every mutant of every function must be refused.

A mutant differs from classification.py or regression.py in one place: + for -, * for /, or a minus
added or dropped. It is held against the formula text, value and slope, as test_formulas.py does
with the original.
"""

import __future__

import ast
import inspect
from functools import partial

import pytest
import torch
from formulas import bounded, evaluate, parts
from mpmath import mp, mpf

from hf_losses import get_spec, list_losses
from hf_losses.losses import classification, regression

SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
POINTS = {
    "classification": (-9.0, -2.0, -0.3, 0.0, 0.7, 3.0, 12.0),
    "regression": (-30.0, -5.0, -1.1, -0.6, -1e-3, 1e-3, 0.6, 1.1, 5.0, 30.0),
}


def itself(function):
    return function


def of_pq(function):
    """A function of the margin from one of p and q."""
    return lambda m, **parameters: classification.at_margin(partial(function, **parameters), m)


def of_exp(at_margin):
    return lambda m: at_margin(classification.liberal_exp_pq, m)


# Every function with the first record that has it, and how it becomes one of the margin.
UNITS = {"at_margin": (get_spec("liberal_exp"), classification.at_margin, of_exp)}
for name in reversed(list_losses()):
    spec = get_spec(name)
    if "at_margin" not in spec.function.__code__.co_names:  # There is nothing else in such a one.
        UNITS[spec.function.__name__] = (spec, spec.function, itself)
    if spec.probability_function:
        UNITS[spec.probability_function.__name__] = (spec, spec.probability_function, of_pq)
FUNCTIONS = pytest.mark.parametrize("unit", UNITS.values(), ids=list(UNITS))

# Lines of mutants that compute the same, because they change the sign of what an even function
# takes: |-e| = |e| and tanh(-e)² = tanh(e)²; or of what only lends its shape.
EQUIVALENT = {
    "mae": {"return ((-e).abs(), e.sign())"},
    "cross_entropy_pq": {"return ((q / p).log1p_(), torch.ones_like(-p))"},
    "log_cosh": {
        "size, slope = ((-e).abs(), torch.tanh(e))",
        "near = -0.5 * torch.log1p(-torch.tanh((-size).clamp(max=1.0)) ** 2)",
        "near = -0.5 * torch.log1p(-torch.tanh(-size.clamp(max=1.0)) ** 2)",
        "near = -0.5 * torch.log1p(-(-torch.tanh(size.clamp(max=1.0))) ** 2)",
    },
}


class Mutation(ast.NodeTransformer):
    """Makes the change of the given number, in the order in which it meets the places."""

    def __init__(self, number):
        self.left = number

    def chosen(self):
        self.left -= 1
        return self.left == -1

    def negated(self, node):
        return ast.UnaryOp(ast.USub(), node) if self.chosen() else node

    def visit_FunctionDef(self, node):
        node.body = [self.visit(statement) for statement in node.body]
        node.decorator_list = []
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if type(node.op) in SWAPS and self.chosen():
            node.op = SWAPS[type(node.op)]()
        return self.negated(node)

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return node.operand if self.chosen() else node

    def visit_Call(self, node):
        self.generic_visit(node)
        is_pair = isinstance(node.func, ast.Name) and node.func.id == "function"
        return node if is_pair else self.negated(node)

    def visit_Attribute(self, node):
        # torch.sigmoid, math.pi: the module has no sign.
        is_module = isinstance(node.value, ast.Name) and node.value.id in ("torch", "math")
        return node if is_module else self.generic_visit(node)

    def visit_Name(self, node):
        is_value = isinstance(node.ctx, ast.Load) and node.id not in ("logsigmoid", "function")
        return self.negated(node) if is_value else node


def mutants(function):
    """(changed line, function) of each."""
    number = 0
    original = ast.unparse(ast.parse(inspect.getsource(function))).splitlines()
    while True:
        tree = ast.parse(inspect.getsource(function))
        mutation = Mutation(number)
        mutation.visit(tree)
        if mutation.left >= 0:
            return
        namespace = dict(vars(classification)) | dict(vars(regression))
        # Annotations name what is imported for the type checker alone.
        flags = __future__.annotations.compiler_flag
        code = compile(ast.fix_missing_locations(tree), "<mutant>", "exec", flags=flags)
        exec(code, namespace)
        (changed,) = (line for line in ast.unparse(tree).splitlines() if line not in original)
        yield changed.strip(), namespace[function.__name__]
        number += 1


def exact(spec):
    """Values and slopes by the formula text."""
    if spec.task == "classification":
        pairs = [bounded(parts(spec.name)[0], m) for m in POINTS[spec.task]]
    else:

        def formula(e):
            return evaluate(spec.formula, e=e, **spec.resolve({}))

        pairs = [(formula(mpf(e)), mp.diff(formula, mpf(e))) for e in POINTS[spec.task]]
    return torch.tensor([[float(x) for x in pair] for pair in pairs], dtype=torch.float64).T


def is_right(spec, function, expected):
    x = torch.tensor(POINTS[spec.task], dtype=torch.float64)
    found = torch.stack(function(x, **spec.resolve({})))
    return torch.allclose(found, expected, rtol=1e-13, atol=0)


@FUNCTIONS
def test_every_mutant_is_refused(unit):
    spec, function, of_margin = unit
    expected = exact(spec)
    assert is_right(spec, of_margin(function), expected)
    found = list(mutants(function))
    assert len(found) >= 2
    survivors = {line for line, mutant in found if is_right(spec, of_margin(mutant), expected)}
    assert survivors == EQUIVALENT.get(function.__name__, set())
