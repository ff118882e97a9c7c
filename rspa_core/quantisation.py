"""The 8-bit step: queries and keys rounded to int8 for the products of the critical part.

    k'_t = k_t - m,  m a mean of the keys of the head          softmax does not see m
    q̂_r = s_r round(q_r / s_r),  s_r = max_d |q_rd| / 127      one scale per query
    k̂_t = s_j round(k'_t / s_j), s_j = max_{t in j, d} |k'_td| / 127    one scale per kv-block

Channel means of keys are often far larger than what tells the keys apart; without them int8 has
enough steps (SageAttention, arXiv 2410.02367). Values and weights stay in 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import join_blocks, split_blocks

SMOOTHING_STRIDE = 64
"""m is the mean of every 64th token: any m is exact, and a sample costs nothing."""

INT8_MAX = 127.0


def smoothing_shift(k: Tensor) -> Tensor:
    """m: mean of every `SMOOTHING_STRIDE`-th key, `[..., N, D]` to fp32 `[..., D]`."""
    return k[..., ::SMOOTHING_STRIDE, :].mean(-2, dtype=torch.float32)


def round_queries(q: Tensor) -> Tensor:
    """q̂ of fp32 `q [..., N, D]`."""
    return _round(q, q.abs().amax(-1, keepdim=True))


def round_keys(k: Tensor, shift: Tensor, kv_block: int) -> Tensor:
    """k̂ of fp32 `k [..., N, D]` in blocks of `kv_block` tokens, the last one may be ragged.

    Args:
        k: keys in the order in which they are cut into blocks.
        shift: m, `[..., D]`.
        kv_block: tokens that share a scale.
    """
    blocks = split_blocks(k - shift[..., None, :], kv_block)
    rounded = _round(blocks, blocks.abs().amax((-2, -1), keepdim=True))
    return join_blocks(rounded, k.shape[-2])


def _round(x: Tensor, largest: Tensor) -> Tensor:
    steps = torch.where(largest > 0, INT8_MAX / largest, 0.0)
    return torch.floor(x * steps + 0.5) * (largest / INT8_MAX)
