"""The pipeline of one attention call: pool, score, select, attend, some heads at a time."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.layout import TokenLayout
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from .attend import attend_kernel
from .pool import pool_kernel
from .score import context_lse_kernel, score_kernel
from .select import select_kernel
from .tables import IndexTables, index_tables
from .tiles import Tile, score_precision

WORKSPACE_BYTES = 512 * 1024**2
"""Scratch memory one call may take: heads are processed in as many chunks as that needs."""

_DEVIATION = {"paper": "mean_abs_dev", "precise": "variance", "none": "none"}
# With three tf32 products per fp32 product, or one fused multiply-add each: both keep fp32's
# precision. Wider steps spill registers on some architecture.
_SCORE_TILE = 64
_SCORE_STEP = 16
# Small enough for the tail to fit into the shared memory that the main loop has left behind.
TAIL_TILE = 32
TAIL_STAGES = 2


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: SparseConfig,
    tile: Tile,
    keep_mask: bool,
    chunk_heads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rectified block-sparse attention with one given tile.

    Args:
        q, k, v: `[B, H, N, D]`, any strides; D up to 128.
        layout, config: see there.
        tile: launch configuration of the attention kernel.
        keep_mask: also return the critical set.
        chunk_heads: heads processed together; None for as many as the workspace holds.

    Returns:
        Output `[B, H, N, D]` (stored as `[B, N, H, D]`, so that heads merge without a copy),
        kv_counts `[B, H, NQ]` int32, critical set `[B, H, NQ, NK]` int8 (empty unless kept).
    """
    batch, heads, length, head_dim = q.shape
    tables = index_tables(
        layout, config.order, config.q_block, config.kv_block, config.neighbours, q.device
    )
    sizes = _Sizes.of(q, layout, config, tables)
    pairs = (batch, heads, sizes.num_q, sizes.num_k) if keep_mask else (0,)
    result = _Result(
        out=q.new_empty((batch, length, heads, head_dim)),
        kv_counts=q.new_empty((batch, heads, sizes.num_q), dtype=torch.int32),
        mask=q.new_empty(pairs, dtype=torch.int8),
    )
    step = chunk_heads or sizes.heads_per_chunk(batch * heads, q.element_size())
    for first in range(0, batch * heads, step):
        chunk = _Chunk(first, min(step, batch * heads - first), heads)
        _run_chunk(q, k, v, config, tile, sizes, tables, chunk, result)
    return result.out.transpose(1, 2), result.kv_counts, result.mask


@dataclass(frozen=True)
class _Result:
    out: Tensor  # [B, N, H, D]
    kv_counts: Tensor  # [B, H, NQ] int32
    mask: Tensor  # [B, H, NQ, NK] int8, or empty


@dataclass(frozen=True)
class _Chunk:
    """Heads `first .. first + count` of the flattened (batch, head) index."""

    first: int
    count: int
    num_heads: int


@dataclass(frozen=True)
class _Sizes:
    """Numbers of blocks and row lengths of one call."""

    head_dim: int
    padded_dim: int
    length: int
    video_length: int
    context_length: int
    num_q: int
    num_k: int
    num_context_q: int
    num_full_k: int
    num_full_context: int
    packed_length: int
    width: int  # entries of one row of kv_indices

    @staticmethod
    def of(q: Tensor, layout: TokenLayout, config: SparseConfig, tables: IndexTables) -> _Sizes:
        num_k = layout.num_blocks(config.kv_block)
        num_full_k = layout.video_length // config.kv_block
        num_full_context = layout.context_length // config.kv_block
        kept = num_k if config.top_p > 0 else max(config.top_k(num_k), tables.max_forced)
        return _Sizes(
            head_dim=q.shape[-1],
            padded_dim=triton.next_power_of_2(q.shape[-1]),
            length=layout.length,
            video_length=layout.video_length,
            context_length=layout.context_length,
            num_q=layout.num_blocks(config.q_block),
            num_k=num_k,
            num_context_q=triton.cdiv(layout.context_length, config.q_block),
            num_full_k=num_full_k,
            num_full_context=num_full_context,
            packed_length=len(tables.kv_source),
            width=min(kept, num_full_k) + num_full_context,
        )

    def heads_per_chunk(self, num_heads: int, element_size: int) -> int:
        """Heads that fit into the workspace together, spread evenly over the chunks."""
        packed = 2 * self.packed_length * self.padded_dim * element_size
        # Logits, GAPR bit or critical set; means and deviations in fp32, their copies for the tail.
        pairs = self.num_q * self.num_k * 5 + self.num_q * self.width * 4
        pooled = (3 * self.num_q + 6 * self.num_k) * self.padded_dim * 4
        chunks = triton.cdiv(num_heads, max(1, WORKSPACE_BYTES // (packed + pairs + pooled)))
        return triton.cdiv(num_heads, chunks)


@dataclass(frozen=True)
class _Pooled:
    """What one pass over q, k or v leaves behind; None where the mode has no use for it."""

    mean: Tensor  # [HC, NV, DP] fp32
    deviation: Tensor | None  # [HC, NV, DP] fp32
    packed: Tensor | None  # [HC, packed_length, DP]
    tail_mean: Tensor | None  # [HC, NV, DP] dtype of the input
    tail_deviation: Tensor | None


def _run_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: SparseConfig,
    tile: Tile,
    sizes: _Sizes,
    tables: IndexTables,
    chunk: _Chunk,
    result: _Result,
) -> None:
    deviation = _DEVIATION[config.rectification]
    tail = config.rectification == "precise"
    q_deviation = deviation if config.rectification == "paper" else "none"
    q_source = tables.q_source[sizes.num_context_q * config.q_block :]
    q_pool = _pool(q, q_source, config.q_block, sizes.num_q, sizes, chunk, q_deviation)
    k_pool = _pool(
        k, tables.kv_source, config.kv_block, sizes.num_k, sizes, chunk, deviation, True, tail
    )
    v_pool = _pool(
        v, tables.kv_source, config.kv_block, sizes.num_k, sizes, chunk, "none", True, tail
    )
    logits, accepted, context_lse = _score(q_pool, k_pool, config, sizes, chunk)
    selection = _select(logits, accepted, context_lse, config, sizes, tables, chunk, result)
    compensation = None
    if config.rectification == "paper":
        # `select` has replaced the logits by W: C = W v̄.
        compensation = torch.bmm(logits, v_pool.mean)
    _attend(q, k_pool, v_pool, selection, compensation, config, tile, sizes, tables, chunk, result)


def _pool(
    x: Tensor,
    source: Tensor,
    block: int,
    num_video_blocks: int,
    sizes: _Sizes,
    chunk: _Chunk,
    deviation: str,
    pack: bool = False,
    tail: bool = False,
) -> _Pooled:
    num_blocks = len(source) // block
    shape = (chunk.count, num_video_blocks, sizes.padded_dim)
    pooled = _Pooled(
        mean=x.new_empty(shape, dtype=torch.float32),
        deviation=x.new_empty(shape, dtype=torch.float32) if deviation != "none" else None,
        packed=x.new_empty((chunk.count, len(source), sizes.padded_dim)) if pack else None,
        tail_mean=x.new_empty(shape) if tail else None,
        tail_deviation=x.new_empty(shape) if tail and deviation == "variance" else None,
    )
    pool_kernel[(num_blocks, chunk.count)](
        x, source, pooled.packed, pooled.mean, pooled.deviation,
        pooled.tail_mean, pooled.tail_deviation,
        chunk.first, chunk.num_heads, num_blocks, num_video_blocks, *x.stride(),
        D=sizes.head_dim, DP=sizes.padded_dim, BLOCK=block, PACK=pack,
        DEVIATION=deviation, TAIL=tail, num_warps=8,
    )  # fmt: skip
    return pooled


def _score(
    q_pool: _Pooled, k_pool: _Pooled, config: SparseConfig, sizes: _Sizes, chunk: _Chunk
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits and GAPR bits `[HC, NQ, NK]`, context column `[HC, NQ]`."""
    scale = sizes.head_dim**-0.5
    logits = q_pool.mean.new_empty((chunk.count, sizes.num_q, sizes.num_k))
    paper = config.rectification == "paper"
    accepted = torch.empty_like(logits, dtype=torch.int8) if paper else None
    precision = score_precision(logits.device)
    tiles = [triton.cdiv(blocks, _SCORE_TILE) for blocks in (sizes.num_q, sizes.num_k)]
    score_kernel[(*tiles, chunk.count)](
        q_pool.mean, q_pool.deviation, k_pool.mean, k_pool.deviation, logits, accepted,
        sizes.num_q, sizes.num_k, sizes.video_length, scale, TAIL_VARIANCE_CAP,
        DP=sizes.padded_dim, KV_BLOCK=config.kv_block, TILE=_SCORE_TILE, STEP=_SCORE_STEP,
        RECTIFICATION=config.rectification, PRECISION=precision, num_warps=8,
    )  # fmt: skip
    if not sizes.context_length:
        return logits, accepted, None
    context_lse = q_pool.mean.new_empty((chunk.count, sizes.num_q))
    context_lse_kernel[(tiles[0], chunk.count)](
        q_pool.mean, k_pool.packed, context_lse, sizes.num_q, sizes.packed_length,
        sizes.num_k * config.kv_block, sizes.context_length, scale,
        DP=sizes.padded_dim, TILE=_SCORE_TILE, STEP=_SCORE_STEP, PRECISION=precision, num_warps=4,
    )  # fmt: skip
    return logits, accepted, context_lse


@dataclass(frozen=True)
class _Selection:
    kv_indices: Tensor  # [HC * NQ * width + all full blocks] int32
    list_lengths: Tensor  # [HC, NQ] int32
    ragged_kept: Tensor  # [HC, NQ] int32
    rectify_scale: Tensor | None  # [HC, NQ] fp32
    critical: Tensor | None  # [HC, NQ, NK] int8


def _select(
    logits: Tensor,
    accepted: Tensor | None,
    context_lse: Tensor | None,
    config: SparseConfig,
    sizes: _Sizes,
    tables: IndexTables,
    chunk: _Chunk,
    result: _Result,
) -> _Selection:
    rows = (chunk.count, sizes.num_q)
    keep_mask = result.mask.numel() > 0
    needs_mask = keep_mask or config.rectification == "precise"
    critical = torch.empty_like(logits, dtype=torch.int8) if needs_mask else None
    kv_indices = logits.new_empty(
        chunk.count * sizes.num_q * sizes.width + len(tables.all_blocks), dtype=torch.int32
    )
    kv_indices[chunk.count * sizes.num_q * sizes.width :] = tables.all_blocks
    paper = config.rectification == "paper"
    selection = _Selection(
        kv_indices=kv_indices,
        list_lengths=logits.new_empty(rows, dtype=torch.int32),
        ragged_kept=logits.new_empty(rows, dtype=torch.int32),
        rectify_scale=logits.new_empty(rows) if paper else None,
        critical=critical,
    )
    block = triton.next_power_of_2(sizes.num_k)
    select_kernel[(sizes.num_q, chunk.count)](
        logits, context_lse, accepted, tables.forced, critical, kv_indices,
        selection.list_lengths, selection.ragged_kept,
        result.kv_counts, selection.rectify_scale, chunk.first,
        sizes.num_q, sizes.num_k, sizes.num_full_k, sizes.num_full_context, sizes.width,
        config.top_k(sizes.num_k), config.top_p,
        HAS_CONTEXT=context_lse is not None, USE_TOP_P=config.top_p > 0,
        WRITE_MASK=critical is not None, RECTIFICATION=config.rectification,
        BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    if keep_mask:
        last = chunk.first + chunk.count
        result.mask.view(-1, sizes.num_q, sizes.num_k)[chunk.first : last] = critical
    return selection


def _attend(
    q: Tensor,
    k_pool: _Pooled,
    v_pool: _Pooled,
    selection: _Selection,
    compensation: Tensor | None,
    config: SparseConfig,
    tile: Tile,
    sizes: _Sizes,
    tables: IndexTables,
    chunk: _Chunk,
    result: _Result,
) -> None:
    # Full fp32 products where the input is fp32; 16-bit inputs have one precision only.
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    packed_k, packed_v = k_pool.packed, v_pool.packed
    if tile.tma:
        packed_k, packed_v = (_descriptor(x, tile.tile_n) for x in (packed_k, packed_v))
    critical = selection.critical if config.rectification == "precise" else None
    limits = {"maxnreg": tile.max_registers} if tile.max_registers else {}
    attend_kernel[(sizes.num_context_q + sizes.num_q, chunk.count)](
        q, tables.q_source, packed_k, packed_v,
        selection.kv_indices, selection.list_lengths, selection.ragged_kept,
        selection.rectify_scale, compensation, critical,
        k_pool.tail_mean, k_pool.tail_deviation, v_pool.tail_mean, result.out,
        chunk.first, chunk.num_heads, sizes.length, sizes.packed_length,
        sizes.num_q, sizes.num_context_q, sizes.num_k, sizes.video_length, sizes.context_length,
        sizes.width, chunk.count * sizes.num_q * sizes.width, len(tables.all_blocks),
        *q.stride(), sizes.head_dim**-0.5, TAIL_VARIANCE_CAP,
        D=sizes.head_dim, DP=sizes.padded_dim, Q_BLOCK=config.q_block, KV_BLOCK=config.kv_block,
        TILE_N=tile.tile_n, TAIL_TILE=TAIL_TILE, TAIL_STAGES=TAIL_STAGES, TMA=tile.tma,
        RECTIFICATION=config.rectification, PRECISION=precision,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **limits,
    )  # fmt: skip


def has_descriptors() -> bool:
    """Whether this Triton can pass tensor descriptors to a kernel (3.4 and newer)."""
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def _descriptor(packed: Tensor, rows: int) -> Any:
    """Tensor descriptor of `packed [HC, L, DP]` as `[HC * L, DP]` in tiles of `rows` rows."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    flat = packed.flatten(0, 1)
    return TensorDescriptor.from_tensor(flat, [rows, flat.shape[-1]])
