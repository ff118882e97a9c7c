"""What stands in for the blocks that are not attended: the two rectification modes.

`paper` is IPAR + GAPR of Liu et al., *Rectified SpaAttn*, arXiv 2511.19835: the critical part is
scaled by R and the accepted non-critical blocks add their pooled mass times their mean value.

`precise` puts every non-critical block into the row's softmax as the weighted means of groups of
its keys (see key_groups.py), each with an estimate of its keys' log-sum-exp, so that nothing about
the critical part has to be estimated:

    t_rg = c q_r·k̄_g + ln n_g + min(|q|²_i ν_g, cap)        |q|²_i: mean of |q_r|² over q-block i
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import PooledBlocks, block_lengths, split_blocks

TAIL_VARIANCE_CAP = 4.0
"""Most that the spread of a group's keys may add to its logit, in nats.

The term grows with the square of the query's length, but 128 keys cannot exceed their mean score by
much more than ln 128 = 4.85 nats before one single key dominates them, from where the truth grows
linearly.
"""

SMALLEST_SHARE = 1e-6
"""R counts as this at least where its logarithm is taken."""


def squared_lengths(video_q: Tensor, q_block: int) -> Tensor:
    """Mean |q_r|² over the tokens of every q-block of `video_q [n, D]` fp32: `[NQ]`."""
    squares = split_blocks(video_q.square().sum(-1, keepdim=True), q_block).sum((-2, -1))
    return squares / block_lengths(len(video_q), q_block, video_q.device)


def group_spread_term(squared_length: Tensor, spread: Tensor) -> Tensor:
    """What the spread of a group's keys adds to its logit: |q|² ν_g.

    Args:
        squared_length: `[...]` fp32.
        spread: ν, `[K]` fp32, see `key_groups.KeyGroups`.

    Returns:
        `[..., K]` fp32, in nats, not yet capped.
    """
    return squared_length[..., None] * spread


def capped(spread: Tensor) -> Tensor:
    """The spread term, bounded."""
    return spread.clamp(max=TAIL_VARIANCE_CAP)


def gain_accepted(pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """GAPR (Gain-Aware Pooling Rectification): where the gain exceeds the pooling error.

    g_ij = |raw_ij| > |mad_q,i · k̄_j| + |q̄_i · mad_k,j|, raw_ij = q̄_i · k̄_j unscaled.

    Returns:
        `[..., NQ, NK]` bool.
    """
    gain = (pooled_q.mean @ pooled_k.mean.mT).abs()
    pooling_error = (pooled_q.mean_abs_dev @ pooled_k.mean.mT).abs()
    pooling_error = pooling_error + (pooled_q.mean @ pooled_k.mean_abs_dev.mT).abs()
    return gain > pooling_error


def paper_rectification(
    pooled_probs: Tensor, critical: Tensor, accepted: Tensor, pooled_v: Tensor
) -> tuple[Tensor, Tensor]:
    """Rectification factor and compensation of the mode `paper`.

    W_ij = P_ij where j is not critical and accepted, else 0; R_i = 1 - Σ_j W_ij.

    Args:
        pooled_probs: P, `[..., NQ, NK]` fp32.
        critical: `[..., NQ, NK]` bool.
        accepted: the GAPR bit, `[..., NQ, NK]` bool.
        pooled_v: block means of v, `[..., NK, D]` fp32.

    Returns:
        `rectify_scale` R `[..., NQ]` and `compensation` Σ_j W_ij v̄_j `[..., NQ, D]`, fp32.
    """
    weights = torch.where(accepted & ~critical, pooled_probs, 0.0)
    return 1.0 - weights.sum(-1), weights @ pooled_v
