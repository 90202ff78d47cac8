"""A loss of the margin, declared for PyTorch, as the text of a Triton function.

`torch.fx` traces the loss, and each of its operations is written down as its counterpart in Triton:
one declaration serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

# PyTorch's operations, in-place ones without their underscore, and their text in Triton. Functions
# without the prefix `tl.` are defined in `triton_kernels`.
OPERATIONS: dict[str, str] = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "rsub": "{1} - {0}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "truediv": "{0} / {1}",
    "neg": "-{0}",
    "square": "{0} * {0}",
    "reciprocal": "1.0 / {0}",
    "addcmul": "{0} + {1} * {2}",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "1.0 / tl.sqrt({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "abs": "tl.abs({0})",
    "expm1": "exp_minus_one({0})",
    "log1p": "log_one_plus({0})",
    "sigmoid": "sigmoid({0})",
    "log_sigmoid": "log_sigmoid({0})",
    "ones_like": "tl.where({0} == {0}, 1.0, 1.0)",
    "zeros_like": "tl.where({0} == {0}, 0.0, 0.0)",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "where": "tl.where({0}, {1}, {2})",
    "masked_fill": "tl.where({1}, {2}, {0})",
}
LARGEST_EXPONENT = 8


class NotTranslatable(Exception):
    """The loss does something that has no counterpart here."""


def triton_source(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> str:
    """The text of `loss(m)`, which returns the value and the derivative.

    Args:
        function: Value and derivative of a loss by the margin, element-wise.

    Returns:
        A function with Triton's decorator, to be run after the text of `triton_kernels`.

    Raises:
        NotTranslatable: If the function branches on its argument, or calls what is not among
            `OPERATIONS`.
    """
    graph = _traced(function)
    lines, names = ["@triton.jit", "def loss(m):"], dict[fx.Node, str]()
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = "m"
        elif node.op == "output":
            value, derivative = (_text(argument, names) for argument in node.args[0])
            lines.append(f"    return {value}, {derivative}")
        else:
            names[node] = f"v{len(lines)}"
            lines.append(f"    {names[node]} = {_expression(node, names)}")
            if _operation(node).endswith("_"):
                # In place: from here on all names of the changed tensor stand for the result.
                before = names[node.args[0]]
                names |= {one: names[node] for one, name in names.items() if name == before}
    return "\n".join(lines) + "\n"


def _traced(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> fx.Graph:
    """The operations of a function on a tensor, which is held to what the function computes."""
    graph = fx.Graph()
    # Not fx.symbolic_trace, which changes torch.nn.Module for all threads as long as it runs.
    tracer = fx.proxy.GraphAppendingTracer(graph)
    try:
        pair = function(fx.Proxy(graph.placeholder("m"), tracer))  # type: ignore[arg-type]
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise NotTranslatable("it returns no pair")
        graph.output(tracer.create_arg(pair))
        with torch.device("cpu"):  # Whatever the default device is.
            margins = torch.linspace(-3, 3, 5, dtype=torch.float32)
            again = fx.Interpreter(torch.nn.Module(), graph=graph).run(margins.clone())
            same = [
                _equal(torch.as_tensor(one), torch.as_tensor(other))
                for one, other in zip(again, function(margins.clone()), strict=True)
            ]
    except Exception as error:  # Anything that a user's function does with what is no tensor.
        raise NotTranslatable(str(error)) from error
    if not all(same):  # Such as `b = a; b += 1`, which changes a tensor, but no proxy.
        raise NotTranslatable("it changes a tensor under another name")
    return graph


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _operation(node: fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        raise NotTranslatable(node.op)
    return (
        node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))
    )


def _expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    operation = _operation(node).removesuffix("_")
    if operation == "pow":
        return _power(node, names)
    arguments = [_text(argument, names) for argument in node.args]
    if operation == "clamp" and arguments:
        limits = dict(zip(("min", "max"), node.args[1:], strict=False)) | node.kwargs
        return _clamp(arguments[0], limits, names)
    if node.kwargs or operation not in OPERATIONS:
        raise NotTranslatable(operation)
    pattern = OPERATIONS[operation]
    if pattern.format(*arguments, "", "", "") != pattern.format(*arguments, "?", "?", "?"):
        raise NotTranslatable(f"{operation} of {len(arguments)} arguments")
    return pattern.format(*arguments)


def _text(argument: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(argument, fx.Node):
        return names[argument]
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        raise NotTranslatable(repr(argument))
    number = float(argument)
    return f"({number!r})" if math.isfinite(number) else f'float("{number}")'


def _clamp(x: str, limits: dict[str, Any], names: dict[fx.Node, str]) -> str:
    # tl.clamp would turn NaN into a limit.
    if limits.get("min") is not None:
        low = _text(limits["min"], names)
        x = f"tl.where({x} < {low}, {low}, {x})"
    if limits.get("max") is not None:
        high = _text(limits["max"], names)
        x = f"tl.where({x} > {high}, {high}, {x})"
    return x


def _power(node: fx.Node, names: dict[fx.Node, str]) -> str:
    if node.kwargs or len(node.args) != 2:
        raise NotTranslatable("pow of this kind")
    base, exponent = node.args
    if not isinstance(base, fx.Node) or not isinstance(exponent, int | float):
        raise NotTranslatable("pow of this kind")
    x = names[base]
    if not float(exponent).is_integer():
        return f"tl.exp({_text(exponent, names)} * tl.log({x}))"
    if not 1 <= abs(exponent) <= LARGEST_EXPONENT:
        raise NotTranslatable(f"pow({exponent})")
    product = " * ".join([x] * abs(int(exponent)))
    return product if exponent > 0 else f"1.0 / ({product})"
