"""High-precision oracle for the classification losses: values and logit gradients with mpmath.

Independent of PyTorch, on purpose. Run `python oracle.py > losses.json` to rebuild the golden file
(needs mpmath). Every value is the un-floored, un-reduced loss of one example.
"""

import json
import random

from mpmath import mp, mpf, cos, exp, log, pi, sin, sqrt

mp.dps = 60

# l(p) on the true class's probability, and its derivative dl/dp.
SPARSE = {
    "cross_entropy": (lambda p: -log(p), lambda p: -1 / p),
    "strict_m": (lambda p: 1 / p - 1, lambda p: -1 / p**2),
    "strict_m_power": (
        lambda p, a=mpf("0.5"): p**-a - 1,
        lambda p, a=mpf("0.5"): -a * p ** (-a - 1),
    ),
    "strict_l": (
        lambda p: 1 / sqrt(p * (2 - p)) - 1,
        lambda p: -(1 - p) / (p * (2 - p)) ** mpf("1.5"),
    ),
    "liberal_parabolic": (lambda p: 1 - p**2, lambda p: -2 * p),
    "liberal_circle": (lambda p: sqrt(1 - p**2), lambda p: -p / sqrt(1 - p**2)),
    "liberal_cosine": (lambda p: cos(pi * p / 2), lambda p: -pi / 2 * sin(pi * p / 2)),
    "liberal_exp": (lambda p: exp(1 - p) - 1, lambda p: -exp(1 - p)),
}
# h(q) added for every wrong class of probability q, and dh/dq. The true class takes the sparse form above.
FULL = {
    "strict_m_full": ("strict_m", lambda q: q / (1 - q), lambda q: 1 / (1 - q) ** 2),
    "strict_l_full": (
        "strict_l",
        lambda q: 1 / sqrt(1 - q**2) - 1,
        lambda q: q / (1 - q**2) ** mpf("1.5"),
    ),
}


def softmax(z):
    top = max(z)
    e = [exp(v - top) for v in z]
    s = sum(e)
    return [v / s for v in e]


def loss_and_gradient(name, logits, label):
    """Loss of one example and its gradient with respect to the logits (lists of mpf)."""
    z = [mpf(v) for v in logits]
    p = softmax(z)
    if name in SPARSE:
        f, df = SPARSE[name]
        value, upstream = f(p[label]), [mpf(0)] * len(z)
        upstream[label] = df(p[label])
    else:
        base, h, dh = FULL[name]
        f, df = SPARSE[base]
        value = f(p[label]) + sum(h(q) for k, q in enumerate(p) if k != label)
        upstream = [df(p[label]) if k == label else dh(q) for k, q in enumerate(p)]
    dot = sum(u * q for u, q in zip(upstream, p))
    return value, [q * (u - dot) for u, q in zip(upstream, p)]


def cases():
    rng = random.Random(20261123)
    for classes in (2, 3, 10, 100):
        for scale in (0.1, 1.0, 5.0, 12.0):
            yield [round(rng.gauss(0, scale), 6) for _ in range(classes)], rng.randrange(classes)
    for margin in (-20.0, -8.0, -2.0, 0.0, 2.0, 8.0, 16.0, 30.0):
        yield [margin, 0.0], 0
        yield [margin, 0.0, 0.0, -1.0], 0


if __name__ == "__main__":
    rows = []
    for logits, label in cases():
        row = {"logits": logits, "label": label}
        for name in (*SPARSE, *FULL):
            value, gradient = loss_and_gradient(name, logits, label)
            row[name] = {"loss": mp.nstr(value, 20), "gradient": [mp.nstr(g, 20) for g in gradient]}
        rows.append(row)
    print(json.dumps({"strict_m_power.alpha": 0.5, "cases": rows}, indent=None))
