"""How far an attention output is from full attention, and how much mass a block mask keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SparseConfig
from .layout import TokenLayout
from .order import split_sequence
from .pooling import split_blocks


def relative_l1(out: Tensor, ref: Tensor) -> float:
    """Σ|out - ref| / Σ|ref| over all elements, in fp32."""
    difference = (out.float() - ref.float()).abs().sum()
    return float(difference / ref.float().abs().sum())


def relative_l2(out: Tensor, ref: Tensor) -> float:
    """‖out - ref‖₂ / ‖ref‖₂ over all elements, in fp32."""
    return float((out.float() - ref.float()).norm() / ref.float().norm())


def cosine_similarity(out: Tensor, ref: Tensor) -> float:
    """⟨out, ref⟩ / (‖out‖₂ ‖ref‖₂) over all elements, in fp32."""
    product = (out.float() * ref.float()).sum()
    return float(product / (out.float().norm() * ref.float().norm()))


def attention_mass_recall(
    q: Tensor, k: Tensor, block_mask: Tensor, layout: TokenLayout, config: SparseConfig
) -> float:
    """Share of the true attention mass of the video rows that the critical set keeps.

    Context keys are always kept and count as kept. Memory: one q-block's scores at a time.

    Args:
        q, k: `[B, H, N, D]`.
        block_mask: critical set `[B, H, NQ, NK]` bool, in token order.
        layout, config: those of the call that made the mask.

    Returns:
        Mean over all video rows, 0 to 1.
    """
    video_q, _ = split_sequence(q.float(), layout, config.order)
    video_k, context_k = split_sequence(k.float(), layout, config.order)
    keys = torch.cat([video_k, context_k], dim=-2)
    scale = q.shape[-1] ** -0.5
    num_video = video_k.shape[-2]
    kept = torch.zeros((), dtype=torch.float64)
    for i, start in enumerate(range(0, num_video, config.q_block)):
        rows = video_q[..., start : start + config.q_block, :]
        mass = (scale * (rows @ keys.mT)).softmax(-1).sum(-2)
        video_mass = split_blocks(mass[..., :num_video, None], config.kv_block).sum((-1, -2))
        kept += (video_mass * block_mask[:, :, i]).sum().double().cpu()
        kept += mass[..., num_video:].sum().double().cpu()
    return float(kept / (q.shape[0] * q.shape[1] * num_video))
