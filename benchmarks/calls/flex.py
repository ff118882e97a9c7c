"""Torch's `flex_attention` on a block mask of ours: the same work without our kernels.

`flex_attention` cannot gather rows, so the tokens are put into our order beforehand, outside the
timed call: the video in token order, then the context, each padded to whole blocks. Full blocks
need no mask; ragged ones go through a mask function that leaves out the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ...rspa_core import SparseConfig, TokenLayout, rectified_attention, token_order
from ..methods import Method
from .comparison import Candidate, Prepared
from .problem import Problem, difference_reason, exact_rows

BLOCK = 128
LIMIT = 1e-2


@dataclass(frozen=True)
class FlexInputs:
    """q, k, v in blocks, `[B, H, T, D]`, and how they relate to the original tokens.

    Attributes:
        source, target: original token and its place among the T, both int64 `[N]`.
        mask_mod: tells keys from padding. One object for all masks of one shape, so that
            `torch.compile` sees one function.
        attend: `flex_attention`, compiled.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    source: Tensor
    target: Tensor
    mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    attend: Callable[..., Tensor]

    @property
    def num_video_blocks(self) -> int:
        return self.layout.num_blocks(BLOCK)

    def in_order(self, out: Tensor) -> Tensor:
        """From `[B, H, T, D]` in blocks to `[B, H, N, D]` in the original order."""
        result = out.new_empty(*out.shape[:2], self.layout.length, out.shape[-1])
        result[:, :, self.source] = out[:, :, self.target]
        return result


def flex_candidates(
    problem: Problem, method: Method, densities: Sequence[float], checked_heads: int
) -> list[Candidate]:
    """`flex_attention` on the blocks that `method` selects at each density."""

    @cache
    def inputs() -> FlexInputs:
        return flex_inputs(problem)

    def prepare(density: float) -> Prepared:
        config = method.config(density, BLOCK, BLOCK)
        return prepare_flex(problem, inputs(), config, checked_heads)

    return [
        Candidate(f"flex_attention {BLOCK}x{BLOCK} {density:g}", partial(prepare, density))
        for density in densities
    ]


def flex_inputs(problem: Problem, order: str = "gilbert") -> FlexInputs:
    """Put the tokens of a problem into blocks along our token order."""
    layout, device = problem.layout, problem.q.device
    video, context = layout.video_length, layout.context_length
    padded_video = layout.num_blocks(BLOCK) * BLOCK
    length = padded_video + -(-context // BLOCK) * BLOCK
    tokens = torch.arange(layout.length, device=device)
    outside = (tokens < layout.video_start) | (tokens >= layout.video_end)
    order_index = token_order(layout.grid, order).to(device) + layout.video_start
    source = torch.cat([order_index, tokens[outside]])
    places = torch.arange(length, device=device)
    target = torch.cat([places[:video], places[padded_video : padded_video + context]])

    def in_blocks(x: Tensor) -> Tensor:
        blocks = x.new_zeros(*x.shape[:2], length, x.shape[-1])
        blocks[:, :, target] = x[:, :, source]
        return blocks

    context_end = padded_video + context

    def is_token(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < video) | ((key >= padded_video) & (key < context_end))

    q, k, v = (in_blocks(x) for x in problem.qkv)
    return FlexInputs(q, k, v, layout, source, target, is_token, compiled_flex())


def compiled_flex() -> Callable[..., Tensor]:
    """`flex_attention` compiled for the next shape; uncompiled it ignores the lists of blocks."""
    torch.compiler.reset()  # beyond a few shapes torch would stop compiling
    return torch.compile(flex_attention, dynamic=False)


def whole_mask(critical: Tensor, layout: TokenLayout) -> Tensor:
    """Critical set `[B, H, NQ, NK]` of the video with the context's rows and columns added."""
    context_blocks = -(-layout.context_length // BLOCK)
    return torch.nn.functional.pad(critical, (0, context_blocks, 0, context_blocks), value=True)


def block_mask(blocks: Tensor, inputs: FlexInputs) -> BlockMask:
    """Torch's form of a block mask `[B, H, blocks, blocks]` bool."""
    layout = inputs.layout
    ragged = torch.zeros(blocks.shape[-1], dtype=torch.bool, device=blocks.device)
    if layout.video_length % BLOCK:
        ragged[inputs.num_video_blocks - 1] = True
    if layout.context_length % BLOCK:
        ragged[-1] = True
    partial_counts, partial_indices = _lists(blocks & ragged)
    full_counts, full_indices = _lists(blocks & ~ragged)
    return BlockMask.from_kv_blocks(
        partial_counts, partial_indices, full_counts, full_indices,
        BLOCK_SIZE=BLOCK, mask_mod=inputs.mask_mod,
    )  # fmt: skip


def _lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks per row, and all block numbers, the chosen ones first; int32."""
    indices = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.to(torch.int32).contiguous()


def prepare_flex(
    problem: Problem, inputs: FlexInputs, config: SparseConfig, checked_heads: int
) -> Prepared:
    """`flex_attention` on the blocks that ours selects with `config` (blocks of 128).

    Checked on some heads against explicit fp32 attention with the same mask: first, middle and
    last block of video queries.
    """
    _, stats = rectified_attention(*problem.qkv, problem.layout, config, return_stats=True)
    blocks = whole_mask(stats.block_mask(), problem.layout)
    mask = block_mask(blocks, inputs)

    def call() -> Tensor:
        return inputs.attend(inputs.q, inputs.k, inputs.v, block_mask=mask)

    heads = slice(0, checked_heads)
    is_token = torch.zeros(inputs.q.shape[-2], dtype=torch.bool, device=problem.q.device)
    is_token[inputs.target] = True

    def wrong(out: Tensor) -> str:
        last = inputs.num_video_blocks - 1
        for block in sorted({0, last // 2, last}):
            rows = slice(block * BLOCK, min((block + 1) * BLOCK, problem.layout.video_length))
            allowed = blocks[:, heads, block].repeat_interleave(BLOCK, dim=-1) & is_token
            expected = exact_rows(
                inputs.q[:, heads, rows], inputs.k[:, heads], inputs.v[:, heads],
                allowed[:, :, None],
            )  # fmt: skip
            reason = difference_reason(
                out[:, heads, rows], expected, LIMIT, f"masked attention in query block {block}"
            )
            if reason:
                return reason
        return ""

    return Prepared(call, wrong, problem.pair_density(float(stats.density)), inputs.in_order)
