"""What an attention mask says of the keys of a call: which take part, and which have weights.

A token outside the video that nothing attends to is left out of the sequence, which makes the rest
a call without a mask; the rows of what was left out attend to the same keys, all of them exactly.
Samples with one mask are computed together.

The keys outside the video may have weights for its rows, as LTX's guides with a strength do. A
weight w counts a key w times: ln w is added to its scores. The video's own keys have none, so they
are attended sparsely, by themselves. The weighed keys are few, attended exactly, and joined by the
logarithms of the sums of weights:

    O_r = (e^l_r O_r + e^l'_r O'_r) / (e^l_r + e^l'_r)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention import (
    AttentionStats,
    dense_attention,
    dense_attention_lse,
    merge_attention,
)
from ..config import SparseConfig
from ..layout import TokenLayout
from .reasons import DenseReason, Reason, why

NEVER = -1e4
"""Added to a score, this or less leaves a weight of exp(-10,000): 0 in fp32."""

Tokens = slice | Tensor
"""Tokens of a sequence: one run of them, or their indexes (int64)."""


@dataclass(frozen=True)
class Group:
    """Samples with the same keys.

    Attributes:
        samples: their numbers in the batch.
        kept: tokens that take part.
        left_out: the other ones, whose rows are computed; None: their rows are zero.
        layout: of the tokens that take part.
    """

    samples: tuple[int, ...]
    kept: Tokens
    left_out: Tensor | None
    layout: TokenLayout


def read_mask(
    mask: Tensor, batch: int, layout: TokenLayout
) -> tuple[Group, ...] | DenseReason | None:
    """What an attention mask leaves of a call. Its values are looked at once, which waits.

    Args:
        mask: bool (True takes part) or added to the scores, 0 or at most `NEVER`; `[B, N]`,
            `[B, 1, N]` or `[B, H, 1, N]`, where B may be 1, and every dimension between the first
            and the last 1 or expanded.
        batch: samples of the call.
        layout: of all its N tokens.

    Returns:
        The groups; None if nothing is masked; or why such a mask cannot be sparse.
    """
    same_for_all = over_keys(mask, batch, layout.length)
    if same_for_all is None or not (mask.dtype == torch.bool or mask.is_floating_point()):
        return why(Reason.MASK_FORM, tuple(mask.shape), mask.dtype)
    values = same_for_all.cpu()
    takes_part = values if values.dtype == torch.bool else values == 0
    if values.dtype != torch.bool and not (takes_part | (values <= NEVER)).all():
        return why(Reason.MASK_WEIGHTS)
    if takes_part.all():
        return None
    if not takes_part[:, layout.video_start : layout.video_end].all():
        return why(Reason.MASK_VIDEO)
    rows, owner = takes_part.expand(batch, -1).unique(dim=0, return_inverse=True)
    return tuple(
        _group(row, tuple((owner == number).nonzero().flatten().tolist()), layout, mask.device)
        for number, row in enumerate(rows)
    )


def padded(lengths: Sequence[int], layout: TokenLayout) -> tuple[Group, ...]:
    """Groups of samples whose first `lengths` tokens take part, the rest being padding."""
    return tuple(
        Group(
            tuple(sample for sample, own in enumerate(lengths) if own == length),
            slice(0, length),
            None,
            replace(layout, length=length),
        )
        for length in sorted(set(lengths))
    )


def attend_groups(
    call: Callable[[Tensor, Tensor, Tensor, TokenLayout], tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Sequence[Group],
) -> tuple[Tensor, Tensor]:
    """One `call` for each group, on its tokens alone.

    Args:
        call: q, k, v and their layout to output and density.
        q, k, v: `[B, H, N, D]`.
        groups: together all samples.

    Returns:
        The output `[B, H, N, D]`, stored as `[B, N, H, D]`, and the mean density of the samples.
    """
    batch, heads, length, head_dim = v.shape
    out = v.new_zeros(batch, length, heads, head_dim).transpose(1, 2)
    densities = []
    for group in groups:
        # One group for all, as with a single prompt: views instead of copies.
        is_all = len(group.samples) == batch
        own_q, own_k, own_v = (x if is_all else _some(x, group.samples) for x in (q, k, v))
        kept_q, kept_k, kept_v = (each[:, :, group.kept] for each in (own_q, own_k, own_v))
        rows = out if is_all else torch.zeros_like(out[: len(group.samples)])
        rows[:, :, group.kept], density = call(kept_q, kept_k, kept_v, group.layout)
        if group.left_out is not None:
            left_q = own_q[:, :, group.left_out]
            rows[:, :, group.left_out] = dense_attention(left_q, kept_k, kept_v)
        if not is_all:
            for sample, row in zip(group.samples, rows, strict=True):
                out[sample] = row
        densities.append(density * (len(group.samples) / batch))
    return out, torch.stack(densities).sum()


def read_weights(mask: Tensor, batch: int, rows: int, layout: TokenLayout) -> Tensor | DenseReason:
    """What is added to the scores of the keys behind the video. Waits for the mask's values.

    Args:
        mask: of a call of some rows over all keys, see `read_mask`.
        batch: samples of the call.
        rows: of the call.
        layout: of all keys.

    Returns:
        `[1 or B, N - T*H*W]`, `NEVER` or more; or why such a call cannot be sparse: its rows are
        not those of a video that comes first, or the mask is no sum over keys, or over the video's
        too.
    """
    added = over_keys(mask, batch, layout.length)
    is_video = layout.video_start == 0 and rows == layout.video_length
    if added is None or not is_video or not added.is_floating_point():
        return why(Reason.SPLIT_ROWS, rows, layout.length)
    if bool((added[:, :rows] != 0).any()):
        return why(Reason.SPLIT_ROWS, rows, layout.length)
    # Without any weight, as without much: with -inf for all keys no sum could be divided by.
    return added[:, rows:].clamp(min=NEVER)


def attend_weighted(
    attention: Callable[..., tuple[Tensor, AttentionStats]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    added: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attention of the video's rows to all keys.

    Args:
        attention: `rectified_attention` that returns statistics.
        q: `[B, H, T*H*W, D]`.
        k, v: `[B, H, N, D]`, the video first.
        layout: of the keys.
        config: of the attention within the video.
        added: what `read_weights` gave.

    Returns:
        Output `[B, H, T*H*W, D]` and density.
    """
    video, context = slice(0, layout.video_length), slice(layout.video_length, None)
    own = replace(layout, length=layout.video_length)
    operands = q, k[:, :, video], v[:, :, video]
    out, stats = attention(*operands, own, config, return_lse=True)
    other, other_lse = dense_attention_lse(q, k[:, :, context], v[:, :, context], added)
    assert stats.lse is not None
    joined, _ = merge_attention(out, stats.lse, other, other_lse)
    return joined, stats.density


def over_keys(mask: Tensor, batch: int, length: int) -> Tensor | None:
    """A mask that is the same for all queries and heads, `[1 or B, N]`; None for any other."""
    if mask.ndim not in (2, 3, 4) or mask.shape[-1] != length:
        return None
    while mask.ndim > 2:
        if mask.shape[1] != 1 and mask.stride(1) != 0:
            return None
        mask = mask.select(1, 0)
    return mask if mask.shape[0] in (1, batch) else None


def _some(x: Tensor, samples: Sequence[int]) -> Tensor:
    """Some samples of `x [B, ...]`, without an index, which a GPU would be waited for to get."""
    return torch.stack([x[sample] for sample in samples])


def _group(
    takes_part: Tensor, samples: tuple[int, ...], layout: TokenLayout, device: torch.device
) -> Group:
    kept, left_out = takes_part.nonzero().flatten(), (~takes_part).nonzero().flatten()
    own = TokenLayout(layout.grid, len(kept), int(takes_part[: layout.video_start].sum()))
    start, end = int(kept[0]), int(kept[-1]) + 1
    is_run = end - start == len(kept)
    return Group(
        samples,
        slice(start, end) if is_run else kept.to(device),
        left_out.to(device) if len(left_out) else None,
        own,
    )
