"""Self-attention that a model asks for frame by frame, as Wan Animate2 does.

Each frame's queries have a call of their own, over the keys of all frames and those of one frame
of another video, the pose. One by one such calls would gain little: what is made of the keys,
their blocks, groups and means, would be made anew for every frame. So each call computes the
frame's part of its own, exactly, and behind the last one the video's part is computed at once, as
in any other model, and joined to them:

    O_r = (e^l_r O_r + e^l'_r O'_r) / (e^l_r + e^l'_r)        l: logarithm of the sum of weights

The first frame has no pose, and its call shows the video's keys and values as they are. What the
calls return meanwhile is of use to nobody else: a host joins before anything reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention import AttentionStats, dense_attention_lse, merge_attention
from ..config import SparseConfig
from ..layout import TokenLayout
from .reasons import DenseReason
from .record import Block
from .report import ForwardTally

Attempt = Callable[[Callable[[Callable[..., Any]], Any], Tensor], tuple[Any, DenseReason | None]]
"""As `SparseRun.attempt`."""


@dataclass
class _Parts:
    """What the calls of one block have left.

    Attributes:
        block: that makes them.
        config: how they are made sparse.
        k, v: of the video, `[B, H, T*H'*W', D]`.
        lse: of each frame's own part, `[B, H, H'*W']`.
    """

    block: Block
    config: SparseConfig
    k: Tensor
    v: Tensor
    lse: list[Tensor] = field(default_factory=list)


class FrameCalls:
    """The calls of one forward whose video has `layout.grid`, of two frames or more, alone.

    Args:
        layout: of the whole video.
        tally: of the forward.
        attempt: runs the sparse attention.
    """

    def __init__(self, layout: TokenLayout, tally: ForwardTally, attempt: Attempt) -> None:
        self._tally = tally
        self._attempt = attempt
        self._layout = layout
        self._frame = TokenLayout((1, *layout.grid[1:]), layout.grid[1] * layout.grid[2])
        self._parts: _Parts | None = None
        self._is_broken = False

    @property
    def is_unfinished(self) -> bool:
        """Whether parts were never joined: the forward's output is wrong."""
        return self._is_broken or self._parts is not None

    def is_call(self, q: torch.Size, k: torch.Size, v: torch.Size) -> bool:
        """Whether a call of these shapes, `[..., N, C]`, is one of these."""
        lengths = self._layout.length, self._layout.length + self._frame.length
        return q[-2] == self._frame.length and k == v and k[-2] in lengths

    @property
    def pose_length(self) -> int:
        """Tokens of the pose's own self-attention: a frame less than the video."""
        return self._layout.length - self._frame.length

    def is_first(self, k: torch.Size) -> bool:
        """Whether a call over so many keys is that of the first frame."""
        return k[-2] == self._layout.length

    def begin(
        self, block: Block, config: SparseConfig | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor | None:
        """The first frame's call of a block; `config` is for all frames, None if they are dense.

        Returns:
            `[B, H, H'*W', D]` without meaning, None if all calls of the block are to be dense.
        """
        self._is_broken |= self._parts is not None
        self._parts = None if config is None else _Parts(block, config, k, v)
        return None if config is None else q

    def attend(self, block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
        """A further frame's call: attention over the keys behind the video's.

        Returns:
            `[B, H, H'*W', D]` to be joined, None if the call is to be dense.
        """
        parts = self._parts
        if parts is None or parts.block != block:
            return None
        own = slice(self._layout.length, None)
        out, lse = dense_attention_lse(q, k[:, :, own], v[:, :, own])
        parts.lse.append(lse)
        return out

    def join(self, q: Tensor, out: Tensor) -> Tensor | None:
        """Behind the last call of a block: what all of them were asked for.

        Args:
            q: queries of all frames, `[B, H, N, D]`.
            out: what the calls have returned, `[B, H, N, D]`.

        Returns:
            `[B, H, N, D]`; None where there is nothing to join.
        """
        parts = self._parts
        if parts is None or q.shape != parts.k.shape:
            return None
        self._parts = None
        if len(parts.lse) != self._layout.grid[0] - 1:
            self._is_broken = True
            return None
        operands = q, parts.k, parts.v
        whole, lse, density, problem = self._computed(operands, self._layout, parts.config)
        if problem is not None:
            self._tally.add_dense(parts.block, problem)
        rest = slice(self._frame.length, None)
        own = torch.cat(parts.lse, -1)
        joined, _ = merge_attention(whole[:, :, rest], lse[:, :, rest], out[:, :, rest], own)
        whole[:, :, rest] = joined
        if density is not None:
            self._tally.add_sparse(parts.block, whole, density)
        return whole

    def _computed(
        self, operands: tuple[Tensor, Tensor, Tensor], layout: TokenLayout, config: SparseConfig
    ) -> tuple[Tensor, Tensor, Tensor | None, DenseReason | None]:
        """Output, logarithms and density; without a density if it failed and is dense, and why."""

        def compute(
            attention: Callable[..., tuple[Tensor, AttentionStats]],
        ) -> tuple[Tensor, Tensor | None, Tensor]:
            out, stats = attention(*operands, layout, config, return_lse=True)
            return out, stats.lse, stats.density

        result, problem = self._attempt(compute, operands[0])
        if result is not None:
            return *result, None
        return *dense_attention_lse(*operands), None, problem
