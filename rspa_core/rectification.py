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


def variance_term(pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """What the spread of a block's keys adds to its log-sum-exp, in the mean of a q-block's rows.

    S_ij = ½ c² Σ_d <q_d²>_i var_k,jd, the second-order (Gaussian) term, not yet capped.

    Returns:
        `[..., NQ, NK]` fp32, in nats.
    """
    scale = pooled_q.mean.shape[-1] ** -0.5
    return 0.5 * scale**2 * (pooled_q.mean_square @ pooled_k.variance.mT)


def selection_logits(pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """Estimated log-sum-exp of a q-block's mean query with the keys of every block.

    t_ij = c q̄_i·k̄_j + ln n_j + min(S_ij, cap)

    Returns:
        `[..., NQ, NK]` fp32, in nats.
    """
    first = pooled_q.mean.shape[-1] ** -0.5 * (pooled_q.mean @ pooled_k.mean.mT)
    return first + pooled_k.lengths.log() + capped(variance_term(pooled_q, pooled_k))


def tail_variance_term(rows: Tensor, pooled_q: PooledBlocks, pooled_k: PooledBlocks) -> Tensor:
    """The variance term for every row of a q-block: w_r S_ij with w_r = |q_r|² / <|q|²>_i.

    The tail puts block j into the softmax of row r with the logit

        t_rj = c q_r·k̄_j + ln n_j + min(w_r S_ij, cap)

    where w_r S_ij stands for the product of all channels, ½ c² Σ_d q_rd² var_k,jd (what that costs:
    docs/notes/method.md).

    Args:
        rows: `[NQ, R, D]` fp32, the rows of the q-blocks.
        pooled_q, pooled_k: statistics of the q-blocks `[NQ, D]` and the kv-blocks `[NK, D]`.

    Returns:
        `[NQ, R, NK]` fp32, in nats, not yet capped.
    """
    mean_length = pooled_q.mean_square.sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    share = rows.square().sum(-1, keepdim=True) / mean_length[:, None, None]
    return share * variance_term(pooled_q, pooled_k)[:, None, :]


def group_spread_term(rows: Tensor, spread: Tensor) -> Tensor:
    """What the spread of a group's keys adds to its logit in every row: |q_r|² ν_g.

    Args:
        rows: `[..., D]` fp32.
        spread: ν, `[K]` fp32, see `key_groups.KeyGroups`.

    Returns:
        `[..., K]` fp32, in nats, not yet capped.
    """
    return rows.square().sum(-1, keepdim=True) * spread


def capped(spread: Tensor) -> Tensor:
    """The variance or spread term, bounded."""
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
