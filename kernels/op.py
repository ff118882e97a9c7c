"""The boundary to torch: one registered custom op, so that compiled graphs call it unopened."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from .devices import Tile
from .launch import launch
from .selfcheck import NoKernelError, checked_config, trusted_tile

__all__ = ["NoKernelError", "rectified_attention_op"]


def rectified_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    keep_mask: bool,
    keep_lse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call the kernels, in a graph that is being compiled as the op `rspa::rectified_attention`.

    Arguments and results as in `launch`.

    Raises:
        NoKernelError: no tile works on this GPU.
    """
    if torch.compiler.is_compiling():
        keep = keep_mask, keep_lse
        return _op(q, k, v, layout.grid, layout.video_start, config.to_text(), *keep)
    # The first call of an op made by `custom_op` imports torch's compiler, for seconds.
    return _call(q, k, v, layout, config, keep_mask, keep_lse)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    keep_mask: bool,
    keep_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        # The interpreter has no registers or shared memory to run out of.
        tile = Tile(64, 4, 1, int8=config.precision == "int8")
        return launch(q, k, v, layout, config, tile, keep_mask, keep_lse=keep_lse)
    with torch.cuda.device(q.device):
        tile = trusted_tile(
            q.device,
            q.dtype,
            q.shape[-1],
            checked_config(config),
            layout.context_length > 0,
            keep_lse,
        )
        return launch(q, k, v, layout, config, tile, keep_mask, keep_lse=keep_lse)


@torch.library.custom_op("rspa::rectified_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    video_start: int,
    config_text: str,
    keep_mask: bool,
    keep_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    frames, height, width = grid
    layout = TokenLayout((frames, height, width), q.shape[-2], video_start)
    return _call(q, k, v, layout, SparseConfig.from_text(config_text), keep_mask, keep_lse)


@_op.register_fake
def _op_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    video_start: int,
    config_text: str,
    keep_mask: bool,
    keep_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, head_dim = q.shape
    config = SparseConfig.from_text(config_text)
    video_length = math.prod(grid)
    rows = (batch, heads, triton.cdiv(video_length, config.q_block))
    mask_shape = (*rows, triton.cdiv(video_length, config.kv_block)) if keep_mask else (0,)
    return (
        q.new_empty((batch, length, heads, head_dim)).transpose(1, 2),
        q.new_empty(rows, dtype=torch.int32),
        q.new_empty(mask_shape, dtype=torch.int8),
        q.new_empty((batch, heads, length) if keep_lse else (0,), dtype=torch.float32),
    )
