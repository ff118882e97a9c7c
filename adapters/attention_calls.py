"""The self-attention calls of one model: which of them are sparse, and how they are computed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..rspa_core import BackendUnavailable, SparseConfig, TokenLayout, rectified_attention
from ..rspa_core.run.schedule import DenseBlocks, SparsitySchedule
from .call_report import CallReport
from .steps import StepCounter, scheduled_sparsity

logger = logging.getLogger("rectified_spaattn")

DENSE_BLOCK = "dense_blocks"
MASKED = "attention mask"
GRADIENTS = "gradients are recorded (call the model under torch.no_grad)"
OUTSIDE = "outside of a forward of the transformer"

FAILURE_LIMIT = 3
"""After this many failed calls the rest is dense; a missing backend counts as all."""
REASON_LENGTH = 160
"""Longest part of an error message that becomes a reason, in characters."""


class RunDense(Exception):
    """A call is to take the dense path. The message is the reason, written for the user."""


@dataclass(frozen=True)
class Block:
    """A transformer block: "single" or "double" (a main block), its number and how many exist."""

    kind: str
    index: int
    total: int


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        config: of the sparse calls; a schedule replaces its sparsity.
        schedule: sparsity over the run, or None for `config.sparsity` throughout.
        dense_blocks: blocks that stay dense.
        min_tokens: below this many video tokens a forward is dense.
        backend: for `rectified_attention`.
    """

    config: SparseConfig
    schedule: SparsitySchedule | None
    dense_blocks: DenseBlocks
    min_tokens: int
    backend: str


@dataclass(frozen=True)
class ForwardPlan:
    """What one forward is to do: its video grid, and a config or the reason why it is dense."""

    grid: tuple[int, int, int]
    config: SparseConfig | None
    reason: str = ""

    @property
    def video_length(self) -> int:
        return math.prod(self.grid)


class AttentionCalls:
    """Decides about, computes and counts the calls of a model; the processors ask it."""

    def __init__(self, settings: Settings, steps: StepCounter) -> None:
        self.settings = settings
        self.steps = steps
        self.report = CallReport()
        self._plan: ForwardPlan | None = None
        self._mask: tuple[Tensor | None, list[int]] = (None, [])
        self._failures = 0
        self._final_reason: str | None = None

    def begin_forward(self, grid: tuple[int, int, int], timestep: Any) -> None:
        """A forward over this token grid (T, H, W) starts."""
        self.report.forwards += 1
        settings, schedule = self.settings, self.settings.schedule
        tokens = math.prod(grid)
        if schedule is None:
            sparsity, reason = settings.config.sparsity, ""
        else:
            # Asked for every forward, also for small videos: it may count steps.
            step, num_steps = self.steps.current(timestep)
            scheduled, reason = scheduled_sparsity(schedule, step, num_steps)
            sparsity = scheduled or 0.0
        if tokens < settings.min_tokens:
            reason = f"{tokens} video tokens, below min_tokens {settings.min_tokens}"
        config = None if reason else replace(settings.config, sparsity=sparsity)
        self._plan = ForwardPlan(grid, config, reason)

    def end_forward(self) -> None:
        """The forward is over, also after an error."""
        self._plan = None
        self._mask = (None, [])

    def check(
        self,
        block: Block,
        attn: torch.nn.Module,
        video: Tensor,
        processor: Any,
        known: Sequence[str],
    ) -> None:
        """Raise `RunDense` if a call cannot be sparse, whatever its mask.

        Args:
            block: that makes it.
            attn: its attention module.
            video: hidden states of the video tokens, `[B, N, C]`.
            processor: what computes the call otherwise.
            known: names of the processor classes whose mathematics is ours.
        """
        plan = self._plan
        if plan is None:
            raise RunDense(OUTSIDE)
        if plan.config is None:
            raise RunDense(plan.reason)
        if self.settings.dense_blocks.contains(block.kind, block.index, block.total):
            raise RunDense(DENSE_BLOCK)
        if type(processor).__name__ not in known:
            raise RunDense(f"attention processor {type(processor).__name__}")
        if getattr(processor, "_parallel_config", None) is not None:
            raise RunDense("context parallelism")
        if video.shape[1] != plan.video_length:
            raise RunDense(f"{video.shape[1]} tokens where {plan.video_length} were expected")
        if torch.is_grad_enabled():
            if video.requires_grad or any(each.requires_grad for each in attn.parameters()):
                raise RunDense(GRADIENTS)
        if self._final_reason is not None:
            raise RunDense(self._final_reason)

    def key_lengths(self, mask: Tensor | None, batch: int, length: int) -> list[int]:
        """How many of the `length` tokens each sample of the batch attends to, from its mask.

        Args:
            mask: None, or bool `[B, 1, 1, length]`, True for the tokens to attend to.
            batch: samples.
            length: tokens with all padding.

        Raises:
            RunDense: the mask is more than padding at the end of the text.
        """
        if mask is None:
            return [length] * batch
        # One mask serves all blocks of a forward: look at its values once, that waits.
        if mask is not self._mask[0]:
            self._mask = (mask, self._read_mask(mask, batch, length))
        return self._mask[1]

    def _read_mask(self, mask: Tensor, batch: int, length: int) -> list[int]:
        assert self._plan is not None
        if mask.dtype != torch.bool or tuple(mask.shape) != (batch, 1, 1, length):
            raise RunDense(f"{MASKED} of shape {tuple(mask.shape)}, {mask.dtype}")
        flat = mask.view(batch, length)
        rises = (flat[:, 1:] & ~flat[:, :-1]).sum(1)
        counts, number_of_rises = torch.stack([flat.sum(1), rises]).tolist()
        if any(number_of_rises) or min(counts) < self._plan.video_length:
            raise RunDense(f"{MASKED} that is not padding at the end")
        return counts

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        """Sparse attention of a call that nothing speaks against.

        Args:
            q, k, v: `[B, H, N, D]`, the video tokens first.
            lengths: of each sample, tokens that take part; the rest is padding.

        Returns:
            `[B, H, N, D]`, zero in the padding.

        Raises:
            RunDense: the call failed.
        """
        assert self._plan is not None
        assert self._plan.config is not None
        # As torch's attention under autocast: the norms may leave q and k in fp32.
        q, k = q.to(v.dtype), k.to(v.dtype)
        try:
            out, density = self._attend(q, k, v, lengths, self._plan.grid, self._plan.config)
        except BackendUnavailable as error:
            reason = str(error)
            is_final = True
        except Exception as error:  # out of memory, a kernel that fails: go on dense
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"[:REASON_LENGTH]
            is_final = False
        else:
            self.report.add_sparse(density)
            return out
        # Outside the except clause, whose traceback keeps the failed call's tensors alive.
        self._note_failure(reason, is_final)
        raise RunDense(reason)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: list[int],
        grid: tuple[int, int, int],
        config: SparseConfig,
    ) -> tuple[Tensor, Tensor]:
        """Output and mean density, one `rectified_attention` for each length among the samples."""

        def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            layout = TokenLayout(grid, q.shape[-2])
            out, stats = rectified_attention(
                q, k, v, layout, config, backend=self.settings.backend, return_stats=True
            )
            return out, stats.density

        batch, heads, length, head_dim = v.shape
        if lengths == [length] * batch:
            return call(q, k, v)
        out = v.new_zeros(batch, length, heads, head_dim).transpose(1, 2)
        densities = []
        for end in sorted(set(lengths)):
            rows = [row for row in range(batch) if lengths[row] == end]
            # One length for all, as with a single prompt: views instead of copies.
            chosen: Any = slice(None) if len(rows) == batch else rows
            part, density = call(*(each[chosen, :, :end] for each in (q, k, v)))
            out[chosen, :, :end] = part
            densities.append(density * (len(rows) / batch))
        return out, torch.stack(densities).sum()

    def _note_failure(self, reason: str, is_final: bool) -> None:
        self._failures += 1
        is_final = is_final or self._failures >= FAILURE_LIMIT
        if is_final:
            self._final_reason = reason
        rest = ", and so do all others" if is_final else ""
        logger.warning(
            "Rectified SpaAttn: an attention call takes the dense path%s: %s", rest, reason
        )
