"""What a run of our node must report, worked out from the settings alone."""

from __future__ import annotations

import shutil

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig, block_neighbours

from .graphs import STEPS, Scene

EXACT = 1e-4
"""Largest relative difference of latents when sparse attention keeps every block (fp32)."""
COMPILED = 1e-3
"""Largest relative difference between compiled and eager latents (fp32, fused kernels)."""

has_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile on the CPU needs a C++ compiler",
)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the Euclidean norm."""
    return ((actual - expected).norm() / expected.norm()).item()


def expected_density(grid: tuple[int, int, int], config: SparseConfig) -> float:
    """Share of video kv-blocks kept, the same for every head and content while top_p is 0.

    A q-block keeps `top_k` blocks, or its forced neighbours if those are more.
    """
    forced = block_neighbours(grid, config.order, config.q_block, config.kv_block).sum(-1)
    num_kv_blocks = -(-grid[0] * grid[1] * grid[2] // config.kv_block)
    kept = forced.clamp(min=config.top_k(num_kv_blocks)).float()
    return (kept.mean() / num_kv_blocks).item()


def expected_calls(scene: Scene, steps: int = STEPS, forwards_per_step: int = 1) -> list[list]:
    """Rows [step, block type, block index, sparse, dense] of a wholly sparse run."""
    rows = []
    for step in range(steps):
        for block_type, index, calls in scene.model.attention_blocks:
            rows.append([step, block_type, index, calls * forwards_per_step, 0])
    return rows


def check_wholly_sparse(report: dict, scene: Scene, **options) -> None:
    """Assert that every attention call over the video ran sparse, by block and step."""
    assert report["calls"] == expected_calls(scene, **options)
    assert report["sparse"] == sum(row[3] for row in report["calls"])
    assert report["dense"] == 0
    assert report["reasons"] == {}


def steps_with_sparse_calls(report: dict) -> list[int]:
    """Steps of a run in which at least one call ran sparse."""
    return sorted({row[0] for row in report["calls"] if row[3]})
