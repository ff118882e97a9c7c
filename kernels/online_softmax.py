"""Softmax over tiles in registers, for attend_hopper.py: with and without a moving maximum.

The online softmax follows the maximum of a row only to keep exp2 in range. Where a row is bounded
before its loop starts, the maximum of its first tile serves for all tiles: neither maxima nor
rescaling, and the same softmax. With m any fixed vector and r = max |k - m|, Cauchy and Schwarz
give

    q k <= q m + |q| r
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2E = gl.constexpr(1.4426950408889634)
# The bits of 1.5 * 2^23: an integer below 2^22 added to them gives the bits of a float that is as
# much larger. A sum of int8 products that starts here is a float without any conversion.
INTEGER_BITS = gl.constexpr(0x4B400000)
INTEGER_FLOAT = gl.constexpr(12582912.0)
# log2 of the largest weight of a bounded row. bf16 has the exponents of fp32, and leaves room for
# the sum of 2^17 such weights times values up to 2^20; fp16 ends at 2^16.
RANGE = gl.constexpr(90.0)
RANGE_FP16 = gl.constexpr(15.0)


@gluon.jit
def scaling(row_unit, key_scale, INT8: gl.constexpr):
    """What brings raw scores to log2: a number, with INT8 one per row."""
    unit = row_unit
    if INT8:
        unit = row_unit * key_scale
        unit = gl.where(unit == 0.0, 1e-30, unit)  # 0 * -inf would be NaN
    return unit


@gluon.jit
def exponentials(scores, highest, unit, INT8: gl.constexpr):
    """exp2(unit scores - highest)."""
    if INT8:
        offset = INTEGER_FLOAT * unit + highest
        return gl.exp2(scores.to(gl.float32, bitcast=True) * unit[:, None] - offset[:, None])
    else:
        return gl.exp2(scores * unit - highest[:, None])


@gluon.jit
def online_step(scores, highest, total, unit, INT8: gl.constexpr):
    """One step of the online softmax: weights, new maximum and sum, and the factor for the old."""
    if INT8:
        largest = gl.max(scores.to(gl.float32, bitcast=True), 1) - INTEGER_FLOAT
    else:
        largest = gl.max(scores, 1)
    new_highest = gl.maximum(highest, largest * unit)
    weights = exponentials(scores, new_highest, unit, INT8)
    rescale = gl.exp2(highest - new_highest)
    total = total * rescale + gl.sum(weights, 1)
    return weights, new_highest, total, rescale


@gluon.jit
def partial_sums(weights):
    """Four sums per row, each over what one thread holds: summed up behind the loop."""
    ROWS: gl.constexpr = weights.shape[0]
    COLUMNS: gl.constexpr = weights.shape[1]
    return gl.sum(gl.sum(weights.reshape([ROWS, COLUMNS // 8, 4, 2]), 3), 1)
