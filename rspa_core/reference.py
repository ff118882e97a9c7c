"""The specification: Rectified SpaAttn in plain torch and fp32.

Every kernel is checked against this file. It is written to be read; it still gathers only the
critical blocks, so that its cost follows the density and its memory stays bounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SparseConfig
from .layout import TokenLayout
from .order import inverse_order
from .pooling import PooledBlocks, block_lengths, pool_blocks, split_blocks
from .rectification import gain_accepted, paper_rectification, second_order_logits
from .selection import forced_blocks, pooled_probs, select_blocks, split_sequence

_CHUNK_BYTES = 1 << 28
"""Gathered keys of one step of the loop: bounds the memory, does not change the result."""


def reference_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig
) -> tuple[Tensor, Tensor]:
    """Rectified block-sparse attention, all arithmetic in fp32.

    Context queries attend everything exactly; context keys are attended exactly by every query.

    Args:
        q, k, v: `[B, H, N, D]`, any strides, fp16, bf16 or fp32; RoPE already applied.
        layout: where the video is among the N tokens.
        config: see `SparseConfig`.

    Returns:
        The output `[B, H, N, D]` in the dtype of `q` (stored as `[B, N, H, D]`, so that heads
        merge without a copy) and the critical set `[B, H, NQ, NK]` bool.
    """
    batch, heads, length, head_dim = q.shape
    out = q.new_empty((batch, length, heads, head_dim)).transpose(1, 2)
    critical = torch.empty(
        (batch, heads, layout.num_blocks(config.q_block), layout.num_blocks(config.kv_block)),
        dtype=torch.bool,
        device=q.device,
    )
    for b in range(batch):
        for h in range(heads):
            head_q, head_k, head_v = q[b, h].float(), k[b, h].float(), v[b, h].float()
            rows, mask = _attend_head(head_q, head_k, head_v, layout, config)
            out[b, h] = rows
            critical[b, h] = mask
    return out, critical


def _attend_head(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig
) -> tuple[Tensor, Tensor]:
    """One head: `q, k, v [N, D]` fp32 to the output `[N, D]` and the critical set `[NQ, NK]`."""
    video_q, context_q = split_sequence(q, layout, config.order)
    video_k, context_k = split_sequence(k, layout, config.order)
    video_v, context_v = split_sequence(v, layout, config.order)
    pooled_q = pool_blocks(video_q, config.q_block)
    pooled_k = pool_blocks(video_k, config.kv_block)
    pooled_v = pool_blocks(video_v, config.kv_block).mean

    probs = pooled_probs(pooled_q, pooled_k, context_k, config.rectification)
    critical = select_blocks(probs, forced_blocks(layout, config, q.device), config)

    sparse = _CriticalAttention(video_k, video_v, context_k, context_v, config)
    tail = (pooled_k, pooled_v) if config.rectification == "precise" else None
    video_out = sparse(split_blocks(video_q, config.q_block), critical, tail)
    if config.rectification == "paper":
        accepted = gain_accepted(pooled_q, pooled_k)
        scale, compensation = paper_rectification(probs, critical, accepted, pooled_v)
        video_out = scale[:, None, None] * video_out + compensation[:, None, :]

    out = torch.empty_like(q)
    context_out = _softmax_attention(context_q, k, v)
    out[: layout.video_start] = context_out[: layout.video_start]
    out[layout.video_end :] = context_out[layout.video_start :]
    # Drop the rows behind the last token of a ragged block, then back to raster order.
    video_out = video_out.flatten(0, 1)[: layout.video_length]
    inverse = inverse_order(layout.grid, config.order).to(q.device)
    out[layout.video_start : layout.video_end] = video_out[inverse]
    return out, critical


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention of a few rows, `[R, D]` on `[N, D]`."""
    return (q.shape[-1] ** -0.5 * (q @ k.mT)).softmax(-1) @ v


class _CriticalAttention:
    """Attention of q-blocks on critical kv-blocks, all context tokens and, if given, a tail."""

    def __init__(
        self, k: Tensor, v: Tensor, context_k: Tensor, context_v: Tensor, config: SparseConfig
    ) -> None:
        self.k_blocks = split_blocks(k, config.kv_block)
        self.v_blocks = split_blocks(v, config.kv_block)
        self.lengths = block_lengths(k.shape[0], config.kv_block, k.device)
        self.context_k = context_k
        self.context_v = context_v

    def __call__(
        self, q_blocks: Tensor, critical: Tensor, tail: tuple[PooledBlocks, Tensor] | None
    ) -> Tensor:
        """`q_blocks [NQ, b_q, D]`, `critical [NQ, NK]` to `[NQ, b_q, D]`, in bounded chunks."""
        counts = critical.sum(-1)
        kv_block, head_dim = self.k_blocks.shape[1:]
        per_q_block = int(counts.max()) * kv_block * head_dim * 4
        step = max(1, _CHUNK_BYTES // per_q_block)
        chunks = [
            self._chunk(q_blocks[i : i + step], critical[i : i + step], tail)
            for i in range(0, len(q_blocks), step)
        ]
        return torch.cat(chunks)

    def _chunk(
        self, q: Tensor, critical: Tensor, tail: tuple[PooledBlocks, Tensor] | None
    ) -> Tensor:
        scale = q.shape[-1] ** -0.5
        counts = critical.sum(-1)
        # Critical block numbers first, in ascending order; rows with fewer are filled up.
        kv_indices = critical.float().argsort(dim=-1, descending=True, stable=True)
        kv_indices = kv_indices[:, : int(counts.max())]
        filled = torch.arange(kv_indices.shape[1], device=q.device) < counts[:, None]
        token = torch.arange(self.k_blocks.shape[1], device=q.device)
        valid = filled[..., None] & (token < self.lengths[kv_indices][..., None])

        keys = self.k_blocks[kv_indices].flatten(1, 2)
        values = self.v_blocks[kv_indices].flatten(1, 2)
        scores = scale * (q @ keys.mT)
        scores = scores.masked_fill(~valid.flatten(1, 2)[:, None, :], float("-inf"))
        parts = [(scores, values), (scale * (q @ self.context_k.mT), self.context_v)]
        if tail is not None:
            pooled_k, pooled_v = tail
            estimate = second_order_logits(q, pooled_k)
            parts.append((estimate.masked_fill(critical[:, None, :], float("-inf")), pooled_v))

        weights = torch.cat([part for part, _ in parts], dim=-1).softmax(-1)
        shares = weights.split([part.shape[-1] for part, _ in parts], dim=-1)
        out = torch.zeros_like(q)
        for share, (_, part_values) in zip(shares, parts, strict=True):
            out += share @ part_values
        return out
