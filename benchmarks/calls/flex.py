"""Torch's `flex_attention` on a block mask of ours: the same work without our kernels.

`flex_attention` cannot gather rows, so the tokens are put into our order beforehand, outside the
timed call: the video in token order, then the context, each padded to whole blocks. Full blocks
need no mask; ragged ones go through a mask function that leaves out the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from ...rspa_core import SparseConfig, rectified_attention
from ...rspa_core.order import join_sequence, split_sequence
from ..methods import Method
from .comparison import Candidate, Prepared
from .problem import Problem, difference_reason, exact_rows

BLOCK = 128
ORDER = SparseConfig().order
LIMIT = 1e-2


class FlexInputs:
    """A problem's q, k, v in blocks along our token order.

    Attributes:
        q, k, v: `[B, H, T, D]`, T tokens with the padding.
        is_token: which of the T are no padding, bool `[T]`.
        mask_mod: tells keys from padding, for `flex_attention`. One object for all masks of one
            shape, so that `torch.compile` sees one function.
        attend: `flex_attention`, compiled.
    """

    def __init__(self, problem: Problem) -> None:
        self.layout = problem.layout
        self.q, self.k, self.v = (self._in_blocks(x) for x in problem.qkv)
        self.attend = compiled_flex()
        video, start = self.layout.video_length, self.layout.num_blocks(BLOCK) * BLOCK
        end = start + self.layout.context_length

        def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key < video) | ((key >= start) & (key < end))

        self.mask_mod = mask_mod
        place = torch.arange(self.q.shape[-2], device=self.q.device)
        self.is_token = mask_mod(place, place, place, place)

    def _in_blocks(self, x: Tensor) -> Tensor:
        parts = split_sequence(x, self.layout, ORDER)
        padded = [torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % BLOCK)) for x in parts]
        return torch.cat(padded, dim=-2)

    def in_order(self, out: Tensor) -> Tensor:
        """From `[B, H, T, D]` in blocks to `[B, H, N, D]` in the original order."""
        video, context = out[:, :, self.is_token].tensor_split([self.layout.video_length], dim=-2)
        return join_sequence(video, context, self.layout, ORDER)

    def block_mask(self, blocks: Tensor) -> BlockMask:
        """Torch's form of a block mask `[B, H, T / BLOCK, T / BLOCK]` bool."""
        ragged = ~self.is_token.unflatten(0, (-1, BLOCK)).all(-1)
        lists = (*_lists(blocks & ragged), *_lists(blocks & ~ragged))
        return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=self.mask_mod)


def compiled_flex() -> Callable[..., Tensor]:
    """`flex_attention` compiled for the next shape; uncompiled it ignores the lists of blocks."""
    torch.compiler.reset()  # beyond a few shapes torch would stop compiling
    return torch.compile(flex_attention, dynamic=False)


def _lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks per row, and all block numbers, the chosen ones first; int32."""
    indices = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.to(torch.int32).contiguous()


def flex_candidates(
    problem: Problem, method: Method, densities: Sequence[float], checked_heads: int
) -> list[Candidate]:
    """`flex_attention` on the blocks that `method` selects at each density."""

    @cache
    def inputs() -> FlexInputs:
        return FlexInputs(problem)

    def prepare(density: float) -> Prepared:
        config = method.config(density, BLOCK, BLOCK)
        return prepare_flex(problem, inputs(), config, checked_heads)

    return [
        Candidate(f"flex_attention {BLOCK}x{BLOCK} {density:g}", partial(prepare, density))
        for density in densities
    ]


def prepare_flex(
    problem: Problem, inputs: FlexInputs, config: SparseConfig, checked_heads: int
) -> Prepared:
    """`flex_attention` on the blocks that ours selects with `config` (blocks of 128).

    Checked on some heads against explicit fp32 attention with the same mask: first, middle and
    last block of video queries.
    """
    _, stats = rectified_attention(*problem.qkv, problem.layout, config, return_stats=True)
    context = len(inputs.is_token) // BLOCK - stats.num_kv_blocks
    blocks = torch.nn.functional.pad(stats.block_mask(), (0, context, 0, context), value=True)
    call = partial(
        inputs.attend, inputs.q, inputs.k, inputs.v, block_mask=inputs.block_mask(blocks)
    )
    heads = slice(0, checked_heads)

    def wrong(out: Tensor) -> str:
        last = stats.num_kv_blocks - 1
        for block in sorted({0, last // 2, last}):
            rows = slice(block * BLOCK, min((block + 1) * BLOCK, problem.layout.video_length))
            allowed = blocks[:, heads, block].repeat_interleave(BLOCK, dim=-1) & inputs.is_token
            q, k, v = inputs.q[:, heads, rows], inputs.k[:, heads], inputs.v[:, heads]
            expected = exact_rows(q, k, v, allowed[:, :, None])
            what = f"masked attention in query block {block}"
            if reason := difference_reason(out[:, heads, rows], expected, LIMIT, what):
                return reason
        return ""

    return Prepared(call, wrong, problem.pair_density(float(stats.density)), inputs.in_order)
