"""High-precision oracle for the losses beside the paper's: values and logit gradients with mpmath.

Independent of PyTorch and of the package: formulas and derivatives by p are written down by hand
from the papers. In tests/, `python -m reference.oracle_beside > reference/losses_beside.json`
rebuilds the golden file.
"""

import json

from mpmath import log, mp, mpf
from reference import oracle

GAMMA, Q, EPSILON = mpf(2), mpf(0.7), mpf(1)  # 0.7 as a float64 has it.
# l(p) on the true class's probability, and dl/dp.
LOSSES = {
    "focal": (
        lambda p: -((1 - p) ** GAMMA) * log(p),
        lambda p: GAMMA * (1 - p) ** (GAMMA - 1) * log(p) - (1 - p) ** GAMMA / p,
    ),
    "gce": (lambda p: (1 - p**Q) / Q, lambda p: -(p ** (Q - 1))),
    "dft": (lambda p: 1 - p, lambda p: mpf(-1)),
    "poly1": (lambda p: EPSILON * (1 - p) - log(p), lambda p: -EPSILON - 1 / p),
}
PARAMETERS = {"focal.gamma": GAMMA, "gce.q": Q, "poly1.epsilon": EPSILON}


def loss_and_gradient(name, logits, label):
    """Loss of one example and its gradient with respect to the logits, of any loss."""
    if name not in LOSSES:
        return oracle.loss_and_gradient(name, logits, label)
    value, slope = LOSSES[name]
    p = oracle.softmax([mpf(z) for z in logits])
    upstream = slope(p[label]) * p[label]
    return value(p[label]), [upstream * ((k == label) - q) for k, q in enumerate(p)]


if __name__ == "__main__":
    rows = []
    for logits, label in oracle.cases():
        row = {"logits": logits, "label": label}
        for name in LOSSES:
            value, gradient = loss_and_gradient(name, logits, label)
            row[name] = {"loss": mp.nstr(value, 20), "gradient": [mp.nstr(g, 20) for g in gradient]}
        rows.append(row)
    parameters = {name: float(value) for name, value in PARAMETERS.items()}
    print(json.dumps(parameters | {"cases": rows}, indent=None))
