"""One call laid out: the plan that every stage goes by, and the records that stages hand on.

Shapes in this folder: B batch, H heads, N tokens, D channels, DP these padded to a power of two;
NQ and NK blocks of the video, NCQ and NCK blocks of the context; HC the heads that are processed
together; G groups of keys of a block; R sampled queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor

from ..rspa_core.config import SparseConfig
from ..rspa_core.key_groups import SAMPLED_QUERIES, sampled_places
from ..rspa_core.layout import TokenLayout
from ..rspa_core.order import block_neighbours, token_order
from ..rspa_core.quantisation import (
    ROTATED_CHANNELS,
    TAIL_SCALE_GROUPS,
    rotated,
    rotation,
    smoothing_shift,
)
from ..rspa_core.ranking import Q_PARTS
from ..rspa_core.rectification import TAIL_VARIANCE_CAP
from .devices import Tile

WORKSPACE_BYTES = 512 * 1024**2
"""Scratch memory one call may take: heads are processed in as many chunks as that needs."""
WEIGH_SPLITS = 32
"""Programs of tail_weight.py's `sums_kernel` that share the keys of a head, whatever their number
and that of the heads: a head's result does not depend on its chunk, and one variant serves all."""


@dataclass(frozen=True)
class Plan:
    """One call, and which of its heads a stage is to process.

    Attributes:
        config: see there.
        tile: launch configuration of the attention kernel.
        tables: where the tokens go.
        sizes: numbers of blocks and lengths of rows.
        shift: a mean of the keys, fp32: `[B, H, D]`, from where bounds are measured, or with int8
            rotated, `[B, H, DP]`, which the keys lose. None where neither is used.
        rotation: `[32, 32]` dtype of q, of runs of channels, "int8".
        queries: `[B * H, R, DP]` dtype of q, the sampled queries, "precise".
        rotated_queries: the same, rotated, "int8"; else they.
        variance_cap: most that the spread of a group may add to its logit, in nats.
        num_heads: H.
        first_head, chunk_heads: heads `first_head ...` of the flattened (batch, head) index.
    """

    config: SparseConfig
    tile: Tile
    tables: IndexTables
    sizes: Sizes
    shift: Tensor | None
    rotation: Tensor | None
    queries: Tensor | None
    rotated_queries: Tensor | None
    variance_cap: float
    num_heads: int
    first_head: int
    chunk_heads: int

    @staticmethod
    def of(q: Tensor, k: Tensor, layout: TokenLayout, config: SparseConfig, tile: Tile) -> Plan:
        """The plan of a whole call on `q, k [B, H, N, D]`."""
        tables = index_tables(
            layout, config.order, config.q_block, config.kv_block, config.neighbours, q.device
        )
        sizes = Sizes.of(q.shape[-1], layout, config, tables, tile)

        def padded(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, sizes.padded_dim - sizes.head_dim))

        shift = smoothing_shift(k) if tile.int8 or tile.specialised else None
        turn = None
        if tile.int8:
            assert shift is not None
            shift, turn = rotated(padded(shift)), rotation(q.device).to(q.dtype)
        queries = rotated_queries = None
        if config.rectification == "precise":
            queries = rotated_queries = padded(q[:, :, tables.sampled].flatten(0, 1)).contiguous()
            if tile.int8:
                rotated_queries = rotated(queries.float()).to(q.dtype)
        return Plan(
            config=config,
            tile=tile,
            tables=tables,
            sizes=sizes,
            shift=shift,
            rotation=turn,
            queries=queries,
            rotated_queries=rotated_queries,
            variance_cap=TAIL_VARIANCE_CAP,
            num_heads=q.shape[1],
            first_head=0,
            chunk_heads=q.shape[0] * q.shape[1],
        )

    def in_chunks(self, heads: int | None, element_size: int) -> Iterator[Plan]:
        """The same for `heads` heads at a time, None for as many as the workspace holds."""
        # Values in 16 bits, and either keys or int8 keys and queries.
        packed = element_size + (2 if self.tile.int8 else element_size)
        step = heads or self.sizes.heads_per_chunk(self.chunk_heads, packed, WORKSPACE_BYTES)
        for first in range(0, self.chunk_heads, step):
            yield replace(self, first_head=first, chunk_heads=min(step, self.chunk_heads - first))

    @property
    def scale(self) -> float:
        """D^-1/2, c in the formulas."""
        return self.sizes.head_dim**-0.5


def padded_dim(head_dim: int, tile: Tile) -> int:
    """Channels of packed rows: a power of two, of int8 whole runs that are rotated together."""
    return max(triton.next_power_of_2(head_dim), ROTATED_CHANNELS if tile.int8 else 0)


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
    tail_length: int  # pooled keys of one head, filled up to whole tiles; 0 without a tail
    width: int  # entries of one row of kv_indices
    q_parts: int  # rows of logits for one q-block
    context_start: int  # first packed key of the context

    @staticmethod
    def of(
        head_dim: int, layout: TokenLayout, config: SparseConfig, tables: IndexTables, tile: Tile
    ) -> Sizes:
        num_k = layout.num_blocks(config.kv_block)
        num_full_k = layout.video_length // config.kv_block
        num_full_context = layout.context_length // config.kv_block
        kept = num_k if config.top_p > 0 else max(config.top_k(num_k), tables.max_forced)
        precise = config.rectification == "precise"
        tail_parts = triton.cdiv(num_k * config.tail_keys, TAIL_SCALE_GROUPS) if precise else 0
        return Sizes(
            head_dim=head_dim,
            padded_dim=padded_dim(head_dim, tile),
            length=layout.length,
            video_length=layout.video_length,
            context_length=layout.context_length,
            num_q=layout.num_blocks(config.q_block),
            num_k=num_k,
            num_context_q=triton.cdiv(layout.context_length, config.q_block),
            num_full_k=num_full_k,
            num_full_context=num_full_context,
            packed_length=len(tables.kv_source),
            tail_length=tail_parts * TAIL_SCALE_GROUPS,
            width=min(kept, num_full_k) + num_full_context,
            q_parts=Q_PARTS if precise else 1,
            context_start=num_k * config.kv_block,
        )

    def heads_per_chunk(self, num_heads: int, packed_bytes: int, workspace: int) -> int:
        """Heads that fit into the workspace together, spread evenly over the chunks.

        Args:
            num_heads: of the call.
            packed_bytes: of one channel of one token in its packed copies.
            workspace: bytes.
        """
        packed = self.packed_length * self.padded_dim * packed_bytes
        # Logits, lists, critical set or GAPR bit, bias of the tail.
        columns = self.num_k * (1 + 4 * self.q_parts) + 4 * self.width + 4 * self.tail_length
        means = 2 * self.num_q * self.q_parts + 3 * self.num_k + 3 * self.tail_length
        if self.q_parts > 1:
            means += WEIGH_SPLITS * 3 * SAMPLED_QUERIES
        pooled = means * self.padded_dim * 4
        needed = packed + self.num_q * columns + pooled
        chunks = triton.cdiv(num_heads, max(1, workspace // needed))
        return triton.cdiv(num_heads, chunks)


@dataclass(frozen=True)
class IndexTables:
    """Index tables of one layout and blocking, on one device.

    Attributes:
        q_source: `[(NCQ + NQ) * q_block]` int32, token of each packed query row, context rows
            first; -1 where there is none.
        kv_source: `[(NK + NCK) * kv_block]` int32, the same for keys, context keys last.
        sampled: `[R]` int64, token of each sampled query (`sampled_places`).
        all_blocks: int32, every kv-block that is not ragged: what a context query attends.
        forced: `[NQ, NK]` int8, blocks that are always critical.
        max_forced: most forced blocks of a q-block.
    """

    q_source: Tensor
    kv_source: Tensor
    sampled: Tensor
    all_blocks: Tensor
    forced: Tensor
    max_forced: int

    def to(self, device: torch.device) -> IndexTables:
        return IndexTables(
            self.q_source.to(device),
            self.kv_source.to(device),
            self.sampled.to(device),
            self.all_blocks.to(device),
            self.forced.to(device),
            self.max_forced,
        )


# One video render needs one or two layouts; a few more cover context windows and area conds.
@lru_cache(maxsize=8)
def index_tables(
    layout: TokenLayout,
    order: str,
    q_block: int,
    kv_block: int,
    neighbours: bool,
    device: torch.device,
) -> IndexTables:
    """Tables for `layout`, cached; `index_tables.cache_clear()` frees them."""
    video = token_order(layout.grid, order) + layout.video_start
    context = torch.cat(
        [torch.arange(layout.video_start), torch.arange(layout.video_end, layout.length)]
    )
    num_q, num_k = layout.num_blocks(q_block), layout.num_blocks(kv_block)
    if neighbours:
        forced = block_neighbours(layout.grid, order, q_block, kv_block)
    else:
        own = torch.arange(num_k)[None, :] // (q_block // kv_block)
        forced = own == torch.arange(num_q)[:, None]
    full_video = torch.arange(layout.video_length // kv_block)
    full_context = num_k + torch.arange(layout.context_length // kv_block)
    tables = IndexTables(
        q_source=torch.cat([_padded(context, q_block), _padded(video, q_block)]),
        kv_source=torch.cat([_padded(video, kv_block), _padded(context, kv_block)]),
        sampled=video[sampled_places(len(video))],
        all_blocks=torch.cat([full_video, full_context]).int(),
        forced=forced.to(torch.int8),
        max_forced=int(forced.sum(-1).max()),
    )
    return tables.to(device)


def _padded(index: Tensor, block: int) -> Tensor:
    """`index` as int32, filled with -1 to a whole number of blocks."""
    return torch.nn.functional.pad(index.int(), (0, -len(index) % block), value=-1)


def strides(x: Tensor) -> dict[str, int]:
    """Strides of `[B, H, N, D]` as kernels name them."""
    return dict(zip(("stride_b", "stride_h", "stride_n", "stride_d"), x.stride(), strict=True))


@dataclass(frozen=True)
class Result:
    """What a call returns; its stages write the rows of their heads."""

    out: Tensor  # [B, N, H, D]
    kv_counts: Tensor  # [B, H, NQ] int32
    mask: Tensor  # [B, H, NQ, NK] int8, or empty
    lse: Tensor | None  # [B, H, N] fp32

    @staticmethod
    def empty(q: Tensor, plan: Plan, keep_mask: bool, keep_lse: bool) -> Result:
        batch, heads, length, head_dim = q.shape
        rows = (batch, heads, plan.sizes.num_q)
        return Result(
            out=q.new_empty((batch, length, heads, head_dim)),
            kv_counts=q.new_empty(rows, dtype=torch.int32),
            mask=q.new_empty((*rows, plan.sizes.num_k) if keep_mask else (0,), dtype=torch.int8),
            lse=q.new_empty((batch, heads, length), dtype=torch.float32) if keep_lse else None,
        )


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
    mean_abs_dev: Statistic | None
    packed: Tensor | None  # [HC, packed_length, DP] dtype of the input, int8 or fp16
    scale: Tensor | None  # of packed, fp32: int8 queries [HC, length], else [HC, blocks]
    radius: Tensor | None  # [HC] fp32: largest |x_t - shift|
    squares: Tensor | None  # [HC, blocks] fp32: sum of |x_t|²


@dataclass(frozen=True)
class Tail:
    """One weighted key and value for every group of keys of a block, group g of block j at j G + g.

    Rows behind the last group are zero, -inf in `size`. Scales are of `TAIL_SCALE_GROUPS` rows.
    """

    keys: Tensor  # [HC, tail_length, DP] dtype of the input, or int8: rotated, less the shift
    values: Tensor  # [HC, tail_length, DP] dtype of the input, or fp16
    key_scale: Tensor | None  # [HC, tail parts] fp32, of int8 keys
    value_scale: Tensor | None  # [HC, tail parts] fp32, of fp16 values
    size: Tensor  # [HC, tail_length] fp32: log2 of the tokens of the group
    variance: Tensor  # [HC, tail_length] fp32: ν of rspa_core/key_groups.py
    mean: Statistic  # [HC, tail_length, DP]: keys with all digits, as they came
    weight: Tensor | None  # [HC] fp32: log2 of the factor of rspa_core/tail_weight.py


@dataclass(frozen=True)
class Scores:
    """What ranks the blocks of every q-block, P = 1 or Q_PARTS rows for each."""

    logits: Tensor  # [HC, NQ * P, NK] fp32
    accepted: Tensor | None  # [HC, NQ, NK] int8: the GAPR bit, paper
    context_lse: Tensor | None  # [HC, NQ * P] fp32, where there is context


@dataclass(frozen=True)
class Selection:
    """Which blocks every q-block attends exactly, and what becomes of the others."""

    kv_indices: Tensor  # [HC * NQ * width + all full blocks] int32
    list_lengths: Tensor  # [HC, NQ] int32
    ragged_kept: Tensor  # [HC, NQ] int32
    rectify_scale: Tensor | None  # [HC, NQ] fp32, paper
    weights: Tensor | None  # [HC, NQ, NK] W in the dtype of the inputs, paper
    critical: Tensor | None  # [HC, NQ, NK] int8, precise or where it is kept
    tail_bias: Tensor | None  # [HC, NQ, tail_length] fp32, precise: what makes c q·k̄ a logit, log2
