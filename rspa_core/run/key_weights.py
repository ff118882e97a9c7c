"""Rows of the video whose keys outside of it have weights, as LTX's guides with a strength do.

A weight w counts a key w times: ln w is added to its scores. The video's own keys have none, so
they are attended sparsely, by themselves. The weighed keys are few, attended exactly, and joined by
the logarithms of the sums of weights:

    O_r = (e^l_r O_r + e^l'_r O'_r) / (e^l_r + e^l'_r)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ..attention import AttentionStats, dense_attention_lse, merge_attention
from ..config import SparseConfig
from ..layout import TokenLayout
from .key_masks import NEVER, over_keys
from .reasons import DenseReason, Reason, why


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
