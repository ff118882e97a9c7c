"""Measures attention calls while a sampler renders: sparse against dense, at several sparsities.

Memory of one measured call: one sparse output at a time, and fp32 slices of `SLICE_ELEMENTS`.
What stays is one short vector per block and step, on the device of the call. Nothing here waits
for the device but `table`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..rspa_core import SparseConfig, TokenLayout, rectified_attention
from ..rspa_core.probe import Block, ProbeSettings, ProbeTable

SLICE_ELEMENTS = 1 << 22
"""Output elements that are compared at a time: 16 MiB in fp32."""

Key = tuple[int, Block]


class ProbeRecorder:
    """Adds up squared errors and densities of one sampling run by step and block.

    Args:
        settings: what is measured.
        attend: the sparse attention; injected for tests.
        progress: told (measured, expected as far as known) pairs of a step and a block.
        say: told in words what is being measured.

    Attributes:
        grid: video tokens (T, H, W) of the last measured call, None before the first.
        was_asked: whether a call over the video came by.
        num_steps: of the sampler that made it, None if unknown.
        has_wanted: whether a call was to be measured.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        attend: Callable[..., Any] = rectified_attention,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self._attend = attend
        self._progress = progress
        self._say = say
        self.reset()

    def reset(self) -> None:
        """Forget everything: a new run begins."""
        self.grid: tuple[int, int, int] | None = None
        # By device too: with several GPUs a step's calls of one block run on different ones.
        self._sums: dict[tuple[Key, torch.device], Tensor] = {}
        self._measured: set[Key] = set()
        self._num_blocks: dict[str | None, int] = {}
        self.was_asked = False
        self.num_steps: int | None = None
        self.has_wanted = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured since the last reset."""
        return not self._measured

    def wants(
        self,
        step: int | None,
        num_steps: int | None,
        block_type: str | None,
        index: int | None,
        total: int | None,
    ) -> bool:
        """Whether calls of this block are to be measured in this step; None is unknown."""
        self.was_asked = True
        self.num_steps = num_steps
        if not self.settings.wants(step, num_steps, block_type, index, total):
            return False
        self.has_wanted = True
        self._num_blocks[block_type] = total or 0
        return True

    def measure(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Tensor,
        layout: TokenLayout,
        config: SparseConfig,
        step: int | None,
        block: Block,
    ) -> None:
        """Compare `dense` with sparse attention at every sparsity and add up the squares.

        A call that fails leaves no trace.

        Args:
            q, k, v: `[B, H, N, D]`, any strides.
            dense: output of full attention, `[B, H, N, D]`, any strides.
            layout: of the call.
            config: of the call; its sparsity is replaced.
            step, block: where the call belongs.

        Raises:
            whatever the sparse attention raises.
        """
        if step is None:
            return
        video = slice(layout.video_start, layout.video_end)
        dense = dense[:, :, video]
        squares = _sum_squares(dense)
        values = [torch.ones_like(squares), squares]
        for sparsity in self.settings.sparsities:
            candidate = replace(config, sparsity=sparsity)
            values += self._compare(q, k, v, dense, video, layout, candidate)
        found = torch.stack(values)
        key = (step, block)
        at = (key, found.device)
        self._sums[at] = self._sums[at] + found if at in self._sums else found
        self.grid = layout.grid
        self._measured.add(key)
        self._tell(step, block)

    def _compare(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Tensor,
        video: slice,
        layout: TokenLayout,
        config: SparseConfig,
    ) -> tuple[Tensor, Tensor]:
        """Sum of the squared differences over the video rows, and the density."""
        # A function of its own: its output is gone before the next candidate's is made.
        out, stats = self._attend(q, k, v, layout, config, return_stats=True)
        return _sum_squares(out[:, :, video], dense), stats.density.float()

    def finish(self) -> None:
        """The run is over: say what was measured."""
        if self._say is not None and self._measured:
            steps = len({step for step, _ in self._measured})
            blocks = len({block for _, block in self._measured})
            self._say(
                f"measured {blocks} {'block' if blocks == 1 else 'blocks'} in {steps} "
                f"{'step' if steps == 1 else 'steps'}"
            )

    def table(self) -> ProbeTable:
        """What was measured so far; waits for the device once per device."""
        cells: dict[Key, list[float]] = {}
        for (key, _), values in self._read_sums():
            # Sums of the devices' sums: counts, squares and densities all add up.
            before = cells.get(key, [0.0] * len(values))
            cells[key] = [a + b for a, b in zip(before, values, strict=True)]
        steps = tuple(sorted({step for step, _ in cells}))
        blocks = tuple(sorted({block for _, block in cells}, key=_model_order))
        nothing = (None,) * len(self.settings.sparsities)
        errors, densities = (
            tuple(
                tuple(
                    read(cells[step, block]) if (step, block) in cells else nothing
                    for block in blocks
                )
                for step in steps
            )
            for read in (_errors, _densities)
        )
        return ProbeTable(steps, blocks, self.settings.sparsities, errors, densities)

    def _read_sums(self) -> list[tuple[tuple[Key, torch.device], list[float]]]:
        found = []
        for device in {device for _, device in self._sums}:
            keys = [at for at in self._sums if at[1] == device]
            rows = torch.stack([self._sums[at] for at in keys]).tolist()
            found += list(zip(keys, rows, strict=True))
        return found

    def _tell(self, step: int, block: Block) -> None:
        block_type, index = block
        if self._progress is not None:
            expected = len(self.settings.steps.indices(self.num_steps)) if self.num_steps else 0
            expected *= sum(
                self.settings.wants_block(kind, number, total)
                for kind, total in self._num_blocks.items()
                for number in range(total)
            )
            done = len(self._measured)
            self._progress(done, max(done, expected))
        if self._say is not None:
            kind = "single block" if block_type == "single" else "block"
            total = self._num_blocks.get(block_type)
            self._say(f"probe: step {step}, {kind} {index}" + (f" of {total}" if total else ""))


def _sum_squares(x: Tensor, minus: Tensor | None = None) -> Tensor:
    """Sum of squares of `x`, or of `x - minus`, `[B, H, N, D]`: 0-dim fp32, in slices of rows."""
    per_row = max(1, x.shape[0] * x.shape[1] * x.shape[3])
    rows = max(1, SLICE_ELEMENTS // per_row)
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    for start in range(0, x.shape[2], rows):
        part = x[:, :, start : start + rows].float()
        if minus is not None:
            part = part - minus[:, :, start : start + rows]  # into fp32, whatever `minus` is
        total += part.square().sum()
    return total


def _errors(values: list[float]) -> tuple[float, ...]:
    """Relative errors from count, dense squares, then (difference squares, density) pairs."""
    dense = values[1]
    return tuple(_relative_error(difference, dense) for difference in values[2::2])


def _relative_error(difference: float, dense: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(dense):
        return math.inf
    if dense == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return math.sqrt(difference / dense)


def _densities(values: list[float]) -> tuple[float, ...]:
    return tuple(density / values[0] for density in values[3::2])


def _model_order(block: Block) -> tuple[bool, int]:
    block_type, index = block
    return block_type == "single", -1 if index is None else index
