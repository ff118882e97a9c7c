"""An attention override with everything it reports to, called like the models call it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch

from rectified_spaattn.nodes.override import make_override
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout
from rectified_spaattn.rspa_core.run.calls import ForwardPlan, RunSettings, SparseRun
from rectified_spaattn.rspa_core.run.probe import ProbeSettings
from rectified_spaattn.rspa_core.run.schedule import DenseBlocks

from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors

CONFIG = SparseConfig(sparsity=0.5, q_block=64, kv_block=64, rectification="paper", tail_keys=1)
LAYOUT = TokenLayout(GRID, TOKENS)
OPTIONS = {"block_type": "double", "block_index": 1, "total_blocks": 4}
BLOCK = ("double", 1)


class Rig:
    """An override of one forward, with everything it reports to.

    Args:
        plan: of the forward.
        previous: the override that was there before.
        run: of the forward; a new one if None.
        dense_blocks: that stay dense.
        probe: what is measured.
        other_lengths: token counts of calls over something else.
        parts: of `SparseRun`.
    """

    def __init__(
        self,
        plan: ForwardPlan | None = None,
        previous: Any = None,
        run: SparseRun | None = None,
        dense_blocks: DenseBlocks | None = None,
        probe: ProbeSettings | None = None,
        other_lengths: Collection[int] = (),
        **parts: Any,
    ) -> None:
        settings = RunSettings(
            CONFIG, dense_blocks=dense_blocks or DenseBlocks(), probe=probe, backend="reference"
        )
        self.run = run or SparseRun(settings, **parts)
        self.forward = self.run.open(plan or ForwardPlan(LAYOUT, CONFIG), torch.device("cpu"))
        self.tally = self.forward.tally
        self.override = make_override(self.forward, previous, other_lengths)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.run.report.record().warnings

    def wan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Call like a Wan block: heads as a keyword."""
        kwargs = {"transformer_options": OPTIONS, "_inside_attn_wrapper": True, **kwargs}
        return self.override(dense, q, k, v, heads=HEADS, **kwargs)

    def hunyuan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> Any:
        """Call like a HunyuanVideo block: heads as a positional, heads split already."""
        kwargs = {"transformer_options": OPTIONS, "_inside_attn_wrapper": True, **kwargs}
        return self.override(dense, q, k, v, HEADS, skip_reshape=True, **kwargs)

    @property
    def dense_reasons(self) -> dict[str, int]:
        reasons: Counter[str] = Counter()
        for (_, reason), count in self.tally.dense.items():
            reasons[reason.text] += count
        return dict(reasons)


def wan_tensors(tokens: int = TOKENS, **kwargs: Any) -> list[torch.Tensor]:
    return tensors(1, tokens, HEADS * HEAD_DIM, **kwargs)


def raising(error: Exception) -> Any:
    """Sparse attention that fails."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        raise error

    return attend
