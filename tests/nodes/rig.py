"""An attention override with everything it reports to, called like the models call it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from rectified_spaattn.nodes.override import AttentionCalls, make_override
from rectified_spaattn.rspa_core import SparseConfig, TokenLayout
from rectified_spaattn.rspa_core.run.calls import ForwardPlan, RunFailures
from rectified_spaattn.rspa_core.run.record import ForwardTally

from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors

CONFIG = SparseConfig(sparsity=0.5, q_block=64, kv_block=64)
LAYOUT = TokenLayout(GRID, TOKENS)
OPTIONS = {"block_type": "double", "block_index": 1, "total_blocks": 4}
BLOCK = ("double", 1)


class Rig:
    """An override with everything it reports to."""

    def __init__(self, plan: ForwardPlan | None = None, **parts: Any) -> None:
        self.plan = plan or ForwardPlan(LAYOUT, CONFIG)
        self.tally = ForwardTally(torch.device("cpu"), 0)
        self.failures = parts.pop("failures", RunFailures())
        self.warnings: list[str] = []
        self.calls = AttentionCalls(
            self.plan, self.tally, self.failures, self.warnings.append, **parts
        )
        self.override = make_override(self.calls)

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
            reasons[reason] += count
        return dict(reasons)


def wan_tensors(tokens: int = TOKENS, **kwargs: Any) -> list[torch.Tensor]:
    return tensors(1, tokens, HEADS * HEAD_DIM, **kwargs)


def raising(error: Exception) -> Any:
    """Sparse attention that fails."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        raise error

    return attend
