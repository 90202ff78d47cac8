"""The registry, the objects it builds, and what users get wrong."""

import copy
import dataclasses
import json
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_losses import (
    ClassificationLoss,
    LossParameter,
    LossSpec,
    RegressionLoss,
    get_loss,
    get_spec,
    list_losses,
    register_loss,
)
from hf_losses.losses import registry
from hf_losses.losses.registry import parse_loss_kwargs

ROOT = Path(__file__).parents[2]
MULTI_LABEL = "multi_label_classification"
OPTIONS = "reduction, ignore_index, weight, label_smoothing, max_weight, problem_type"

# name, options, and parts of the message: what was wrong, what would be right, the nearest match.
MISTAKES = [
    ("liberal_expo", {}, ["'liberal_expo'", "strict_m, strict_m_power,", "mean 'liberal_exp'?"]),
    ("zzz", {}, ["'zzz'", "cross_entropy, strict_m,", "smae"]),
    (None, {}, ["None", "cross_entropy, strict_m,"]),
    ("strict_m_power", {"alpa": 1}, ["'alpa'", f"alpha, {OPTIONS}", "mean 'alpha'?"]),
    ("strict_m", {"alpha": 1}, ["'strict_m'", "'alpha'", f"takes {OPTIONS}"]),
    ("strict_m", {"max_wieght": 1}, ["'max_wieght'", f"takes {OPTIONS}", "mean 'max_weight'?"]),
    ("huber", {"delt": 1}, ["'delt'", "takes delta, reduction", "mean 'delta'?"]),
    ("mse", {"label_smoothing": 0.1}, ["'mse'", "'label_smoothing'", "takes reduction."]),
    ("strict_m_power", {"alpha": 0}, ["alpha", "finite and above 0", "got 0.0"]),
    ("strict_m_power", {"alpha": -0.5}, ["alpha", "finite and above 0", "got -0.5"]),
    ("strict_m_power", {"alpha": math.inf}, ["alpha", "finite", "got inf"]),
    ("strict_m_power", {"alpha": math.nan}, ["alpha", "finite", "got nan"]),
    ("strict_m_power", {"alpha": "big"}, ["alpha", "a number", "'big'"]),
    ("focal", {"gamma": -0.1}, ["gamma", "finite and at least 0", "got -0.1"]),
    ("poly1", {"epsilon": -1.1}, ["epsilon", "finite and at least -1", "got -1.1"]),
    ("huber", {"delta": 0}, ["delta", "finite and above 0", "got 0.0"]),
    ("strict_m", {"reduction": "meen"}, ["'meen'", "mean, sum, none", "mean 'mean'?"]),
    ("mse", {"reduction": None}, ["None", "mean, sum, none"]),
    (
        "strict_m",
        {"problem_type": "regression"},
        ["'regression'", f"single_label_classification, {MULTI_LABEL}", "--task regression"],
    ),
    ("strict_m", {"label_smoothing": -0.1}, ["label_smoothing", "[0, 1]", "got -0.1"]),
    ("strict_m", {"label_smoothing": 1.1}, ["label_smoothing", "[0, 1]", "got 1.1"]),
    ("strict_m", {"label_smoothing": math.nan}, ["label_smoothing", "[0, 1]", "got nan"]),
    ("strict_m", {"max_weight": "x"}, ["'strict_m'", "max_weight must be a number", "got 'x'"]),
    ("strict_m", {"label_smoothing": "x"}, ["label_smoothing must be a number", "got 'x'"]),
    ("strict_m", {"max_weight": 0}, ["max_weight", "positive (inf allowed)", "got 0"]),
    ("strict_m", {"max_weight": -1.5}, ["max_weight", "positive (inf allowed)", "got -1.5"]),
    ("strict_m", {"max_weight": math.nan}, ["max_weight", "positive (inf allowed)", "got nan"]),
    ("strict_m", {"weight": [1, -2]}, ["weight", "non-negative", "[1.0, -2.0]"]),
    ("strict_m", {"weight": [1, math.nan]}, ["weight", "finite", "nan"]),
    ("strict_m", {"weight": [1, 1e39]}, ["weight", "finite", "1e+39"]),  # Infinite in float32.
    ("strict_m", {"weight": [1, math.inf]}, ["weight", "finite", "inf"]),
    ("strict_m", {"weight": [[1, 2]]}, ["weight", "one", "per class", "[[1.0, 2.0]]"]),
    ("strict_m", {"weight": 2.0}, ["weight", "one", "per class", "got 2.0"]),
    ("strict_m", {"weight": []}, ["weight", "one", "per class", "got []"]),
    ("strict_m", {"weight": [[1], [1, 2]]}, ["weight", "per class", "got [[1], [1, 2]]"]),
    ("strict_m", {"weight": ["1", "2"]}, ["weight", "per class", "got ['1', '2']"]),
    ("strict_m", {"weight": [1, None]}, ["weight", "per class", "got [1, None]"]),
    ("strict_m", {"weight": np.array([1j, 2])}, ["weight", "per class", "got [1j, (2+0j)]"]),
    ("strict_m", {"weight": [10**400, 1]}, ["weight", "per class"]),
    ("strict_m", {"weight": {1, 2}}, ["weight", "per class", "got {1, 2}"]),
    ("strict_m", {"weight": {"a": 1}}, ["per class", "got {'a': 1}", "loss_kwargs of a training"]),
    ("strict_m", {"weight": "balanced"}, ["per class", "got 'balanced'", "loss_kwargs of a train"]),
    ("strict_m", {"ignore_index": "0"}, ["ignore_index must be an integer", "got '0'"]),
    ("strict_m", {"ignore_index": 0.5}, ["ignore_index must be an integer", "got 0.5"]),
    *(
        ("strict_m", {"ignore_index": i, "problem_type": MULTI_LABEL}, [f"={i} would", "-100"])
        for i in (0, 1)
    ),
]


def says(parts):
    return "".join(f"(?=.*{re.escape(part)})" for part in parts)


@pytest.mark.parametrize(("name", "options", "parts"), MISTAKES, ids=str)
def test_a_mistake_in_the_configuration_is_named(name, options, parts):
    with pytest.raises(ValueError, match=says(parts)) as error:
        get_loss(name, **options)
    assert "\n" not in str(error.value)


def test_a_loss_of_the_other_task_is_named():
    with pytest.raises(ValueError, match="'mse' is a regression loss, not a classification loss"):
        ClassificationLoss("mse")
    with pytest.raises(ValueError, match="'strict_m' is a classification loss, not a regression"):
        RegressionLoss("strict_m")


Z = torch.zeros(3, 2)
LONG = torch.zeros(3, dtype=torch.long)
BAD_CALLS = {
    "one class": ({}, Z[:, :1], LONG, ["(3, 1)", "two classes", MULTI_LABEL, "'mse'"]),
    "no class": ({}, Z[:, :0], LONG, ["(3, 0)", "two classes"]),
    "no dimension": ({}, Z[0, 0], LONG[0], ["()", "two classes"]),
    "no dimension, weights": ({"weight": [1, 2]}, Z[0, 0], LONG[0], ["2 entries", "()"]),
    "fewer targets": ({}, Z, LONG[:2], ["(2,)", "(3, 2)", "of shape (3,)"]),
    "flat targets": ({}, torch.zeros(2, 3, 2), LONG, ["(3,)", "(2, 3, 2)", "of shape (2, 3)"]),
    "float indices": ({}, Z, LONG.float(), ["torch.float32", "integer class indices"]),
    "boolean indices": ({}, Z, LONG.bool(), ["torch.bool", "integer class indices"]),
    "integer probabilities": ({}, Z, Z.long(), ["torch.int64", "floating probabilities"]),
    "label C": ({}, Z, LONG + 2, ["[0, 2)", "got [2]", "num_labels"]),
    "label -1": ({}, Z, LONG - 1, ["[0, 2)", "got [-1]", "-100"]),
    "labels": ({}, Z, torch.tensor([7, 0, -3]), ["got [-3, 7]"]),
    "label of int8": ({}, Z, LONG.char() - 1, ["got [-1]"]),
    "label, weights": ({"weight": [1, 2]}, Z, LONG - 1, ["[0, 2)", "got [-1]"]),
    "label C, weights": ({"weight": [1, 2]}, Z, LONG + 2, ["[0, 2)", "got [2]"]),
    "label, smoothing": ({"label_smoothing": 0.1}, Z, LONG + 2, ["[0, 2)", "got [2]"]),
    "-100 not ignored": ({"ignore_index": 0}, Z, LONG - 100, ["got [-100]", "with 0"]),
    "0 of probabilities": ({"ignore_index": 0}, Z, Z, ["ignore_index=0 would", "[0, 1]", "-100"]),
    "1 of probabilities": ({"ignore_index": 1}, Z, Z, ["ignore_index=1 would", "[0, 1]", "-100"]),
    "weights": ({"weight": [1, 2, 3]}, Z, LONG, ["3 entries", "(3, 2)"]),
    "labels' shape": ({"problem_type": MULTI_LABEL}, Z, LONG, ["(3, 2)", "got (3,)"]),
    "labels' weights": (
        {"problem_type": MULTI_LABEL, "weight": [1, 2, 3]},
        Z,
        Z,
        ["3 entries", "(3, 2)"],
    ),
}


@pytest.mark.parametrize("name", ["cross_entropy", "strict_m_full"])
@pytest.mark.parametrize("mistake", BAD_CALLS)
def test_a_mistake_in_the_data_is_named(name, mistake):
    options, logits, target, parts = BAD_CALLS[mistake]
    with pytest.raises(ValueError, match=says(parts)):
        get_loss(name, **options)(logits, target)


@pytest.mark.parametrize(("x", "y"), [((3, 2), (3,)), ((3,), (3, 1)), ((3,), (2,)), ((1, 3), (3,))])
def test_regression_shapes_never_broadcast(x, y):
    with pytest.raises(ValueError, match=says([str(x), str(y)])):
        get_loss("mse")(torch.zeros(x), torch.zeros(y))


# The registry.


def test_a_registered_loss_is_there_at_once(eleventh_loss):
    assert list_losses("strict_sq*", kind="strict", task="classification") == [eleventh_loss]
    assert list_losses()[-1] == eleventh_loss
    m = torch.tensor([[-1.0, 0.0]])
    assert get_loss(eleventh_loss)(m, torch.tensor([0])).item() == pytest.approx(
        get_loss("strict_m_power", alpha=2)(m, torch.tensor([0])).item()
    )


def test_a_registered_loss_is_forgotten_after_the_test():
    assert list_losses("strict_square") == []


CELL = """
from hf_losses import register_loss
@register_loss("of_a_notebook", kind="strict", formula="-log(p)")
def of_a_notebook(m):
    return {value}, m
"""


def test_a_cell_of_a_notebook_can_be_run_again(eleventh_loss):
    for number in ("m", "2 * m"):
        exec(
            compile(CELL.format(value=number), f"<cell {number}>", "exec"), {"__name__": "notebook"}
        )
    assert get_spec("of_a_notebook").function(torch.tensor(3.0))[0] == 6
    with pytest.raises(ValueError, match="already registered"):
        exec(CELL.format(value="m"), {"__name__": "elsewhere"})


def test_names_are_unique(eleventh_loss):
    before = get_spec(eleventh_loss)
    with pytest.raises(ValueError, match=f"'{eleventh_loss}' is already registered"):
        register_loss(eleventh_loss, kind="strict", formula="1 - p")(torch.relu)
    assert get_spec(eleventh_loss) is before


@pytest.mark.parametrize("wrong", [{"kind": "lenient"}, {"kind": "strict", "task": "ranking"}])
def test_a_record_has_a_known_kind_and_task(wrong, eleventh_loss):
    with pytest.raises(ValueError, match=says(["'new'", "liberal", "regression", *wrong.values()])):
        register_loss("new", formula="1 - p", **wrong)(torch.relu)
    assert list_losses("new") == []


def test_registering_returns_the_function(eleventh_loss):
    assert register_loss("new", kind="strict", formula="1 - p")(torch.relu) is torch.relu


def test_wildcards_and_filters():
    everything = list_losses()
    assert everything[0] == "cross_entropy"
    assert len(set(everything)) == len(everything)
    assert list_losses(kind="liberal") == [*list_losses("liberal_*"), "gce", "dft", "poly1"]
    assert list_losses("*_full") == ["strict_m_full", "strict_l_full"]
    assert list_losses("strict_?") == ["strict_m", "strict_l"]
    assert list_losses("STRICT_*") == list_losses("exp") == []
    assert list_losses(kind="neutral", task="classification") == ["cross_entropy"]
    assert list_losses(kind="neutral", task="regression") == ["mse"]
    by_task = list_losses(task="classification") + list_losses(task="regression")
    assert sorted(by_task) == sorted(everything)
    assert set(list_losses(kind="robust")) == set(list_losses(task="regression")) - {"mse"}


def test_filters_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=says(["'libral'", "neutral, strict", "mean 'liberal'?"])):
        list_losses(kind="libral")
    with pytest.raises(
        ValueError, match=says(["'regresion'", "classification, regression", "mean"])
    ):
        list_losses(task="regresion")


@pytest.mark.parametrize("name", list_losses())
def test_a_record_is_complete_and_frozen(name):
    spec = get_spec(name)
    assert spec.name == name
    assert spec.formula
    assert spec.reference
    assert spec.full_formula.startswith(spec.formula)
    assert spec.is_full == ("sum(" in spec.full_formula)
    for field in dataclasses.fields(spec):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, field.name, None)
    with pytest.raises(TypeError):
        spec.parameters["new"] = LossParameter(1.0, above=0.0, help="")
    for parameter in spec.parameters.values():
        assert parameter.allows(parameter.default)
        assert parameter.bound
        assert parameter.help


@pytest.mark.parametrize("name", list_losses())
def test_what_it_is_for_and_where_it_fails_is_a_sentence_with_a_source(name):
    for text in (get_spec(name).use, get_spec(name).avoid):
        assert re.findall(r"[.!?](?=\s|$)", text.replace("et al.", "")) == ["."]
        assert text.endswith(".")
        results = re.findall(r"results/[\w/.-]*\w", text)
        assert results or re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.\d+/|[Bb]y its formula\b", text)
        for path in results:
            assert (ROOT / path).exists()


def test_the_paper_has_eight_losses():
    paper = [name for name in list_losses() if get_spec(name).is_of_paper]
    assert paper == [*list_losses("strict_*"), *list_losses("liberal_[!e]*")]
    assert len(paper) == 8


@pytest.mark.parametrize(
    ("bounds", "allowed", "refused", "words"),
    [
        ({"above": 0.0}, [1e-9, 5.0], [0.0, -1.0, math.inf], "above 0"),
        ({"minimum": -1.0}, [-1.0, 5.0], [-1.1, -math.inf, math.nan], "at least -1"),
        ({}, [-5.0, 5.0], [math.inf, math.nan], ""),
    ],
)
def test_bounds_of_a_parameter(bounds, allowed, refused, words):
    parameter = LossParameter(1.0, help="", **bounds)
    assert parameter.bound == words
    assert all(map(parameter.allows, allowed))
    assert not any(map(parameter.allows, refused))


def test_a_record_keeps_its_own_parameters():
    given = {"a": LossParameter(1.0, above=0.0, help="")}
    spec = LossSpec("x", "classification", "strict", "1/p - 1", torch.relu, parameters=given)
    given.clear()
    assert spec.resolve({"a": 2}) == {"a": 2.0}


# Objects describe themselves.

CONFIGURATIONS = [
    *({"name": name} for name in list_losses()),
    {"name": "strict_m_power", "alpha": 0.25},
    {"name": "huber", "delta": 3.0, "reduction": "sum"},
    {"name": "strict_l", "reduction": "none", "max_weight": "inf"},
    {"name": "strict_l", "max_weight": 20.0, "ignore_index": 0},
    {"name": "liberal_exp", "weight": [0.1, 2.0, 0.0], "label_smoothing": 0.1},
    {"name": "liberal_exp", "problem_type": MULTI_LABEL},
]


@pytest.mark.parametrize("given", CONFIGURATIONS, ids=str)
def test_a_configuration_rebuilds_an_equal_loss(given):
    loss = get_loss(**given)
    text = json.dumps(loss.config, allow_nan=False)
    again = get_loss(**json.loads(text))
    assert again.config == loss.config
    # Names what was given, and the parameters that were not.
    assert loss.config == loss.params | given
    x = torch.tensor([[0.5, -30.0, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    if get_spec(given["name"]).task == "regression" or "problem_type" in given:
        target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    else:
        target = torch.tensor([1, 0])
    assert torch.equal(again(x, target), loss(x, target))
    assert type(again) is type(loss)


def test_infinity_may_be_a_word():
    assert get_loss("strict_m", max_weight="inf").max_weight == math.inf


def test_printing_a_loss_shows_its_configuration():
    loss = get_loss("strict_m_power", alpha=0.25, label_smoothing=0.1)
    assert repr(loss) == (
        "ClassificationLoss(name='strict_m_power', alpha=0.25, label_smoothing=0.1)"
    )
    assert repr(get_loss("huber")) == "RegressionLoss(name='huber', delta=1.0)"


@pytest.mark.parametrize("name", list_losses())
def test_losses_are_copied_and_pickled(name):
    loss = get_loss(name)
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again.config == loss.config
        assert again.spec is loss.spec
        logits = torch.randn(4, 3) if loss.spec.task == "classification" else torch.randn(4)
        target = torch.tensor([0, 1, 2, 0]) if loss.spec.task == "classification" else logits * 2
        assert torch.equal(again(logits, target), loss(logits, target))


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("cross_entropy", "label_smoothing"),
        ("strict_m", "max_weight"),
        ("cross_entropy", "problem_type"),
        ("focal", "gamma"),
        ("huber", "delta"),
        ("huber", "params"),
    ],
)
def test_what_a_loss_was_built_from_cannot_be_changed(name, attribute):
    loss = get_loss(name)
    before = loss.config
    with pytest.raises(ValueError, match=rf"{attribute} of a loss that is built cannot be changed"):
        setattr(loss, attribute, 0.3)
    with pytest.raises(TypeError):
        loss.params["gamma"] = 0.3
    assert loss.config == before
    loss.reduction = "sum"  # This takes effect.
    assert loss.config == before | {"reduction": "sum"}


@pytest.mark.parametrize("number", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_numbers_that_are_not_floating_are_refused(number):
    x = torch.tensor([[1, 2], [0, 1]]).to(number)
    says_so = pytest.raises(ValueError, match=f"must be floating-point numbers, got {number}")
    with says_so:  # The targets would have been cut to 1 and 2.
        get_loss("mse")(x[0], torch.tensor([1.5, 2.0]))
    with says_so:
        get_loss("focal")(x, torch.tensor([0, 1]))
    with says_so:
        get_loss("focal", problem_type=MULTI_LABEL)(x, torch.rand(2, 2))


@pytest.mark.parametrize("options", [{}, {"weight": [1, 2, 3]}], ids=str)
def test_classes_in_pytorchs_place_are_recognised(options):
    with pytest.raises(ValueError, match=r"classes come last here: give logits.movedim\(1, -1\)"):
        get_loss("focal", **options)(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5).long())


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(ValueError, match="gamma must be a number"):
        get_loss("focal", gamma=10**400)
    with pytest.raises(ValueError, match="must be a JSON object"):
        parse_loss_kwargs("[" * 100_000)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": 2.0}, "parameter 'a' must be a LossParameter, such as LossParameter(default=2.0"),
        ({"weight": LossParameter(2.0, "x")}, "'weight' is an option of get_loss"),
    ],
)
def test_parameters_that_could_not_be_given_are_refused(parameters, message):
    register = register_loss("new", kind="liberal", formula="1 - p", parameters=parameters)
    with pytest.raises(ValueError, match=re.escape(message)):
        register(torch.relu)
    assert "new" not in list_losses()


def test_the_options_of_get_loss_are_those_of_its_signature():
    assert set(registry.OPTIONS) == {"name", *ClassificationLoss.options}


def test_a_function_with_constants_is_built_on_meta(monkeypatch):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))

    def function(m, scale):
        p = torch.sigmoid(m)
        return [torch.tensor(1.0) - p, -scale * p * torch.sigmoid(-m)]

    parameters = {"scale": LossParameter(1.0, "x")}
    register_loss("new", kind="strict", formula="1 - p", parameters=parameters)(function)
    with torch.device("meta"):
        assert get_loss("new", scale=2.0).kind == "liberal"


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("returned", [torch.sigmoid, lambda m: (m, m.sum()), lambda m: (m,)])
def test_a_function_without_a_derivative_is_refused(monkeypatch, task, returned):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    register_loss("new", kind="liberal", formula="1 - p", task=task)(returned)
    with pytest.raises(ValueError, match="must return its value and its derivative, two tensors"):
        get_loss("new")
