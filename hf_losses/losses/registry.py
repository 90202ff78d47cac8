"""The registry: one frozen record per loss, from which choices, tables, curves and tests follow.

Nothing here imports torch or transformers: a record is a name, a formula and a function.
"""

from __future__ import annotations

import fnmatch
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from hf_losses import citation
from hf_losses.messages import UsageError, nearest

IGNORE_INDEX = -100  # The label of what has no loss, as in PyTorch and transformers.
KINDS = ("neutral", "strict", "liberal", "mixed", "robust")
TASKS = ("classification", "regression")
# What `get_loss` takes beside a loss's own parameters; a test compares it with the signature.
OPTIONS = (
    *("name", "reduction", "ignore_index", "weight", "label_smoothing", "max_weight"),
    *("problem_type", "overwrite_logits"),
)
PAPER = f"Noel et al. 2023, {citation.PAPER}"

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class LossParameter:
    """A number that shapes a loss, such as `alpha`.

    Attributes:
        default: Value used when the user gives none.
        help: What it does, in one sentence.
        above: Exclusive lower bound, if there is one.
        minimum: Inclusive lower bound, if there is one.
    """

    default: float
    help: str
    above: float | None = None
    minimum: float | None = None

    @property
    def bound(self) -> str:
        """The lower bound in words, such as `above 0`; empty without one."""
        if self.minimum is not None:
            return f"at least {self.minimum:g}"
        return "" if self.above is None else f"above {self.above:g}"

    def allows(self, value: float) -> bool:
        """Whether a value is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.minimum is None or value >= self.minimum)
        )


@dataclass(frozen=True)
class LossSpec:
    """Everything the project knows about one loss.

    Attributes:
        name: What users type.
        task: `classification` or `regression`.
        kind: `strict` when the gradient weight w falls as p rises (hard examples weigh more than
            under cross-entropy), `liberal` when it rises, `mixed` when it does both, `neutral` for
            the task's baseline, `robust` for regression losses that weigh large errors less than
            squared error does. Parameters are at their defaults.
        formula: The loss in Python syntax: of `p`, the probability of the true class, or of `e`,
            prediction minus target. Parameters appear by name.
        function: `function(x, **parameters) -> (value, derivative)`, both element-wise in x, the
            margin of the true class (classification) or the error (regression), in forms that stay
            accurate in float32 for every finite x.
        probability_function: `probability_function(p, q, **parameters) -> (value, w)`, the same
            from p and q = 1 - p, where neither is below 1e-30, with the gradient weight w in place
            of the derivative: for speed. Without it, the function of the margin serves.
        weight_formula: The gradient weight w(p) = p·|dl/dp|, in Python syntax; may be empty.
        wrong_class_formula: What every wrong class of probability `q` adds (the full forms only);
            0 at q = 0.
        wrong_class_function: `wrong_class_function(q, value, slope, spare, **parameters)`, the same
            for q <= 1/2, element-wise: writes the value, and its derivative by the class's margin
            over 1 - q; `spare` is for whatever lies between. Without it a full form works, but
            slowly where there are many classes.
        parameters: The loss's own parameters by name.
        reference: Where the formula comes from.
        use: When to use the loss, in one sentence, with a source.
        avoid: Where it fails, in one sentence, with a source.
    """

    name: str
    task: str
    kind: str
    formula: str
    function: Callable[..., Any]
    probability_function: Callable[..., Any] | None = None
    weight_formula: str = ""
    wrong_class_formula: str = ""
    wrong_class_function: Callable[..., Any] | None = None
    parameters: Mapping[str, LossParameter] = field(default_factory=dict, hash=False)
    reference: str = ""
    use: str = ""
    avoid: str = ""

    def __post_init__(self) -> None:
        """Freezes the parameters and checks kind and task."""
        if self.kind not in KINDS or self.task not in TASKS:
            raise UsageError(
                f"loss {self.name!r}: kind must be one of {KINDS} and task one of {TASKS}, "
                f"got kind={self.kind!r}, task={self.task!r}"
            )
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, LossParameter):
                raise UsageError(
                    f"loss {self.name!r}: parameter {name!r} must be a LossParameter, such as "
                    f"LossParameter(default={parameter!r}, help='what it does')"
                )
            if name in OPTIONS:
                raise UsageError(
                    f"loss {self.name!r}: {name!r} is an option of get_loss; name the parameter "
                    "otherwise"
                )
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Copies and pickles are the registered record, by its name."""
        return get_spec, (self.name,)

    @property
    def is_full(self) -> bool:
        """Whether every class, not only the true one, contributes its own margin."""
        return bool(self.wrong_class_formula)

    @property
    def is_of_paper(self) -> bool:
        """Whether it is one of the paper's eight losses."""
        return self.reference.startswith(PAPER)

    @property
    def has_max_weight(self) -> bool:
        """Whether `max_weight` caps the gradient weight, which rises as p falls to 0."""
        return self.kind == "strict"

    @property
    def full_formula(self) -> str:
        """The formula with the wrong classes' share, as shown to people."""
        return f"{self.formula} + sum({self.wrong_class_formula})" if self.is_full else self.formula

    def resolve(self, params: Mapping[str, Any], options: Iterable[str] = ()) -> dict[str, float]:
        """Completes parameters with their defaults.

        Args:
            params: Values by parameter name.
            options: Names of the caller's other arguments, for the message about an unknown name.

        Returns:
            Every parameter of this loss as a float.

        Raises:
            ValueError: If a name is unknown or a value is out of range or not a number.
        """
        valid = [*self.parameters, *options]
        for name in params:
            if name not in self.parameters:
                takes = ", ".join(valid) or "no parameters"
                raise UsageError(
                    f"loss {self.name!r} has no parameter {name!r}; it takes {takes}."
                    + nearest(name, valid)
                )
        values = {}
        for name, parameter in self.parameters.items():
            value = as_number(self.name, name, params.get(name, parameter.default))
            if not parameter.allows(value):
                limits = " and ".join(filter(None, ("finite", parameter.bound)))
                raise UsageError(f"loss {self.name!r}: {name} must be {limits}, got {value!r}")
            values[name] = value
        return values


def as_number(loss: str, name: str, value: Any) -> float:
    """The value of a parameter as a float, or a ValueError that names loss and parameter."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"loss {loss!r}: {name} must be a number, got {value!r}") from None


def parse_loss_kwargs(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """Reads loss parameters.

    Args:
        value: A dict, a JSON object as text, or None.

    Returns:
        Parameters by name, as JSON has them: arrays and tensors are lists. Empty for None.

    Raises:
        ValueError: If it is no JSON object, and cannot be made one.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(_not_an_object(value)) from error
    if value is not None and not isinstance(value, dict):
        raise UsageError(_not_an_object(value))
    params: dict[str, Any] = as_json(value or {})
    try:
        json.dumps(params)
    except TypeError as error:
        raise UsageError(f"{_not_an_object(value)}: {error}") from None
    return params


def as_json(value: Any) -> Any:
    """Arrays, tensors and NumPy's numbers as lists and numbers, keys as text; the rest as it is."""
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [as_json(one) for one in value]
    # Neither is imported here. A list of pandas' numbers would lose the class that each is for.
    of_library = type(value).__module__.partition(".")[0] in ("numpy", "torch")
    return value.tolist() if of_library else value


def _not_an_object(value: Any) -> str:
    shown = repr(value) if len(repr(value)) < 500 else reprlib.repr(value)
    return f"loss_kwargs must be a JSON object such as '{{\"alpha\": 0.3}}', got {shown}"


_SPECS: dict[str, LossSpec] = {}


def register_loss(
    name: str, *, kind: str, formula: str, task: str = "classification", **record: Any
) -> Callable[[Function], Function]:
    """Decorator that registers a function as a loss.

    Args:
        name: What users will type; must be new.
        kind: One of `strict`, `liberal`, `mixed`, `neutral`, `robust`.
        formula: See `LossSpec.formula`.
        task: `classification` (a function of the margin) or `regression` (of the error).
        **record: Any other field of `LossSpec`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        ValueError: If kind or task is unknown, or the name is taken; but a function may be defined
            once more, as when a cell of a notebook is run again.

    Example:
        >>> @register_loss("liberal_poly", kind="liberal", formula="-log(p) + 1 - p")
        ... def liberal_poly(m):
        ...     p, q = torch.sigmoid(m), torch.sigmoid(-m)
        ...     return -F.logsigmoid(m) + q, -q - p * q
    """

    def decorate(function: Function) -> Function:
        if name in _SPECS and not _is_same(_SPECS[name].function, function):
            raise UsageError(f"a loss named {name!r} is already registered; choose another name")
        _SPECS[name] = LossSpec(
            name=name, task=task, kind=kind, formula=formula, function=function, **record
        )
        return function

    return decorate


def _is_same(old: Function, new: Function) -> bool:
    """Whether a function is the next version of another: of the same name in its module or file."""
    files = [getattr(getattr(f, "__code__", None), "co_filename", None) for f in (old, new)]
    modules = [getattr(f, "__module__", None) for f in (old, new)]
    same_place = modules[0] == modules[1] or files[0] == files[1] is not None
    old_name, name = (getattr(f, "__qualname__", "<unnamed>") for f in (old, new))
    return same_place and old_name == name and not name.endswith(">") and "." not in name


def get_spec(name: str) -> LossSpec:
    """The record of one loss.

    Args:
        name: A registered name, such as `liberal_exp`.

    Returns:
        Its frozen record.

    Raises:
        ValueError: If no loss has that name; the message lists the names and the nearest one.
    """
    if name not in _SPECS:
        raise UsageError(
            f"unknown loss {name!r}.{nearest(str(name), _SPECS)} "
            f"Choose one of: {', '.join(_SPECS)} (`hf-losses list` shows their formulas)"
        )
    return _SPECS[name]


def list_losses(
    pattern: str = "*", *, kind: str | None = None, task: str | None = None
) -> list[str]:
    """Names of the registered losses, in the order of registration.

    Args:
        pattern: Shell wildcard, such as `liberal_*`.
        kind: Only `strict`, `liberal`, `mixed`, `neutral` or `robust` ones.
        task: Only those for `classification` or `regression`.

    Returns:
        The names that match all three.

    Raises:
        ValueError: If kind or task is not one that exists.
    """
    for what, value, valid in (("kind", kind, KINDS), ("task", task, TASKS)):
        if value is not None and value not in valid:
            raise UsageError(
                f"unknown {what} {value!r}; choose one of {', '.join(valid)}."
                + nearest(value, valid)
            )
    return [
        spec.name
        for spec in _SPECS.values()
        if fnmatch.fnmatchcase(spec.name, pattern)
        and kind in (None, spec.kind)
        and task in (None, spec.task)
    ]


def match_losses(
    patterns: Iterable[str], *, kind: str | None = None, task: str | None = None
) -> list[str]:
    """Names of the losses that match any of several patterns.

    Args:
        patterns: Names or shell wildcards, such as `liberal_*`.
        kind: As for `list_losses`.
        task: As for `list_losses`.

    Returns:
        Each name once, in the order of the patterns.

    Raises:
        UsageError: If a pattern matches no loss; the message lists what there is to choose from and
            the nearest name.
    """
    matches: dict[str, None] = {}
    for pattern in patterns:
        names = list_losses(pattern, kind=kind, task=task)
        if not names:
            valid = list_losses(kind=kind, task=task) or list_losses()
            adjectives = "".join(f"{adjective} " for adjective in (kind, task) if adjective)
            raise UsageError(
                f"no {adjectives}loss matches {pattern!r}.{nearest(pattern, valid)} "
                f"Choose from: {', '.join(valid)}"
            )
        matches |= dict.fromkeys(names)
    return list(matches)


def neutral_loss(task: str) -> str:
    """The baseline that a task's losses are measured against: `cross_entropy` or `mse`."""
    return list_losses(kind="neutral", task=task)[0]
