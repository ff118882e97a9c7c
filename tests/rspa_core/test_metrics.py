"""Metrics against hand-made numbers and the fp64 softmax."""

from __future__ import annotations

import math

import pytest
import torch

from rectified_spaattn.rspa_core import (
    SparseConfig,
    TokenLayout,
    critical_blocks,
    metrics,
    token_order,
)

from .cases import BLOCKS, ORDERS, video_like


def test_relative_errors_of_known_numbers() -> None:
    ref = torch.tensor([[3.0, -4.0], [0.0, 5.0]])
    out = torch.tensor([[3.0, -1.0], [4.0, 5.0]])
    assert metrics.relative_l1(out, ref) == pytest.approx(7 / 12)
    assert metrics.relative_l2(out, ref) == pytest.approx(5 / math.sqrt(50))
    assert metrics.cosine_similarity(out, ref) == pytest.approx(
        (9 + 4 + 25) / math.sqrt((9 + 1 + 16 + 25) * 50)
    )


def test_equal_tensors() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert metrics.relative_l1(x, x) == 0.0
    assert metrics.relative_l2(x, x) == 0.0
    assert metrics.cosine_similarity(x, x) == pytest.approx(1.0, abs=1e-6)
    assert metrics.cosine_similarity(-2 * x, x) == pytest.approx(-1.0, abs=1e-6)
    assert metrics.relative_l2(1.5 * x, x) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_floats_in_any_dtype(dtype: torch.dtype) -> None:
    # 300^2 overflows fp16: sums are taken in fp32.
    ref = torch.full((1, 1, 64, 64), 300.0, dtype=dtype)
    for metric in (metrics.relative_l1, metrics.relative_l2):
        value = metric(ref * 0.5, ref)
        assert isinstance(value, float)
        assert value == pytest.approx(0.5, rel=1e-3)
    assert metrics.cosine_similarity(ref * 0.5, ref) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("q_block,kv_block", BLOCKS)
def test_mass_recall_against_the_whole_softmax(order: str, q_block: int, kv_block: int) -> None:
    layout = TokenLayout((3, 9, 11), 3 * 9 * 11 + 20, video_start=7)
    config = SparseConfig(
        sparsity=0.6, q_block=q_block, kv_block=kv_block, order=order, neighbours=False
    )
    q, k, _ = video_like((2, 2, layout.length, 64), layout, torch.Generator().manual_seed(3))
    mask = critical_blocks(q, k, layout, config)
    recall = metrics.attention_mass_recall(q, k, mask, layout, config)

    position = torch.empty(layout.video_length, dtype=torch.int64)  # of each raster index
    position[token_order(layout.grid, order)] = torch.arange(layout.video_length)
    span = slice(layout.video_start, layout.video_end)
    probs = torch.softmax(q[:, :, span].double() @ k.double().mT * 64**-0.5, dim=-1)
    kept = torch.ones_like(probs, dtype=torch.bool)
    kept[..., span] = mask[:, :, position // q_block][..., position // kv_block]
    assert recall == pytest.approx(float((probs * kept).sum(-1).mean()), rel=1e-5)


def test_mass_recall_of_everything_and_nothing() -> None:
    layout = TokenLayout((2, 8, 10), 160)
    config = SparseConfig(q_block=64, kv_block=64)
    q, k, _ = video_like((1, 2, 160, 64), layout, torch.Generator().manual_seed(4))
    everything = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    assert metrics.attention_mass_recall(q, k, everything, layout, config) == pytest.approx(1.0)
    assert metrics.attention_mass_recall(q, k, ~everything, layout, config) == 0.0
