"""The boundary to torch: one registered custom op, so that compiled graphs call it unopened."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from .launch import launch
from .selfcheck import NoKernelError, trusted_tile
from .tiles import Tile

__all__ = ["NoKernelError", "rectified_attention_op"]


def rectified_attention_op(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: SparseConfig, keep_mask: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Call the op `rspa::rectified_attention`; arguments and results as in `launch`.

    Raises:
        NoKernelError: no tile works on this GPU.
    """
    return _op(
        q, k, v, layout.grid, layout.video_start,
        config.sparsity, config.q_block, config.kv_block, config.top_p,
        config.rectification, config.order, config.neighbours, config.min_blocks,
        config.precision, config.tail_keys, keep_mask,
    )  # fmt: skip


@torch.library.custom_op("rspa::rectified_attention", mutates_args=())
def _op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    video_start: int,
    sparsity: float,
    q_block: int,
    kv_block: int,
    top_p: float,
    rectification: str,
    order: str,
    neighbours: bool,
    min_blocks: int,
    precision: str,
    tail_keys: int,
    keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    layout = TokenLayout(tuple(grid), q.shape[-2], video_start)  # type: ignore[arg-type]
    config = SparseConfig(
        sparsity,
        q_block,
        kv_block,
        top_p,
        rectification,
        order,
        neighbours,
        min_blocks,
        precision,
        tail_keys,
    )
    if q.device.type == "cpu":
        # The interpreter has no registers or shared memory to run out of.
        tile = Tile(64, 4, 1, int8=precision == "int8")
        return launch(q, k, v, layout, config, tile, keep_mask)
    with torch.cuda.device(q.device):
        tile = trusted_tile(
            q.device, q.dtype, q.shape[-1], q_block, kv_block, rectification, precision, tail_keys
        )
        return launch(q, k, v, layout, config, tile, keep_mask)


@_op.register_fake
def _op_shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    video_start: int,
    sparsity: float,
    q_block: int,
    kv_block: int,
    top_p: float,
    rectification: str,
    order: str,
    neighbours: bool,
    min_blocks: int,
    precision: str,
    tail_keys: int,
    keep_mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, head_dim = q.shape
    video_length = grid[0] * grid[1] * grid[2]
    num_q, num_k = triton.cdiv(video_length, q_block), triton.cdiv(video_length, kv_block)
    mask_shape = (batch, heads, num_q, num_k) if keep_mask else (0,)
    return (
        q.new_empty((batch, length, heads, head_dim)).transpose(1, 2),
        q.new_empty((batch, heads, num_q), dtype=torch.int32),
        q.new_empty(mask_shape, dtype=torch.int8),
    )
