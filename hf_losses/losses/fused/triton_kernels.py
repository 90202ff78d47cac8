"""One program per row: the losses and gradients of a matrix of logits, in float32 throughout.

This file is not imported. Its text is run once for each loss, with that loss's own `loss(m)` behind
it (see `triton_launch`): Triton compiles functions together with the globals that they name.
Formulas are those of `torch_kernels.Sparse.exact` and `Full.exact`.
"""

import triton
import triton.language as tl

# The least float32. Stands for the logit of the true class among the others: unlike -inf it can be
# subtracted from itself.
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
# Stands for ln(0): finite, so that no loss has to take an infinite margin.
LEAST_LOG: tl.constexpr = tl.constexpr(-1e30)


@triton.jit
def log_one_plus(x):
    """ln(1 + x), accurate for small x: 2·artanh(x/(2 + x)) there, as a series."""
    s = x / (2.0 + x)
    t = s * s
    series = 1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9 + t * (1.0 / 11)))))
    return tl.where((x > -0.3) & (x < 0.5), 2.0 * s * series, tl.log(1.0 + x))


@triton.jit
def exp_minus_one(x):
    """exp(x) - 1, accurate for small x."""
    series = 1.0 + x / 5 * (1.0 + x / 6 * (1.0 + x / 7 * (1.0 + x / 8)))
    series = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * series)))
    return tl.where((x > -0.4) & (x < 0.4), series, tl.exp(x) - 1.0)


@triton.jit
def sigmoid(x):
    """1/(1 + exp(-x)); does not underflow before float32 does."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def log_sigmoid(x):
    """ln(sigmoid(x))."""
    return tl.where(x < 0, x, 0.0) - log_one_plus(tl.exp(-tl.abs(x)))


@triton.jit
def log_add_exp(a, b):
    """ln(exp(a) + exp(b)), of which one is finite."""
    return tl.maximum(a, b) + log_one_plus(tl.exp(-tl.abs(a - b)))


@triton.jit
def lowest_number(integer):
    """`LOWEST` as a number of the program, which a loop may change."""
    return integer.to(tl.float32) * 0.0 + LOWEST


@triton.jit
def checked_margin(margin, true_logit, highest):
    """The margin; NaN if a logit is +inf or all are -inf, lest a bounded loss hide that."""
    none = (true_logit == float("-inf")) & (highest <= LOWEST)
    return tl.where(none | (margin == float("inf")), float("nan"), margin)


@triton.jit
def store_zeros(gradient, step, classes, BLOCK: tl.constexpr):
    """Writes the gradient of a row that does not count."""
    for start in range(0, classes, BLOCK):
        k = start + tl.arange(0, BLOCK)
        tl.store(gradient + k * step, tl.zeros([BLOCK], tl.float32), mask=k < classes)


@triton.jit
def multiply(numbers, factor, count, BLOCK: tl.constexpr):
    """Multiplies numbers by one factor; does not touch them if it is 1.

    Args:
        numbers: `count` of them, one behind the other.
        factor: One number.
        count: How many numbers.
        BLOCK: Numbers that are read together, a power of 2.
    """
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        for start in range(tl.program_id(0).to(tl.int64) * BLOCK, count, step):
            k = start + tl.arange(0, BLOCK)
            product = tl.load(numbers + k, mask=k < count).to(tl.float32) * by
            tl.store(numbers + k, product, mask=k < count)


@triton.jit
def sparse_rows(
    logits,
    gradient,
    target,
    scale,
    values,
    classes,
    logits_stride,
    logits_step,
    gradient_stride,
    gradient_step,
    scale_stride,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A loss of the true class's margin.

    Args:
        logits: `[N, C]`, with the strides of its rows and classes.
        gradient: `[N, C]`, with its strides; may be the logits.
        target: `[N]`, int64.
        scale: `[N]`, float32, by which gradients are multiplied; a row with 0 may hold anything.
        values: `[N]`, float32, where the losses go, not scaled.
        classes: C.
        logits_stride: See `logits`.
        logits_step: See `logits`.
        gradient_stride: See `gradient`.
        gradient_step: See `gradient`.
        scale_stride: 0 if all rows share one scale.
        DIFFERENTIATE: Whether to make gradients.
        BLOCK: Classes that are read together, a power of 2.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    gradient += row * gradient_stride
    factor = tl.load(scale + row * scale_stride)
    label = tl.load(target + row)
    if factor == 0:
        tl.store(values + row, 0.0)
        if DIFFERENTIATE:
            store_zeros(gradient, gradient_step, classes, BLOCK)
    else:
        exists = (label >= 0) & (label < classes)
        z_true = tl.load(logits + label * logits_step, mask=exists, other=float("nan"))
        z_true = z_true.to(tl.float32)
        highest = lowest_number(label)
        total = 0.0
        for start in range(0, classes, BLOCK):
            k = start + tl.arange(0, BLOCK)
            z = tl.load(logits + k * logits_step, mask=k < classes, other=float("-inf"))
            z = tl.where(k == label, LOWEST, z.to(tl.float32))
            higher = tl.maximum(highest, tl.max(z, 0))
            total = total * tl.exp(highest - higher) + tl.sum(tl.exp(z - higher), 0)
            highest = higher
        margin = checked_margin(z_true - highest - tl.log(total), z_true, highest)
        value, slope = loss(margin)
        tl.store(values + row, value)
        if DIFFERENTIATE:
            slope = slope * factor
            per_share = -slope / total
            for start in range(0, classes, BLOCK):
                k = start + tl.arange(0, BLOCK)
                z = tl.load(logits + k * logits_step, mask=k < classes, other=float("-inf"))
                of_class = per_share * tl.exp(z.to(tl.float32) - highest)
                of_class = tl.where(k == label, slope, of_class)
                tl.store(gradient + k * gradient_step, of_class, mask=k < classes)


@triton.jit
def full_rows(
    logits,
    gradient,
    target,
    scale,
    values,
    classes,
    logits_stride,
    logits_step,
    gradient_stride,
    gradient_step,
    scale_stride,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A loss of every class's margin; see `sparse_rows`.

    Beside the true class one other, `top`, may have a probability above 1/2. The rest does not, so
    that 1 - p needs no sum of its own for each.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    gradient += row * gradient_stride
    factor = tl.load(scale + row * scale_stride)
    label = tl.load(target + row)
    if factor == 0:
        tl.store(values + row, 0.0)
        if DIFFERENTIATE:
            store_zeros(gradient, gradient_step, classes, BLOCK)
    else:
        exists = (label >= 0) & (label < classes)
        z_true = tl.load(logits + label * logits_step, mask=exists, other=float("nan"))
        z_true = z_true.to(tl.float32)
        top, highest = lowest_number(label), lowest_number(label)
        top_label = label * 0 - 1
        total = 0.0
        numbers = 0.0  # 0, or NaN if a logit is: a maximum may lose it.
        for start in range(0, classes, BLOCK):
            k = start + tl.arange(0, BLOCK)
            z = tl.load(logits + k * logits_step, mask=k < classes, other=float("-inf"))
            z = tl.where(k == label, LOWEST, z.to(tl.float32))
            numbers += tl.sum(tl.where(z == z, 0.0, float("nan")), 0)
            block_top = tl.max(z, 0)
            block_label = start + tl.argmax(z, 0)
            z = tl.where(k == block_label, LOWEST, z)
            second = tl.minimum(top, block_top)
            top_label = tl.where(block_top > top, block_label, top_label)
            top = tl.maximum(top, block_top)
            higher = tl.maximum(tl.maximum(highest, second), tl.max(z, 0))
            total = total * tl.exp(highest - higher) + tl.exp(second - higher)
            total += tl.sum(tl.exp(z - higher), 0)
            highest = higher
        # A large offset that all logits share would cost digits. NaN if all of them are -inf.
        shared = tl.maximum(z_true, top) + numbers
        shared = tl.where(shared <= LOWEST, float("nan"), shared)
        rest = highest - shared + tl.log(total)
        z_true -= shared
        top -= shared
        beside_true = log_add_exp(rest, top)
        beside_top = log_add_exp(rest, z_true)
        every = log_add_exp(beside_true, z_true)
        value, slope = loss(checked_margin(z_true - beside_true, z_true, top))
        top_value, top_slope = loss(-checked_margin(top - beside_top, top, z_true))
        value += top_value
        summed = 0.0
        for start in range(0, classes, BLOCK):
            k = start + tl.arange(0, BLOCK)
            z = tl.load(logits + k * logits_step, mask=k < classes, other=float("-inf"))
            in_rest = (k != label) & (k != top_label)
            log_p = tl.where(in_rest, z.to(tl.float32) - shared - every, LEAST_LOG)
            log_p = tl.maximum(log_p, LEAST_LOG)
            p = tl.exp(log_p)
            of_wrong, slope_of_wrong = loss(log_one_plus(-p) - log_p)
            value += tl.sum(of_wrong, 0)
            summed -= tl.sum(slope_of_wrong / (1.0 - p), 0)
        tl.store(values + row, value)
        if DIFFERENTIATE:
            per_share = slope * tl.exp(rest - beside_true) - top_slope * tl.exp(rest - beside_top)
            per_share += summed * tl.exp(rest - every)
            of_true = slope + top_slope * tl.exp(z_true - beside_top)
            of_true -= summed * tl.exp(z_true - every)
            of_top = -top_slope - slope * tl.exp(top - beside_true) - summed * tl.exp(top - every)
            for start in range(0, classes, BLOCK):
                k = start + tl.arange(0, BLOCK)
                z = tl.load(logits + k * logits_step, mask=k < classes, other=float("-inf"))
                z = z.to(tl.float32) - shared
                in_rest = (k != label) & (k != top_label)
                log_p = tl.maximum(tl.where(in_rest, z - every, LEAST_LOG), LEAST_LOG)
                p = tl.exp(log_p)
                _, slope_of_wrong = loss(log_one_plus(-p) - log_p)
                of_class = -slope_of_wrong / (1.0 - p) - per_share * tl.exp(z - rest)
                of_class = tl.where(k == label, of_true, of_class)
                of_class = tl.where(k == top_label, of_top, of_class) * factor
                tl.store(gradient + k * gradient_step, of_class, mask=k < classes)
