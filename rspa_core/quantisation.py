"""The 8-bit step: queries and keys rounded to int8 for their products.

    q' = q H,  k'_t = (k_t - m) H         H: orthogonal, see below; m: a mean of the keys
    q̂_r = s_r round(q'_r / s_r),  s_r = max_d |q'_rd| / 127      one scale per query
    k̂_t = s_j round(k'_t / s_j),  s_j = max_{t in j, d} |k'_td| / 127    one scale per kv-block

Softmax does not see m, and products do not see H. Channel means of keys are often far larger than
what tells the keys apart; without them int8 has enough steps (SageAttention, arXiv 2410.02367). The
rotation, a Hadamard matrix / √32 for every `ROTATED_CHANNELS` = 32 neighbouring channels, spreads a
channel that is larger than the others over them, so that it does not take the steps of the rest
(QuaRot, arXiv 2404.00456); longer runs of channels gain no more. D' is D padded to whole runs.

Group means of "precise" are rounded like keys, with one scale for `TAIL_SCALE_GROUPS` of them.
Values and weights stay in 16 bits.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .pooling import join_blocks, split_blocks

SMOOTHING_STRIDE = 64
"""m is the mean of every 64th token: any m is exact, and a sample costs nothing."""

ROTATED_CHANNELS = 32

TAIL_SCALE_GROUPS = 128
"""Neighbouring groups of keys that share a scale."""

INT8_MAX = 127.0


def smoothing_shift(k: Tensor) -> Tensor:
    """m: mean of every `SMOOTHING_STRIDE`-th key, `[..., N, D]` to fp32 `[..., D]`."""
    return k[..., ::SMOOTHING_STRIDE, :].mean(-2, dtype=torch.float32)


def rotation(device: torch.device) -> Tensor:
    """√32 H of one run: entries 1 and -1, symmetric, `[32, 32]` fp32 (Sylvester's construction)."""
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < ROTATED_CHANNELS:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def rotated(x: Tensor) -> Tensor:
    """x H of fp32 `x [..., D]`: `[..., D']`."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % ROTATED_CHANNELS))
    runs = rearrange(padded, "... (run channel) -> ... run channel", channel=ROTATED_CHANNELS)
    turned = runs @ rotation(x.device) * ROTATED_CHANNELS**-0.5
    return rearrange(turned, "... run channel -> ... (run channel)")


def round_queries(q: Tensor) -> Tensor:
    """q̂ of fp32 `q [..., N, D]`: `[..., N, D']`."""
    q = rotated(q)
    return _round(q, q.abs().amax(-1, keepdim=True))


def round_keys(k: Tensor, shift: Tensor, length: int) -> Tensor:
    """k̂ of fp32 `k [..., N, D]`: `[..., N, D']`; `length` keys share a scale, the last ones fewer.

    Args:
        k: keys in the order in which they are cut into blocks, or means of their groups.
        shift: m, `[..., D]`.
        length: of a kv-block, or `TAIL_SCALE_GROUPS`.
    """
    blocks = split_blocks(rotated(k - shift[..., None, :]), length)
    rounded = _round(blocks, blocks.abs().amax((-2, -1), keepdim=True))
    return join_blocks(rounded, k.shape[-2])


def _round(x: Tensor, largest: Tensor) -> Tensor:
    steps = torch.where(largest > 0, INT8_MAX / largest, 0.0)
    return torch.floor(x * steps + 0.5) * (largest / INT8_MAX)
