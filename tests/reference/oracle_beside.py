"""High-precision oracle for the losses beside the paper's: values and logit gradients with mpmath.

Independent of PyTorch and of the package. Formulas and derivatives by p are written down by hand
from the papers. Run `python oracle_beside.py > losses_beside.json` to rebuild the golden file.
"""

import json

from mpmath import log, mp, mpf
from oracle import cases, softmax

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

if __name__ == "__main__":
    rows = []
    for logits, label in cases():
        p = softmax([mpf(z) for z in logits])
        row = {"logits": logits, "label": label}
        for name, (value, slope) in LOSSES.items():
            upstream = slope(p[label]) * p[label]
            gradient = [upstream * ((k == label) - q) for k, q in enumerate(p)]
            row[name] = {
                "loss": mp.nstr(value(p[label]), 20),
                "gradient": [mp.nstr(g, 20) for g in gradient],
            }
        rows.append(row)
    parameters = {name: float(value) for name, value in PARAMETERS.items()}
    print(json.dumps(parameters | {"cases": rows}, indent=None))
