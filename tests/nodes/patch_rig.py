"""The APPLY_MODEL wrapper with stand-ins around it, called like a sampler calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rectified_spaattn.nodes.patching import SparseAttentionPatch
from rectified_spaattn.rspa_core import SparseConfig, rectified_attention
from rectified_spaattn.rspa_core.run.calls import RunSettings
from rectified_spaattn.rspa_core.run.schedule import SparsitySchedule

from .stand_ins import LATENT, Executor, base_model, wan_forward, wan_model

CONFIG = SparseConfig(q_block=64, kv_block=64, rectification="paper", tail_keys=1)
SAMPLE_SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
BLOCKS = 4


def make_patch(
    schedule: SparsitySchedule | None = None,
    attend: Callable[..., Any] | None = None,
    node_id: str | None = None,
    verbose: bool = False,
    **settings: Any,
) -> SparseAttentionPatch:
    schedule = schedule or SparsitySchedule(0.5, 0.5, "constant")
    chosen = RunSettings(CONFIG, schedule, **{"backend": "reference"} | settings)
    parts = {"attend": attend or rectified_attention}
    return SparseAttentionPatch(chosen, node_id, verbose=verbose, **parts)


def make_executor(model: Any = None, forward: Callable[..., Any] | None = None) -> Executor:
    return Executor(base_model(model or wan_model()), forward or wan_forward(BLOCKS))


def run(
    patch: SparseAttentionPatch,
    executor: Executor,
    sigma: float = 1.0,
    latent: tuple[int, ...] = LATENT,
    conds: Mapping[str, Any] | None = None,
    **options: Any,
) -> torch.Tensor:
    """One model call of a sampler at `sigma`."""
    options = {"sigmas": torch.tensor([sigma]), "sample_sigmas": SAMPLE_SIGMAS, **options}
    x, text = torch.zeros(latent), torch.zeros(1, 77, 64)
    with torch.no_grad():
        return patch(executor, x, torch.tensor([sigma]), None, text, None, options, **(conds or {}))


def rows(patch: SparseAttentionPatch) -> dict[int | None, tuple[int, int]]:
    """(sparse, dense) calls by step."""
    counts: dict[int | None, tuple[int, int]] = {}
    for step, _, _, sparse, dense in patch.run.report.record().as_dict()["calls"]:
        before = counts.get(step, (0, 0))
        counts[step] = (before[0] + sparse, before[1] + dense)
    return counts
