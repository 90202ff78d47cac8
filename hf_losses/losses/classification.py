"""The losses. One short function each: (value, derivative) of one scalar, element by element.

Classification losses are functions of the true class's margin m, where p = sigmoid(m) is its
probability and q = sigmoid(-m) = 1 - p. Their derivative is -w(p)·q with the gradient weight w:
cross-entropy has w = 1. Beside it stands, for speed, the same as (value, w) of p and q where
neither is tiny. Regression losses are functions of e = prediction - target.

Formulas as in the notebooks of the paper's authors
(github.com/arindam-ds/alternate_loss_functions); `liberal_exp` is this project's own. Derivatives
are declared, not left to autograd: differentiating sigmoid gives p·(1 - p), which loses all digits
exactly where a liberal loss is interesting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from hf_losses.lazy import lazy
from hf_losses.losses.registry import LossParameter, register_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

PAPER = "Noel et al. 2023, arXiv:2303.09935"
Pair: TypeAlias = "tuple[Tensor, Tensor]"


def at_margin(function: Callable[..., Pair], m: Tensor) -> Pair:
    """Value and derivative by the margin from value and weight of p and q."""
    q = torch.sigmoid(-m)
    value, weight = function(torch.sigmoid(m), q)
    return value, -weight * q


def cross_entropy_pq(p: Tensor, q: Tensor) -> Pair:
    """-ln p = ln(1 + q/p)."""
    return (q / p).log1p_(), torch.ones_like(p)


@register_loss(
    "cross_entropy",
    kind="neutral",
    formula="-log(p)",
    weight_formula="1",
    probability_function=cross_entropy_pq,
    reference="negative log-likelihood; the baseline of the paper",
)
def cross_entropy(m: Tensor) -> Pair:
    """-ln p."""
    return -torch.nn.functional.logsigmoid(m), -torch.sigmoid(-m)


def strict_m_pq(p: Tensor, q: Tensor) -> Pair:
    """q/p, and 1/p = 1 + q/p."""
    value = q / p
    return value, value + 1


@register_loss(
    "strict_m",
    kind="strict",
    formula="1/p - 1",
    weight_formula="1/p",
    probability_function=strict_m_pq,
    reference=f"{PAPER} (CustomMLoss)",
)
def strict_m(m: Tensor) -> Pair:
    """1/p - 1 = q/p = exp(-m)."""
    value = torch.exp(-m)
    return value, -value


def strict_m_power_pq(p: Tensor, q: Tensor, *, alpha: float) -> Pair:
    """exp(alpha·ln(1/p)) - 1 with 1/p = 1 + q/p."""
    value = (q / p).log1p_().mul_(alpha).expm1_()
    return value, (value + 1).mul_(alpha)


@register_loss(
    "strict_m_power",
    kind="strict",
    formula="p**(-alpha) - 1",
    weight_formula="alpha*p**(-alpha)",
    probability_function=strict_m_power_pq,
    parameters={"alpha": LossParameter(0.5, above=0.0, help="power of 1/p; 1 gives strict_m")},
    reference=f"{PAPER} (ParamMLoss)",
)
def strict_m_power(m: Tensor, *, alpha: float) -> Pair:
    """p^-alpha - 1."""
    exponent = -alpha * torch.nn.functional.logsigmoid(m)
    return torch.expm1(exponent), -alpha * torch.exp(exponent) * torch.sigmoid(-m)


def strict_l_pq(p: Tensor, q: Tensor) -> Pair:
    """1/sqrt(s) - 1 = q²/(sqrt(s)(1 + sqrt(s))) with s = p(2 - p) = p(1 + q)."""
    root = torch.addcmul(p, p, q).sqrt_()
    share = q / root
    return share * q / (root + 1), share / (q + 1)


@register_loss(
    "strict_l",
    kind="strict",
    formula="1/sqrt(p*(2 - p)) - 1",
    weight_formula="(1 - p)/(sqrt(p)*(2 - p)**1.5)",
    probability_function=strict_l_pq,
    reference=f"{PAPER} (CustomLLoss, less its constant 1)",
)
def strict_l(m: Tensor) -> Pair:
    """1/sqrt(p(2 - p)) - 1."""
    return at_margin(strict_l_pq, m)


def strict_m_wrong(q: Tensor, value: Tensor, slope: Tensor, spare: Tensor) -> None:
    """q/(1 - q) = t, which is its own derivative by the margin; t/(1 - q) = t + t²."""
    torch.sub(q.new_ones(()), q, out=value)
    torch.div(q, value, out=value)
    torch.addcmul(value, value, value, out=slope)


def strict_l_wrong(q: Tensor, value: Tensor, slope: Tensor, spare: Tensor) -> None:
    """1/sqrt(1 - q²) - 1 = g/(1 + r) with r = 1/sqrt(1 - q²) and g = q²r²; the slope is g·r."""
    torch.mul(q, q, out=value)
    r = torch.sub(q.new_ones(()), value, out=spare).rsqrt_()
    g = value.mul_(r).mul_(r)
    torch.mul(g, r, out=slope)
    value.div_(r.add_(1))


register_loss(
    "strict_m_full",
    kind="strict",
    formula="1/p - 1",
    wrong_class_formula="q/(1 - q)",
    wrong_class_function=strict_m_wrong,
    reference=f"{PAPER} (CustomMFullLoss)",
)(strict_m)

register_loss(
    "strict_l_full",
    kind="strict",
    formula="1/sqrt(p*(2 - p)) - 1",
    wrong_class_formula="1/sqrt(1 - q**2) - 1",
    wrong_class_function=strict_l_wrong,
    reference=f"{PAPER} (CustomLFullLoss, less its constant 1)",
)(strict_l)


def liberal_parabolic_pq(p: Tensor, q: Tensor) -> Pair:
    """q(1 + p), and 2p²."""
    return torch.addcmul(q, q, p), (p * p).mul_(2)


@register_loss(
    "liberal_parabolic",
    kind="liberal",
    formula="1 - p**2",
    weight_formula="2*p**2",
    probability_function=liberal_parabolic_pq,
    reference=f"{PAPER} (ParabolicLoss)",
)
def liberal_parabolic(m: Tensor) -> Pair:
    """1 - p²."""
    return at_margin(liberal_parabolic_pq, m)


def liberal_circle_pq(p: Tensor, q: Tensor) -> Pair:
    """sqrt(q(1 + p)), and p² over it."""
    value = torch.addcmul(q, q, p).sqrt_()
    return value, p * p / value


@register_loss(
    "liberal_circle",
    kind="liberal",
    formula="sqrt(1 - p**2)",
    weight_formula="p**2/sqrt(1 - p**2)",
    probability_function=liberal_circle_pq,
    reference=f"{PAPER} (CircleLoss)",
)
def liberal_circle(m: Tensor) -> Pair:
    """sqrt(1 - p²) = sqrt(q)·sqrt(1 + p); sqrt(q) through its logarithm, so as not to underflow."""
    p, root_q = torch.sigmoid(m), torch.exp(0.5 * torch.nn.functional.logsigmoid(-m))
    return root_q * (1 + p).sqrt(), -p * p * root_q / (1 + p).sqrt()


def liberal_cosine_pq(p: Tensor, q: Tensor) -> Pair:
    """sin(pi q/2), and p·sin(pi p/2)·pi/2."""
    half_pi = math.pi / 2
    return (q * half_pi).sin_(), (p * half_pi).sin_().mul_(p).mul_(half_pi)


@register_loss(
    "liberal_cosine",
    kind="liberal",
    formula="cos(pi*p/2)",
    weight_formula="pi/2*p*sin(pi*p/2)",
    probability_function=liberal_cosine_pq,
    reference=f"{PAPER} (CosLoss)",
)
def liberal_cosine(m: Tensor) -> Pair:
    """cos(pi p/2)."""
    return at_margin(liberal_cosine_pq, m)


def liberal_exp_pq(p: Tensor, q: Tensor) -> Pair:
    """e^q - 1, and p·e^q."""
    value = torch.expm1(q)
    return value, torch.addcmul(p, p, value)


@register_loss(
    "liberal_exp",
    kind="liberal",
    formula="exp(1 - p) - 1",
    weight_formula="p*exp(1 - p)",
    probability_function=liberal_exp_pq,
    reference="this project, in the manner of the paper's liberal losses",
)
def liberal_exp(m: Tensor) -> Pair:
    """e^(1-p) - 1."""
    return at_margin(liberal_exp_pq, m)
