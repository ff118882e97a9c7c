"""Guides with a strength, called like LTX calls them: rows of the video, then of the guides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rectified_spaattn.nodes.override import split_heads
from rectified_spaattn.rspa_core import TokenLayout, rectified_attention, relative_l2
from rectified_spaattn.rspa_core.attention import (
    dense_attention_lse,
    merge_attention,
    plain_attention_lse,
)
from rectified_spaattn.rspa_core.run import calls
from rectified_spaattn.rspa_core.run.calls import ForwardPlan
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.schedule import Position

from .rig import BLOCK, CONFIG, OPTIONS, Rig, raising
from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors

GUIDES = 150
LENGTH = TOKENS + GUIDES
LAYOUT = TokenLayout(GRID, LENGTH)
PLAN = ForwardPlan(LAYOUT, CONFIG)
KEEP_ALL = ForwardPlan(LAYOUT, replace(CONFIG, top_p=1.0))
REST = {"attn_precision": None, "low_precision_attention": False}
ONE_STRENGTH = torch.full((GUIDES,), 0.7)
STRENGTHS = {
    "one": ONE_STRENGTH,
    "stronger": torch.full((GUIDES,), 3.0),
    "of two guides": torch.cat([ONE_STRENGTH[:90], torch.full((GUIDES - 90,), 1.0)]),
    "of each token": torch.linspace(0.0, 1.0, GUIDES),
    "none": torch.zeros(GUIDES),
}


def masks(strengths: Tensor, video: int = TOKENS) -> tuple[Tensor, Tensor]:
    """`GuideAttentionMask` of ComfyUI: of the video's rows, `[1, 1, 1, N]`, and of the guides'."""
    added = strengths.clamp(min=torch.finfo(strengths.dtype).tiny).log()
    added = added.masked_fill(strengths == 0, torch.finfo(strengths.dtype).min)
    of_video = torch.zeros(1, 1, 1, video + len(strengths))
    of_video[..., video:] = added
    of_guides = torch.zeros(1, 1, len(strengths), video + len(strengths))
    of_guides[..., :video] = added[:, None]
    return of_video, of_guides


def ltx_block(
    call, q: Tensor, k: Tensor, v: Tensor, of_video: Tensor, of_guides: Tensor, **rest
) -> Tensor:
    """`_attention_with_guide_mask` of ComfyUI: `[B, N, H*D]` to the same."""
    start = of_video.shape[-1] - of_guides.shape[-2]
    out = torch.empty_like(q)
    out[:, :start] = call(q[:, :start], k, v, HEADS, mask=of_video, **REST, **rest)
    out[:, start:] = call(q[:, start:], k, v, HEADS, mask=of_guides, **REST, **rest)
    return out


def through(rig: Rig, strengths: Tensor = ONE_STRENGTH, batch: int = 1) -> Tensor:
    def call(*args, **kwargs) -> Tensor:
        return rig.override(dense, *args, transformer_options=OPTIONS, **kwargs)

    return ltx_block(call, *operands(batch), *masks(strengths))


def full(strengths: Tensor = ONE_STRENGTH, batch: int = 1) -> Tensor:
    return ltx_block(dense, *operands(batch), *masks(strengths))


def operands(batch: int) -> list[Tensor]:
    return tensors(batch, LENGTH, HEADS * HEAD_DIM)


@pytest.mark.parametrize("strengths", STRENGTHS.values(), ids=list(STRENGTHS))
def test_exact_when_every_block_is_kept(strengths: Tensor) -> None:
    rig = Rig(KEEP_ALL)
    out = through(rig, strengths, batch=2)
    torch.testing.assert_close(out, full(strengths, batch=2))
    assert dict(rig.tally.sparse) == {BLOCK: 1}
    assert not rig.dense_reasons, "the guides' rows are exact, and no call over the video"
    assert not torch.allclose(out, full(torch.ones(GUIDES), batch=2), atol=1e-4)


@pytest.mark.parametrize("least", [-math.inf, torch.finfo(torch.float32).min, -3e4])
def test_keys_without_any_weight(least: float) -> None:
    """Of another node than ComfyUI's own, too: 0/0 would make the frame black."""
    rig = Rig(KEEP_ALL)
    q, k, v = operands(1)
    mask = torch.zeros(1, 1, 1, LENGTH)
    mask[..., TOKENS:] = least
    out = rig.override(
        dense, q[:, :TOKENS], k, v, HEADS, mask=mask, transformer_options=OPTIONS, **REST
    )
    video = dense(q[:, :TOKENS], k[:, :TOKENS], v[:, :TOKENS], HEADS)
    torch.testing.assert_close(out, video)
    assert dict(rig.tally.sparse) == {BLOCK: 1}


def test_rows_are_the_sparse_video_and_the_exact_guides() -> None:
    rig = Rig(PLAN)
    out = split_heads(through(rig), HEADS)
    q, k, v = (split_heads(x, HEADS) for x in operands(1))
    own = TokenLayout(GRID, TOKENS)
    video, stats = rectified_attention(
        *(x[:, :, :TOKENS] for x in (q, k, v)), own, CONFIG, return_stats=True, return_lse=True
    )
    guides = dense_attention_lse(q[:, :, :TOKENS], k[:, :, TOKENS:], v[:, :, TOKENS:])
    assert stats.lse is not None
    expected, _ = merge_attention(video, stats.lse, guides[0], guides[1] + ONE_STRENGTH[0].log())
    torch.testing.assert_close(out[:, :, :TOKENS], expected)
    exact = split_heads(full(), HEADS)
    assert torch.equal(out[:, :, TOKENS:], exact[:, :, TOKENS:])
    assert relative_l2(out[:, :, :TOKENS], exact[:, :, :TOKENS]) > 1e-2
    densities, _ = rig.tally.finish(out)
    assert densities[BLOCK] == pytest.approx(float(stats.density))


def test_guides_of_as_many_tokens_as_the_video() -> None:
    """A control video: the rows of both calls are as many."""
    rig = Rig(ForwardPlan(TokenLayout(GRID, 2 * TOKENS), replace(CONFIG, top_p=1.0)))
    qkv = tensors(1, 2 * TOKENS, HEADS * HEAD_DIM)
    both = masks(torch.full((TOKENS,), 0.7))

    def call(*args, **kwargs) -> Tensor:
        return rig.override(dense, *args, transformer_options=OPTIONS, **kwargs)

    torch.testing.assert_close(ltx_block(call, *qkv, *both), ltx_block(dense, *qkv, *both))
    assert dict(rig.tally.sparse) == {BLOCK: 1}
    assert not rig.dense_reasons


def test_a_dense_step_counts_the_call_of_the_video_alone() -> None:
    rig = Rig(ForwardPlan(LAYOUT, None, why(Reason.DENSE_STEP)))
    assert torch.equal(through(rig), full())
    assert rig.dense_reasons == {"schedule: dense step": 1}


def test_a_failure_takes_the_dense_path() -> None:
    rig = Rig(PLAN, attend=raising(RuntimeError("out of memory")))
    assert torch.equal(through(rig), full())
    assert rig.dense_reasons == {"RuntimeError: out of memory": 1}


def test_the_mask_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values are waited for; all blocks of a forward share it."""
    rig, read = Rig(PLAN), []
    monkeypatch.setattr(
        calls, "read_weights", lambda *args: read.append(args) or torch.zeros(1, GUIDES)
    )
    qkv, both = operands(1), masks(ONE_STRENGTH)
    for index in range(3):
        options = {**OPTIONS, "block_index": index}

        def call(*args, options=options, **kwargs) -> Tensor:
            return rig.override(dense, *args, transformer_options=options, **kwargs)

        ltx_block(call, *qkv, *both)
    assert len(read) == 1
    assert len(rig.tally.sparse) == 3


@pytest.mark.parametrize(
    ("rows", "mask"),
    [
        (TOKENS - 1, torch.zeros(1, 1, 1, LENGTH)),
        (TOKENS, torch.ones(1, 1, 1, LENGTH)),
        (TOKENS, torch.zeros(1, 1, TOKENS, LENGTH)),
        (TOKENS, torch.ones(1, 1, 1, LENGTH, dtype=torch.bool)),
        (GUIDES, torch.zeros(1, 1, 1, LENGTH)),
    ],
    ids=["other rows", "over the video", "of each row", "no numbers", "rows of guides alone"],
)
def test_other_calls_of_some_rows_are_dense_with_a_reason(rows: int, mask: Tensor) -> None:
    q, k, v = operands(1)
    rig = Rig(PLAN)
    out = rig.override(
        dense, q[:, :rows], k, v, HEADS, mask=mask, transformer_options=OPTIONS, **REST
    )
    assert torch.equal(out, dense(q[:, :rows], k, v, HEADS, mask))
    assert rig.dense_reasons == {f"{rows} of {LENGTH} rows under a mask of their own": 1}


def test_the_probe_says_that_it_does_not_measure_them() -> None:
    plan = replace(PLAN, position=Position(0, 1))
    rig = Rig(plan, probe=ProbeSettings(parse_probe_steps("1")))
    assert torch.equal(through(rig), full())
    assert rig.dense_reasons == {Reason.WEIGHTS_NOT_PROBED.value: 1}
    assert rig.run.recorder is not None
    assert rig.run.recorder.is_empty


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logarithms_on_a_gpu(dtype: torch.dtype) -> None:
    """What the GPU computes at once, for odd numbers of keys and weights of nothing."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    q, k, v = (x.cuda() for x in tensors(2, 3, 300, 128, dtype=dtype))
    k, v = k[:, :, :77], v[:, :, :77]
    added = torch.randn(2, 77, device="cuda", dtype=dtype)
    added[:, 5] = torch.finfo(dtype).min
    out, lse = dense_attention_lse(q, k, v, added)
    expected, expected_lse = plain_attention_lse(q, k, v, added)
    assert relative_l2(out.float(), expected.float()) < 1e-2
    torch.testing.assert_close(lse, expected_lse, atol=1e-2, rtol=1e-3)
