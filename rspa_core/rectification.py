"""What stands in for the blocks that are not attended: the two rectification modes.

`paper` is IPAR + GAPR of Liu et al., *Rectified SpaAttn*, arXiv 2511.19835: the critical part is
scaled by R and the accepted non-critical blocks add their pooled mass times their mean value.

`precise` puts every non-critical block into the row's softmax as one weighted key, with a
second-order estimate of the block's log-sum-exp, so that nothing about the critical part has to
be estimated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .pooling import PooledBlocks

TAIL_VARIANCE_CAP = 4.0
"""Most that the variance term may add to a block's logit, in nats.

The second-order term is exact for Gaussian scores, but a block of 128 keys cannot exceed its
mean score by much more than ln 128 = 4.85 nats before one single key dominates it, where the
Gaussian estimate grows quadratically and the truth linearly.
"""


def second_order_logits(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """Estimated log-sum-exp of the scores of `q` with the keys of every block.

    t_rj = c q_r·k̄_j + ln n_j + min(½ c² Σ_d q_rd² var_k,jd, cap)

    Args:
        q: `[..., R, D]` fp32 query rows, or pooled queries.
        pooled_k: statistics of the kv-blocks, `[..., NK, D]`.

    Returns:
        `[..., R, NK]` fp32, in nats.
    """
    return q.shape[-1] ** -0.5 * (q @ pooled_k.mean.mT) + second_order_bias(q, pooled_k)


def second_order_bias(q: Tensor, pooled_k: PooledBlocks) -> Tensor:
    """What `second_order_logits` adds to the score of `q` with a block's mean key."""
    scale = q.shape[-1] ** -0.5
    variance = 0.5 * scale**2 * (q.square() @ pooled_k.variance.mT)
    return pooled_k.lengths.log() + variance.clamp(max=TAIL_VARIANCE_CAP)


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
