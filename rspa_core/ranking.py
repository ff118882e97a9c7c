"""What ranks the kv-blocks of every q-block: an estimate of full attention, block by block."""

from __future__ import annotations

import torch
from einops import rearrange, reduce
from torch import Tensor

from .config import SparseConfig
from .key_groups import KeyGroups, head_groups
from .pooling import PooledBlocks, block_lengths, pool_blocks, split_blocks
from .rectification import capped, group_spread_term

Q_PARTS = 4
"""Parts of a q-block whose means rank the groups of keys one by one."""


def block_probs(
    video_q: Tensor, video_k: Tensor, context_k: Tensor, config: SparseConfig
) -> tuple[Tensor, KeyGroups | None]:
    """P, which ranks the blocks of one head, and with "precise" the groups of keys behind it.

    Args:
        video_q, video_k: `[n, D]` fp32 in token order.
        context_k: context keys `[C, D]`, C may be 0.
        config: block sizes, rectification and number of groups.

    Returns:
        P `[NQ, NK]` fp32: of "precise" `group_probs`, else `pooled_probs`; and the groups or None.
    """
    if config.rectification == "precise":
        groups = head_groups(video_q, video_k, config.kv_block, config.tail_keys)
        return group_probs(video_q, groups, context_k, config.q_block), groups
    pooled_q = pool_blocks(video_q, config.q_block)
    return pooled_probs(pooled_q, pool_blocks(video_k, config.kv_block), context_k), None


def pooled_probs(pooled_q: PooledBlocks, pooled_k: PooledBlocks, context_k: Tensor) -> Tensor:
    """Pooled estimate of full attention, `P [..., NQ, NK]` fp32 (IPAR, arXiv 2511.19835).

    P_i. = softmax over [c q̄_i·k̄_j + ln n_j for all j, LSE_t(c q̄_i·k_t) over context tokens t];
    the context column is part of the normalisation and is not returned.

    Args:
        pooled_q, pooled_k: block statistics, `[..., NQ, D]` and `[..., NK, D]`.
        context_k: context keys `[..., C, D]`, C may be 0.
    """
    q = pooled_q.mean
    logits = q.shape[-1] ** -0.5 * (q @ pooled_k.mean.mT) + pooled_k.lengths.log()
    return _softmax_with_context(logits, q, context_k)


def group_probs(video_q: Tensor, groups: KeyGroups, context_k: Tensor, q_block: int) -> Tensor:
    """Estimate of full attention from groups of keys and parts of q-blocks, `P [NQ, NK]` fp32.

    A mean over a whole q-block hides what only some of its queries look for. Each of its `Q_PARTS`
    parts has a softmax of its own, and P is their mean by tokens:

        P_ij = Σ_s n_is / n_i  Σ_{g in j} softmax over [t_isg for all g, LSE_t(c q̄_is·k_t)]
        t_isg = c q̄_is·k̄_g + ln n_g + min(|q̄_is|² ν_g, cap)

    Args:
        video_q: queries of one head in token order, `[n, D]` fp32.
        groups: of the keys of the same head.
        context_k: context keys `[C, D]`, C may be 0.
        q_block: tokens per q-block.
    """
    part = q_block // Q_PARTS
    q = pool_blocks(video_q, part).mean
    logits = q.shape[-1] ** -0.5 * (q @ groups.keys.mT) + groups.counts.log()
    logits = logits + capped(group_spread_term(q.square().sum(-1), groups.spread))
    probs = _softmax_with_context(logits, q, context_k)
    probs = reduce(probs, "part (block group) -> part block", "sum", block=len(groups.labels))
    weights = block_lengths(len(video_q), part, q.device)
    blocks = split_blocks(weights[:, None] * probs, Q_PARTS).sum(1)
    return blocks / rearrange(block_lengths(len(video_q), q_block, q.device), "block -> block 1")


def _softmax_with_context(logits: Tensor, q: Tensor, context_k: Tensor) -> Tensor:
    """Softmax of `logits [..., R, K]` beside the context's part of the rows `q [..., R, D]`."""
    if not context_k.shape[-2]:
        return logits.softmax(-1)
    scores = q.shape[-1] ** -0.5 * (q @ context_k.float().mT)
    context = torch.logsumexp(scores, dim=-1, keepdim=True)
    return torch.cat([logits, context], dim=-1).softmax(-1)[..., : logits.shape[-1]]
