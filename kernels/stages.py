"""Stages of a call over one chunk of heads: each allocates what it leaves behind and launches."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import SAMPLED_QUERIES
from ..rspa_core.layout import TokenLayout
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from ..rspa_core.selection import Q_PARTS
from .attend import attend_kernel
from .pool import pool_kernel
from .select import select_kernel
from .tables import IndexTables
from .tiles import Tile, pool_warps, select_warps

MAX_WEIGH_SPLITS = 32
WEIGH_SPLIT_KEYS = 256
"""A program of weigh.py's `sums_kernel` has at least so many of the keys of its head."""
GLUON_RELEASES = ((3, 6),)
"""Releases of Triton with which attend_hopper.py has been run."""


@dataclass(frozen=True)
class Result:
    out: Tensor  # [B, N, H, D]
    kv_counts: Tensor  # [B, H, NQ] int32
    mask: Tensor  # [B, H, NQ, NK] int8, or empty


@dataclass(frozen=True)
class Chunk:
    """Heads `first .. first + count` of the flattened (batch, head) index."""

    first: int
    count: int
    num_heads: int


@dataclass(frozen=True)
class Sizes:
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
    tail_length: int  # pooled keys of one head, a whole number of tiles
    width: int  # entries of one row of kv_indices
    q_parts: int  # rows of logits for one q-block
    context_start: int  # first packed key of the context

    @staticmethod
    def of(
        q: Tensor, layout: TokenLayout, config: SparseConfig, tables: IndexTables, tile: Tile
    ) -> Sizes:
        num_k = layout.num_blocks(config.kv_block)
        num_full_k = layout.video_length // config.kv_block
        num_full_context = layout.context_length // config.kv_block
        kept = num_k if config.top_p > 0 else max(config.top_k(num_k), tables.max_forced)
        return Sizes(
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
            tail_length=triton.cdiv(num_k * config.tail_keys, tile.tail_n) * tile.tail_n,
            width=min(kept, num_full_k) + num_full_context,
            q_parts=Q_PARTS if config.tail_keys > 1 else 1,
            context_start=num_k * config.kv_block,
        )

    @property
    def weigh_splits(self) -> int:
        """Programs of weigh.py's `sums_kernel` that share the keys of a head, a power of two.

        Not by the number of heads, so that a head's result does not depend on its chunk.
        """
        most = min(MAX_WEIGH_SPLITS, self.packed_length // WEIGH_SPLIT_KEYS)
        return 1 << max(0, most.bit_length() - 1)

    def heads_per_chunk(self, num_heads: int, element_size: int, workspace: int) -> int:
        """Heads that fit into the workspace together, spread evenly over the chunks."""
        packed = 2 * self.packed_length * self.padded_dim * element_size
        # Logits, and GAPR bit or variance term; statistics in fp32, their copies for the tail.
        pairs = self.num_q * (self.num_k * 4 * (1 + self.q_parts) + self.width * 4)
        means = 2 * self.num_q * self.q_parts + 3 * self.num_k + 2 * self.tail_length
        if self.q_parts > 1:
            means += self.weigh_splits * 3 * SAMPLED_QUERIES
        pooled = means * self.padded_dim * 4
        chunks = triton.cdiv(num_heads, max(1, workspace // (packed + pairs + pooled)))
        return triton.cdiv(num_heads, chunks)


@dataclass(frozen=True)
class Statistic:
    """`[HC, NV, DP]` fp32, or the sum of two tensors of 16 bits: twice the digits of one."""

    high: Tensor
    low: Tensor | None

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Statistic:
        high = torch.empty(shape, dtype=dtype, device=device)
        return Statistic(high, None if dtype == torch.float32 else torch.empty_like(high))


@dataclass(frozen=True)
class Pooled:
    """What one pass over q, k or v leaves behind; None where the mode has no use for it."""

    mean: Statistic
    spread: Statistic | None
    packed: Tensor | None  # [HC, packed_length, DP] dtype of the input or int8
    packed_scale: Tensor | None  # [HC, packed_length / block] fp32, int8
    tail_mean: Tensor | None  # [HC, tail_length, DP] dtype of the input
    radius: Tensor | None  # [HC] fp32: largest |x_t - shift|


def pool(
    x: Tensor,
    source: Tensor,
    block: int,
    num_video_blocks: int,
    sizes: Sizes,
    chunk: Chunk,
    statistic: str,
    pack: bool = False,
    tail: bool = False,
    shift: Tensor | None = None,
    int8: bool = False,
    radius: bool = False,
) -> Pooled:
    """Pool `x [B, H, N, D]` in blocks of `source`.

    Args:
        x: q, k or v.
        source: token of each packed position, see `IndexTables`.
        block: tokens per block.
        num_video_blocks: blocks that are pooled; those behind them are only packed.
        sizes, chunk: see there.
        statistic: "none", "mean_abs_dev", "variance" or "mean_square".
        pack: also copy the tokens in the order of `source`.
        tail: also keep the means for the tail.
        shift: a vector per head, `[B, H, D]` fp32, for the two that follow.
        int8: round the copy to int8 after `shift` has been taken off.
        radius: also find the largest distance of a token from `shift`.
    """
    num_blocks = len(source) // block
    shape = (chunk.count, num_video_blocks, sizes.padded_dim)
    mean = Statistic.empty(shape, x.dtype, x.device)
    spread = None
    if statistic != "none":
        # Squares may exceed the range of fp16.
        squares = torch.bfloat16 if x.is_cuda and x.dtype != torch.float32 else torch.float32
        dtype = x.dtype if statistic == "mean_abs_dev" else squares
        spread = Statistic.empty(shape, dtype, x.device)
    packed = packed_scale = tail_mean = None
    if pack:
        packed_shape = (chunk.count, len(source), sizes.padded_dim)
        packed = x.new_empty(packed_shape, dtype=torch.int8 if int8 else x.dtype)
    if int8:
        packed_scale = x.new_empty((chunk.count, num_blocks), dtype=torch.float32)
    if tail:
        tail_mean = x.new_zeros((chunk.count, sizes.tail_length, sizes.padded_dim))
    distances = None
    if radius:
        distances = x.new_empty((chunk.count, num_blocks), dtype=torch.float32)
    pool_kernel[(chunk.count, num_blocks)](
        x, source, shift, packed, packed_scale, mean.high, mean.low,
        spread and spread.high, spread and spread.low, tail_mean, distances,
        chunk.first, chunk.num_heads, num_blocks, num_video_blocks, sizes.tail_length, *x.stride(),
        D=sizes.head_dim, DP=sizes.padded_dim, BLOCK=block, PACK=pack, INT8=int8, RADIUS=radius,
        STATISTIC=statistic, TAIL=tail, MEAN_LOW=mean.low is not None,
        SPREAD_LOW=spread is not None and spread.low is not None,
        num_warps=pool_warps(block, int8),
    )  # fmt: skip
    farthest = None if distances is None else distances.amax(1)
    return Pooled(mean, spread, packed, packed_scale, tail_mean, farthest)


@dataclass(frozen=True)
class Tail:
    """One weighted key and value for every block, or for every group of its keys, `precise`."""

    keys: Tensor  # [HC, tail_length, DP] dtype of the input
    values: Tensor
    size: Tensor | None  # [HC, tail_length] fp32, log2 of the tokens of a group
    variance: Tensor | None  # [HC, tail_length] fp32


@dataclass(frozen=True)
class Scores:
    """What the pooled blocks say about each other, P = 1 or Q_PARTS rows for each q-block."""

    logits: Tensor  # [HC, NQ * P, NK] fp32
    accepted: Tensor | None  # [HC, NQ, NK] int8, paper
    tail_spread: Tensor | None  # [HC, NQ, NK] fp32: S_ij / <|q|²>_i, precise with one key
    context_lse: Tensor | None  # [HC, NQ * P] fp32, where there is context


@dataclass(frozen=True)
class Selection:
    """Which blocks every q-block attends exactly, and the rectification factor of `paper`."""

    kv_indices: Tensor  # [HC * NQ * width + all full blocks] int32
    list_lengths: Tensor  # [HC, NQ] int32
    ragged_kept: Tensor  # [HC, NQ] int32
    rectify_scale: Tensor | None  # [HC, NQ] fp32
    weights: Tensor | None  # [HC, NQ, NK] W in the dtype of the inputs, paper


def select(
    scores: Scores,
    config: SparseConfig,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
    result: Result,
) -> Selection:
    """Choose the critical blocks, and mark them in the tail's term."""
    logits = scores.logits
    rows = (chunk.count, sizes.num_q)
    paper = config.rectification == "paper"
    keep_mask = result.mask.numel() > 0
    pairs = (*rows, sizes.num_k)
    critical = logits.new_empty(pairs, dtype=torch.int8) if keep_mask else None
    kv_indices = logits.new_empty(
        chunk.count * sizes.num_q * sizes.width + len(tables.all_blocks), dtype=torch.int32
    )
    kv_indices[chunk.count * sizes.num_q * sizes.width :] = tables.all_blocks
    selection = Selection(
        kv_indices=kv_indices,
        list_lengths=logits.new_empty(rows, dtype=torch.int32),
        ragged_kept=logits.new_empty(rows, dtype=torch.int32),
        rectify_scale=logits.new_empty(rows) if paper else None,
        weights=logits.new_empty(pairs, dtype=result.out.dtype) if paper else None,
    )
    block = triton.next_power_of_2(sizes.num_k)
    select_kernel[(sizes.num_q, chunk.count)](
        logits, scores.context_lse, scores.accepted, tables.forced, critical, scores.tail_spread,
        kv_indices, selection.list_lengths, selection.ragged_kept, selection.weights,
        result.kv_counts, selection.rectify_scale, chunk.first,
        sizes.num_q, sizes.num_k, sizes.num_full_k, sizes.num_full_context, sizes.width,
        config.top_k(sizes.num_k), config.top_p, sizes.video_length,
        Q_PART=config.q_block // sizes.q_parts, PARTS=sizes.q_parts,
        HAS_CONTEXT=scores.context_lse is not None, USE_TOP_P=config.top_p > 0,
        WRITE_MASK=keep_mask, RECTIFICATION=config.rectification,
        BLOCK=block, num_warps=select_warps(block),
    )  # fmt: skip
    if critical is not None:
        last = chunk.first + chunk.count
        result.mask.view(-1, sizes.num_q, sizes.num_k)[chunk.first : last] = critical
    return selection


def attend(
    q: Tensor,
    k_pool: Pooled,
    v_pool: Pooled,
    tail: Tail | None,
    scores: Scores,
    selection: Selection,
    compensation: Tensor | None,
    config: SparseConfig,
    tile: Tile,
    sizes: Sizes,
    tables: IndexTables,
    chunk: Chunk,
    shift: Tensor | None,
    result: Result,
) -> None:
    """Attend the selected blocks and write the rows of this chunk's heads into `result.out`."""
    packed_k, packed_v = k_pool.packed, v_pool.packed
    tail_k = tail_v = tail_size = tail_variance = None
    if tail is not None:
        tail_k, tail_v, tail_size, tail_variance = (
            tail.keys, tail.values, tail.size, tail.variance
        )  # fmt: skip
    if tile.tma or tile.specialised:
        packed_k, packed_v = (_descriptor(x, tile.tile_n, tile) for x in (packed_k, packed_v))
        if tail_k is not None:
            tail_k, tail_v = (_descriptor(x, tile.tail_n, tile) for x in (tail_k, tail_v))
    arguments = (
        q, tables.q_source, packed_k, packed_v, k_pool.packed_scale,
        selection.kv_indices, selection.list_lengths, selection.ragged_kept,
        selection.rectify_scale, compensation, scores.tail_spread, tail_k, tail_v,
        tail_size, tail_variance, result.out,
        chunk.first, chunk.num_heads, sizes.length, sizes.packed_length, sizes.tail_length,
        sizes.num_q, sizes.num_context_q, sizes.num_k, sizes.video_length, sizes.context_length,
        sizes.width, chunk.count * sizes.num_q * sizes.width, len(tables.all_blocks),
        *q.stride(), sizes.head_dim**-0.5, TAIL_VARIANCE_CAP,
    )  # fmt: skip
    constants: dict[str, Any] = {
        "D": sizes.head_dim, "DP": sizes.padded_dim, "Q_BLOCK": config.q_block,
        "KV_BLOCK": config.kv_block, "TILE_N": tile.tile_n, "INT8": tile.int8,
        "RECTIFICATION": config.rectification, "TAIL_KEYS": config.tail_keys,
        "num_warps": tile.num_warps,
    }  # fmt: skip
    if tile.max_registers:
        constants["maxnreg"] = tile.max_registers
    grid = (sizes.num_context_q + sizes.num_q, chunk.count)
    if tile.specialised:
        from .attend_hopper import attend_hopper_kernel

        attend_hopper_kernel[grid](
            *arguments, shift, k_pool.radius, STAGES=tile.num_stages, **constants
        )
        return
    attend_kernel[grid](
        *arguments, TAIL_N=tile.tail_n, TMA=tile.tma,
        # Full fp32 products where the input is fp32; 16-bit inputs have one precision only.
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_stages=tile.num_stages, **constants,
    )  # fmt: skip


def has_descriptors() -> bool:
    """Whether this Triton can pass tensor descriptors to a kernel (3.4 and newer)."""
    return importlib.util.find_spec("triton.tools.tensor_descriptor") is not None


def has_gluon() -> bool:
    """Whether this Triton has run the kernel of attend_hopper.py.

    Gluon changes between releases, and a kernel whose warps wait for each other may hang where it
    is compiled differently, which no check at first use can catch: only releases that were tried.
    """
    return tuple(int(part) for part in triton.__version__.split(".")[:2]) in GLUON_RELEASES


def _descriptor(packed: Tensor, rows: int, tile: Tile) -> Any:
    """Tensor descriptor of `packed [HC, L, DP]` as `[HC * L, DP]` in tiles of `rows` rows."""
    flat = packed.flatten(0, 1)
    shape = [rows, flat.shape[-1]]
    if not tile.specialised:
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(flat, shape)
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor

    dtype = {torch.int8: gl.int8, torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
    layout = gl.NVMMASharedLayout.get_default_for(shape, dtype[packed.dtype])
    return GluonDescriptor.from_tensor(flat, shape, layout)
