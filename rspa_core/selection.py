"""Which kv-blocks every q-block attends exactly: the critical set."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SparseConfig
from .key_groups import KeyGroups, head_groups
from .layout import TokenLayout
from .order import block_neighbours, token_order
from .pooling import PooledBlocks, block_lengths, pool_blocks, split_blocks
from .rectification import capped, group_spread_term, selection_logits

Q_PARTS = 4
"""Parts of a q-block whose means rank the groups of keys one by one."""


def split_sequence(x: Tensor, layout: TokenLayout, order: str) -> tuple[Tensor, Tensor]:
    """Split `x [..., N, D]` into its video tokens in token order and its context tokens.

    Returns:
        `[..., T*H*W, D]` and `[..., context_length, D]`, copies.
    """
    index = token_order(layout.grid, order).to(x.device) + layout.video_start
    context = torch.cat([x[..., : layout.video_start, :], x[..., layout.video_end :, :]], dim=-2)
    return x[..., index, :], context


def forced_blocks(layout: TokenLayout, config: SparseConfig, device: torch.device) -> Tensor:
    """Blocks that are critical whatever their score, `[NQ, NK]` bool: own block, neighbours."""
    if config.neighbours:
        return block_neighbours(layout.grid, config.order, config.q_block, config.kv_block).to(
            device
        )
    q_index = torch.arange(layout.num_blocks(config.q_block), device=device)
    kv_index = torch.arange(layout.num_blocks(config.kv_block), device=device)
    return q_index[:, None] == kv_index[None, :] // (config.q_block // config.kv_block)


def pooled_probs(
    pooled_q: PooledBlocks, pooled_k: PooledBlocks, context_k: Tensor, rectification: str
) -> Tensor:
    """Pooled estimate of full attention, `P [..., NQ, NK]` fp32 (IPAR, arXiv 2511.19835).

    P_i. = softmax over [c q̄_i·k̄_j + ln n_j for all j, LSE_t(c q̄_i·k_t) over context tokens t];
    the context column is part of the normalisation and is not returned. The mode `precise` ranks
    with the second-order score instead, see `selection_logits`.

    Args:
        pooled_q, pooled_k: block statistics, `[..., NQ, D]` and `[..., NK, D]`.
        context_k: context keys `[..., C, D]`, C may be 0.
        rectification: "paper", "precise" or "none".
    """
    q = pooled_q.mean
    scale = q.shape[-1] ** -0.5
    if rectification == "precise":
        logits = selection_logits(pooled_q, pooled_k)
    else:
        logits = scale * (q @ pooled_k.mean.mT) + pooled_k.lengths.log()
    if context_k.shape[-2]:
        context = torch.logsumexp(scale * (q @ context_k.float().mT), dim=-1, keepdim=True)
        logits = torch.cat([logits, context], dim=-1)
    return logits.softmax(-1)[..., : pooled_k.mean.shape[-2]]


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
    scale = q.shape[-1] ** -0.5
    logits = scale * (q @ groups.keys.mT) + groups.counts.log()
    logits = logits + capped(group_spread_term(q, groups.spread))
    if len(context_k):
        context = torch.logsumexp(scale * (q @ context_k.float().mT), dim=-1, keepdim=True)
        logits = torch.cat([logits, context], dim=-1)
    probs = logits.softmax(-1)[:, : len(groups.counts)]
    probs = probs.unflatten(-1, (len(groups.labels), -1)).sum(-1)
    weights = block_lengths(len(video_q), part, q.device)
    blocks = split_blocks(weights[:, None] * probs, Q_PARTS).sum(1)
    return blocks / block_lengths(len(video_q), q_block, q.device)[:, None]


def block_probs(
    video_q: Tensor,
    pooled_q: PooledBlocks,
    pooled_k: PooledBlocks,
    groups: KeyGroups | None,
    context_k: Tensor,
    config: SparseConfig,
) -> Tensor:
    """The P that ranks the blocks of one head: of groups where there are some, else pooled."""
    if groups is not None:
        return group_probs(video_q, groups, context_k, config.q_block)
    return pooled_probs(pooled_q, pooled_k, context_k, config.rectification)


def select_blocks(probs: Tensor, forced: Tensor, config: SparseConfig) -> Tensor:
    """The critical set from pooled probabilities.

    n_i = max(top_k, number of leading blocks whose mass first exceeds top_p). Forced blocks are
    taken first and the rest of the n_i goes to the largest probabilities (of equals the first),
    so that neighbours come out of the same budget where they fit.

    Args:
        probs: P, `[..., NQ, NK]` fp32.
        forced: `[NQ, NK]` bool.

    Returns:
        `[..., NQ, NK]` bool.
    """
    num_blocks = probs.shape[-1]
    budget = torch.full(probs.shape[:-1], config.top_k(num_blocks), device=probs.device)
    if config.top_p > 0:
        mass = probs.sort(dim=-1, descending=True, stable=True).values.cumsum(-1)
        by_mass = (mass <= config.top_p).sum(-1) + 1
        budget = torch.maximum(budget, by_mass.clamp(max=num_blocks))
    priority = torch.where(forced, float("inf"), probs)
    ranking = priority.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(ranking)
    positions = torch.arange(num_blocks, device=probs.device).expand_as(ranking)
    rank.scatter_(-1, ranking, positions)
    return (rank < budget[..., None]) | forced


def critical_blocks(q: Tensor, k: Tensor, layout: TokenLayout, config: SparseConfig) -> Tensor:
    """Critical set of one attention call.

    Args:
        q, k: `[B, H, N, D]`, fp16, bf16 or fp32.
        layout: where the video is among the N tokens.
        config: block sizes and selection rules.

    Returns:
        `[B, H, NQ, NK]` bool over video blocks in token order.
    """
    forced = forced_blocks(layout, config, q.device)
    masks = [
        _critical_of_head(q[b, h].float(), k[b, h].float(), layout, forced, config)
        for b in range(q.shape[0])
        for h in range(q.shape[1])
    ]
    return torch.stack(masks).unflatten(0, q.shape[:2])


def _critical_of_head(
    q: Tensor, k: Tensor, layout: TokenLayout, forced: Tensor, config: SparseConfig
) -> Tensor:
    """`q, k [N, D]` fp32 to `[NQ, NK]` bool."""
    video_q, _ = split_sequence(q, layout, config.order)
    video_k, context_k = split_sequence(k, layout, config.order)
    pooled_q, pooled_k = pool_blocks(video_q, config.q_block), pool_blocks(video_k, config.kv_block)
    groups = None
    if config.tail_keys > 1:
        groups = head_groups(video_q, video_k, config.kv_block, config.tail_keys)
    probs = block_probs(video_q, pooled_q, pooled_k, groups, context_k, config)
    return select_blocks(probs, forced, config)
