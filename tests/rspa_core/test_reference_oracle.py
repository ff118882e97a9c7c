"""The reference backend against the fp64 oracle, and properties that need no oracle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from rectified_spaattn.rspa_core import (
    ConfigError,
    SparseConfig,
    TokenLayout,
    critical_blocks,
    dense_attention,
    rectified_attention,
)
from rectified_spaattn.rspa_core import reference as reference_module

from .cases import BLOCKS, ORDERS, RECTIFICATIONS, Case, case_id, make_cases, video_like
from .oracle import OracleResult, oracle_attention, oracle_dense

CASES = make_cases()
MAX_RELATIVE_L2 = 1e-5
# Closer to a tie than this, fp32 may rightly decide otherwise than fp64: draw other tensors.
TIE_MARGIN = 1e-5

# Ragged in the last block of either size, context tokens on both sides.
LAYOUT = TokenLayout((4, 9, 13), 4 * 9 * 13 + 11 + 30, video_start=11)


@pytest.fixture(scope="module", autouse=True)
def redraws() -> Iterator[list[int]]:
    """Redraws of each compared case; more than a few would hollow the comparison out."""
    counts: list[int] = []
    yield counts
    assert sum(counts) <= 0.05 * len(counts) + 1, f"{sum(counts)} redraws in {len(counts)} cases"


def tensors(
    layout: TokenLayout = LAYOUT, heads: int = 2, head_dim: int = 64, seed: int = 7
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return video_like((1, heads, layout.length, head_dim), layout, generator)


def reference(*args: Any, **kwargs: Any) -> Any:
    return rectified_attention(*args, backend="reference", **kwargs)


def relative_l2(out: torch.Tensor, ref: torch.Tensor) -> float:
    """Worst head of [B, H, N, D]."""
    difference = (out.double() - ref.double()).norm(dim=(-2, -1))
    return float((difference / ref.double().norm(dim=(-2, -1))).max())


def draw_away_from_ties(case: Case) -> tuple[tuple[torch.Tensor, ...], OracleResult, int]:
    """The first tensors of the case whose decisions are clear, with their oracle."""
    for attempt in range(4):
        inputs = case.tensors(attempt)
        expected = oracle_attention(*inputs, case.layout, case.config)
        if expected.margin >= TIE_MARGIN:
            return inputs, expected, attempt
    raise AssertionError(f"every draw is near a tie: {case}")


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_matches_oracle(case: Case, redraws: list[int]) -> None:
    inputs, expected, attempts = draw_away_from_ties(case)
    redraws.append(attempts)
    before = [x.clone() for x in inputs]

    out, stats = reference(*inputs, case.layout, case.config, return_stats=True)

    assert out.shape == inputs[0].shape
    assert out.dtype == torch.float32
    block_mask = critical_blocks(inputs[0], inputs[1], case.layout, case.config)
    assert torch.equal(block_mask, expected.block_mask), f"critical_blocks differs: {case}"
    assert torch.equal(stats.block_mask(), expected.block_mask), f"block_mask() differs: {case}"
    error = relative_l2(out, expected.out)
    assert error < MAX_RELATIVE_L2, f"relative L2 error {error:.2e}: {case}"
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)), "inputs written to"

    counts = expected.block_mask.sum(-1)
    assert stats.kv_counts.dtype == torch.int32
    assert torch.equal(stats.kv_counts.long(), counts)
    assert stats.num_kv_blocks == expected.block_mask.shape[-1]
    assert stats.density.ndim == 0
    assert stats.density.dtype == torch.float32
    assert math.isclose(
        float(stats.density), float(expected.block_mask.double().mean()), rel_tol=1e-6
    )


def test_cases_exercise_every_decision() -> None:
    """The random cases are worth something only if each rule decides something in them."""
    rules = ("accepted", "rejected", "by probability", "by top_p", "forced over budget", "capped")
    seen = dict.fromkeys(rules, 0)
    for case in CASES[::5]:  # 5 is coprime to the 27 combinations: all of them are visited
        q, k, v = case.tensors()
        config = case.config
        result = oracle_attention(q, k, v, case.layout, config)
        counts, num = result.block_mask.sum(-1), result.block_mask.shape[-1]
        if config.rectification == "paper":
            seen["accepted"] += int(result.accepted.sum())
            seen["rejected"] += int((~result.accepted & ~result.block_mask).sum())
        seen["by probability"] += math.isfinite(result.top_n_margin)
        if config.top_p:
            plain = dataclasses.replace(config, top_p=0.0)
            fewer = oracle_attention(q, k, v, case.layout, plain).block_mask.sum(-1)
            seen["by top_p"] += int((counts > fewer).sum())
        else:
            seen["forced over budget"] += int((counts > config.top_k(num)).sum())
        seen["capped"] += result.capped
    assert min(seen.values()) >= 20, seen


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("q_block,kv_block", BLOCKS)
def test_sparsity_zero_is_dense(
    rectification: str, order: str, q_block: int, kv_block: int
) -> None:
    """Everything critical: no tail, no compensation, and no trace of the token order."""
    q, k, v = tensors()
    config = SparseConfig(
        sparsity=0.0, rectification=rectification, order=order, q_block=q_block, kv_block=kv_block
    )
    out, stats = reference(q, k, v, LAYOUT, config, return_stats=True)
    assert float(stats.density) == 1.0
    assert bool(stats.block_mask().all())
    assert relative_l2(out, oracle_dense(q, k, v)) < MAX_RELATIVE_L2


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_top_p_one_is_dense(rectification: str) -> None:
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.95, top_p=1.0, rectification=rectification)
    out, stats = reference(q, k, v, LAYOUT, config, return_stats=True)
    assert float(stats.density) == 1.0
    assert relative_l2(out, oracle_dense(q, k, v)) < MAX_RELATIVE_L2


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_top_p_one_is_dense_where_the_softmax_is_peaked(rectification: str) -> None:
    """There the mass of a few blocks is 1 in fp32, and what is left out still counts."""
    generator = torch.Generator().manual_seed(5)
    layout = TokenLayout((4, 8, 16), 512)
    q, k, v = torch.randn(3, 1, 2, 512, 64, generator=generator)
    k += 16 * torch.randn(1, 2, 8, 64, generator=generator).repeat_interleave(64, 2)
    q = q[:, :, :1] + 0.1 * q
    config = SparseConfig(
        0.95, 64, 64, top_p=1.0, rectification=rectification, order="raster", neighbours=False
    )
    out, stats = reference(q, k, v, layout, config, return_stats=True)
    assert float(stats.density) == 1.0
    assert relative_l2(out, oracle_dense(q, k, v)) < MAX_RELATIVE_L2


@pytest.mark.parametrize("rectification", ["precise", "none"])
@pytest.mark.parametrize("order", ORDERS)
def test_constant_values_stay_constant(rectification: str, order: str) -> None:
    """The weights of these modes sum to 1 whatever was left out."""
    q, k, v = tensors()
    row = torch.linspace(-2.0, 3.0, v.shape[-1])
    constant = row.expand_as(v)
    config = SparseConfig(
        sparsity=0.8,
        q_block=64,
        kv_block=64,
        rectification=rectification,
        order=order,
        neighbours=False,
    )
    out, stats = reference(q, k, constant, LAYOUT, config, return_stats=True)
    assert float(stats.density) < 0.5
    torch.testing.assert_close(out, constant, rtol=1e-5, atol=1e-5)


def test_paper_mode_rescales_constant_values_to_one() -> None:
    """R and the compensation share the mass between them: R + Σ W = 1 in the paper's mode too."""
    q, k, v = tensors()
    constant = torch.ones_like(v)
    config = SparseConfig(
        sparsity=0.8, q_block=64, kv_block=64, rectification="paper", neighbours=False
    )
    out = reference(q, k, constant, LAYOUT, config)
    torch.testing.assert_close(out, constant, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_context_rows_are_dense(rectification: str, order: str) -> None:
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.95, rectification=rectification, order=order, neighbours=False)
    out = reference(q, k, v, LAYOUT, config)
    expected = oracle_dense(q, k, v)
    for rows in (slice(0, LAYOUT.video_start), slice(LAYOUT.video_end, LAYOUT.length)):
        assert relative_l2(out[:, :, rows], expected[:, :, rows]) < MAX_RELATIVE_L2


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_context_keys_are_always_attended(rectification: str) -> None:
    """A context token that every query looks at decides the output at any sparsity."""
    q, k, v = tensors()
    direction = torch.zeros(q.shape[-1])
    direction[0] = 1.0
    q = q + 8.0 * direction
    k = k.clone()
    k[:, :, 3] = 40.0 * direction
    config = SparseConfig(sparsity=0.95, rectification=rectification, neighbours=False)
    out = reference(q, k, v, LAYOUT, config)
    assert relative_l2(out, v[:, :, 3:4].expand_as(v)) < 1e-4


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_fp32(rectification: str, dtype: torch.dtype) -> None:
    """Sixteen-bit inputs are computed in fp32; only the result is rounded."""
    q, k, v = (x.to(dtype) for x in tensors())
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification=rectification)
    out, stats = reference(q, k, v, LAYOUT, config, return_stats=True)
    wide, wide_stats = reference(q.float(), k.float(), v.float(), LAYOUT, config, return_stats=True)
    assert out.dtype == dtype
    assert torch.equal(stats.block_mask(), wide_stats.block_mask())
    info = torch.finfo(dtype)
    # Half a unit in the last place, and a little for the last bit of fp32.
    allowed = (0.5 + 1e-3) * info.eps * wide.abs() + info.smallest_normal * info.eps
    assert bool(((out.float() - wide).abs() <= allowed).all())


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_heads_and_batches_are_independent(rectification: str) -> None:
    q, k, v = (torch.cat([a, b]) for a, b in zip(tensors(seed=1), tensors(seed=2), strict=True))
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification=rectification)
    together = reference(q, k, v, LAYOUT, config)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            one = (slice(b, b + 1), slice(h, h + 1))
            alone = reference(q[one], k[one], v[one], LAYOUT, config)
            torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rectification", ["paper", "none"])
def test_values_are_linear(rectification: str) -> None:
    """The output is linear in V: selection and weights come from Q and K alone."""
    q, k, v = tensors()
    other = torch.roll(v, 17, dims=2)
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification=rectification)
    combined = reference(q, k, 2 * v - 3 * other, LAYOUT, config)
    parts = 2 * reference(q, k, v, LAYOUT, config) - 3 * reference(q, k, other, LAYOUT, config)
    torch.testing.assert_close(combined, parts, rtol=1e-4, atol=1e-4)


def test_values_may_be_scaled_and_moved() -> None:
    """The weight of the tail in `precise` comes from the values, too, but not from their scale."""
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64)
    moved = reference(q, k, 2 * v - 3, LAYOUT, config)
    expected = 2 * reference(q, k, v, LAYOUT, config) - 3
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_more_budget_keeps_what_less_budget_kept(order: str) -> None:
    q, k, _ = tensors()
    masks = [
        critical_blocks(
            q, k, LAYOUT, SparseConfig(sparsity=s, q_block=64, kv_block=64, order=order)
        )
        for s in (0.95, 0.75, 0.5, 0.25, 0.0)
    ]
    for small, large in pairwise(masks):
        assert bool((large | ~small).all())


def test_own_blocks_are_always_kept() -> None:
    q, k, _ = tensors()
    for q_block, kv_block in BLOCKS:
        config = SparseConfig(sparsity=0.98, q_block=q_block, kv_block=kv_block, neighbours=False)
        mask = critical_blocks(q, k, LAYOUT, config)
        per_q = q_block // kv_block
        for i in range(mask.shape[-2]):
            assert bool(mask[:, :, i, i * per_q : (i + 1) * per_q].all())
            assert bool((mask[:, :, i].sum(-1) <= max(per_q, config.top_k(mask.shape[-1]))).all())


def test_equal_probabilities_go_to_the_lowest_block() -> None:
    """Identical keys: every whole block has the same probability, the ragged one has less."""
    layout = TokenLayout((5, 8, 10), 400)  # 6 whole blocks of 64 and one of 16
    q, k, _ = tensors(layout)
    k = k[:, :, :1].expand_as(k)
    config = SparseConfig(0.55, 64, 64, rectification="paper", order="raster", neighbours=False)
    mask = critical_blocks(q, k, layout, config)
    keep = config.top_k(7)
    assert keep == 3
    for i in range(7):
        chosen = [i, *(j for j in range(7) if j != i)][:keep]
        assert mask[0, 0, i].nonzero().flatten().tolist() == sorted(chosen)


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 63), (1, 1, 65), (2, 8, 8), (1, 3, 43)])
def test_tiny_grids(rectification: str, grid: tuple[int, int, int]) -> None:
    layout = TokenLayout(grid, math.prod(grid) + 2, video_start=1)
    q, k, v = tensors(layout)
    config = SparseConfig(sparsity=0.98, rectification=rectification, neighbours=False, tail_keys=1)
    expected = oracle_attention(q, k, v, layout, config)
    out = reference(q, k, v, layout, config)
    assert relative_l2(out, expected.out) < MAX_RELATIVE_L2


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_large_logits_stay_finite(rectification: str) -> None:
    """One-hot rows in fp32: every exponential is taken relative to a maximum."""
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification=rectification)
    out = reference(30 * q, 30 * k, v, LAYOUT, config)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_chunks_do_not_change_the_result(
    rectification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory bound of the loop over q-blocks, forced down to one q-block at a time."""
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64, rectification=rectification)
    at_once = reference(q, k, v, LAYOUT, config)
    monkeypatch.setattr(reference_module, "_CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    torch.testing.assert_close(reference(q, k, v, LAYOUT, config), at_once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rectification", RECTIFICATIONS)
def test_fused_and_plain_softmax_agree(rectification: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU takes torch's fused attention, a GPU the formula itself."""
    q, k, v = tensors()
    config = SparseConfig(sparsity=0.75, q_block=128, kv_block=64, rectification=rectification)
    fused = reference(q, k, v, LAYOUT, config)
    monkeypatch.setattr(
        reference_module, "fused_softmax_attention", reference_module.softmax_attention
    )
    assert relative_l2(fused, reference(q, k, v, LAYOUT, config)) < 1e-6


def test_dense_attention_is_dense() -> None:
    q, k, v = tensors()
    assert relative_l2(dense_attention(q, k, v), oracle_dense(q, k, v)) < MAX_RELATIVE_L2
    few = q[:, :, :5]
    assert relative_l2(dense_attention(few, k, v), oracle_dense(few, k, v)) < MAX_RELATIVE_L2


def test_bad_inputs_are_named() -> None:
    q, k, v = tensors()
    config = SparseConfig()
    with pytest.raises(ConfigError, match="layout"):
        reference(q, k, v, TokenLayout((1, 2, 3), 6), config)
    with pytest.raises(ConfigError, match="shape of k"):
        reference(q, k[:, :, 1:], v, LAYOUT, config)
    with pytest.raises(ConfigError, match="dtype of v"):
        reference(q, k, v.half(), LAYOUT, config)
    with pytest.raises(ConfigError, match="shape of q"):
        reference(q[0], k, v, LAYOUT, config)
    with pytest.raises(ConfigError, match="backend"):
        rectified_attention(q, k, v, LAYOUT, config, backend="fast")
