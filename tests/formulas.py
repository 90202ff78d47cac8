"""The registry's formula texts in 50 digits: the reference for the tests of the torch code."""

import functools

from mpmath import inf, mp, mpf

from hf_losses import get_spec, list_losses

mp.dps = 50

FUNCTIONS = ("log", "exp", "sqrt", "sin", "cos", "sinh", "cosh", "tanh", "pi")


def variants(task):
    """Every loss with default and other parameters, and their ids, for `parametrize`."""
    cases = {}
    for name in list_losses(task=task):
        cases[name] = name, {}
        for parameter, of in get_spec(name).parameters.items():
            for value in (of.default / 4, of.default * 3):
                cases[f"{name}-{parameter}={value:g}"] = name, {parameter: value}
    return {"argvalues": list(cases.values()), "ids": list(cases)}


@functools.cache
def compiled(formula):
    return compile(formula, "<formula>", "eval")


def evaluate(formula, **variables):
    functions = {name: getattr(mp, name) for name in FUNCTIONS}
    return eval(compiled(formula), {"__builtins__": {"abs": abs}}, functions | variables)


def sigmoid(m):
    return 1 / (1 + mp.exp(-m))


def digits(largest):
    """Enough digits to write 1 - p in logits of that size."""
    return mp.workdps(50 + int(largest))


@functools.cache
def parts(name, **given_params):
    """The loss of the true class as a function of P = p, of a wrong one as a function of P = 1 - q.

    Either falls to 0 as P rises to 1, and both are bounded by the same rule.
    """
    spec = get_spec(name)
    params = {key: mpf(number) for key, number in spec.resolve(given_params).items()}
    losses = [lambda p: evaluate(spec.formula, p=p, **params)]
    if spec.is_full:
        losses.append(lambda p: evaluate(spec.wrong_class_formula, q=1 - p, **params))
    return losses


def weight(loss, p):
    """p·|dl/dp|, differentiated in the margin, where every loss is smooth and nothing is tiny."""
    m = mp.log(p / (1 - p))
    return -mp.diff(lambda x: loss(sigmoid(x)), m) / (1 - p)


@functools.cache
def log_boundary(loss, max_weight):
    """Ln p where a falling weight reaches `max_weight`; 0 if even the smallest one exceeds it."""
    with digits(300):
        low, high = mpf(-300), mpf(0)
        for _ in range(100):
            middle = (low + high) / 2
            heavy = weight(loss, mp.exp(middle)) > max_weight
            low, high = (middle, high) if heavy else (low, middle)
        return high


def bounded(loss, m, max_weight=inf):
    """Value and slope in the margin, with the weight of a strict loss capped at `max_weight`."""
    m = mpf(m)
    p, q = sigmoid(m), sigmoid(-m)
    w = weight(loss, p)
    if w <= max_weight:
        return loss(p), -w * q
    start = log_boundary(loss, max_weight)
    return loss(mp.exp(start)) + max_weight * (start - mp.log(p)), -max_weight * q


def reference(name, logits, share, max_weight=inf, largest=None, **params):
    """Loss and logit gradient of one item with a share of every class as its target.

    `largest` is the largest margin of a class with a share, which more digits have to be made for;
    without it, the largest logit.
    """
    with digits(max(abs(z) for z in logits) if largest is None else largest):
        true, *wrong = parts(name, **params)
        cap = max_weight if get_spec(name).kind == "strict" else inf
        exps = [mp.exp(mpf(z)) for z in logits]
        value, gradient = mpf(0), [mpf(0)] * len(exps)
        for k, share_k in enumerate(share):
            rest = mp.fsum(exps[:k] + exps[k + 1 :])
            margin = mp.log(exps[k] / rest)
            pays = [(mpf(share_k), true, 1)]
            pays += [(mp.fsum(share) - mpf(share_k), loss, -1) for loss in wrong]
            for part, loss, sign in pays:
                if not part:
                    continue
                loss_k, slope = bounded(loss, sign * margin, cap)
                value += part * loss_k
                for j, e in enumerate(exps):
                    of_margin = 1 if j == k else -e / rest
                    gradient[j] += part * slope * sign * of_margin
        return value, gradient
