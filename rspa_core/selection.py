"""Which kv-blocks every q-block attends exactly: the critical set."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .config import SparseConfig
from .layout import TokenLayout
from .order import block_neighbours, split_sequence
from .ranking import block_probs


def forced_blocks(layout: TokenLayout, config: SparseConfig, device: torch.device) -> Tensor:
    """Blocks that are critical whatever their score, `[NQ, NK]` bool: own block, neighbours."""
    if config.neighbours:
        return block_neighbours(layout.grid, config.order, config.q_block, config.kv_block).to(
            device
        )
    q_index = torch.arange(layout.num_blocks(config.q_block), device=device)
    kv_index = torch.arange(layout.num_blocks(config.kv_block), device=device)
    return q_index[:, None] == kv_index[None, :] // (config.q_block // config.kv_block)


def select_blocks(probs: Tensor, forced: Tensor, config: SparseConfig) -> Tensor:
    """The critical set from pooled probabilities.

    n_i = max(top_k, number of leading blocks whose mass first exceeds top_p), all with
    top_p = 1. Forced blocks are taken first and the rest of the n_i goes to the largest
    probabilities (of equals the first), so that neighbours come out of the same budget where they
    fit.

    Args:
        probs: P, `[..., NQ, NK]` fp32.
        forced: `[NQ, NK]` bool.

    Returns:
        `[..., NQ, NK]` bool.
    """
    num_blocks = probs.shape[-1]
    budget = torch.full(probs.shape[:-1], config.top_k(num_blocks), device=probs.device)
    if 0 < config.top_p < 1:
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
    return rearrange(masks, "(batch head) q k -> batch head q k", batch=len(q))


def _critical_of_head(
    q: Tensor, k: Tensor, layout: TokenLayout, forced: Tensor, config: SparseConfig
) -> Tensor:
    """`q, k [N, D]` fp32 to `[NQ, NK]` bool."""
    video_q, _ = split_sequence(q, layout, config.order)
    video_k, context_k = split_sequence(k, layout, config.order)
    probs, _ = block_probs(video_q, video_k, context_k, config)
    return select_blocks(probs, forced, config)
