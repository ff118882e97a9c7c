"""Attention frame by frame, called like Wan Animate2 calls it: joined, dense, or never joined."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rectified_spaattn.nodes.override import make_join, make_override
from rectified_spaattn.rspa_core import attention, rectified_attention, relative_l2
from rectified_spaattn.rspa_core.attention import (
    dense_attention,
    dense_attention_lse,
    merge_attention,
    plain_attention_lse,
)
from rectified_spaattn.rspa_core.run.calls import ForwardPlan
from rectified_spaattn.rspa_core.run.probe import ProbeSettings, parse_probe_steps
from rectified_spaattn.rspa_core.run.reasons import Reason, why
from rectified_spaattn.rspa_core.run.schedule import Position

from .patch_rig import make_executor, make_patch, run
from .rig import BLOCK, CONFIG, LAYOUT, OPTIONS, Rig, raising
from .stand_ins import GRID, HEAD_DIM, HEADS, TOKENS, dense, tensors, wan_model

FRAMES, PER_FRAME = GRID[0], GRID[1] * GRID[2]
PLAN = ForwardPlan(LAYOUT, CONFIG, by_frame=True)
SHAPE = (2, TOKENS, HEADS, HEAD_DIM)
POSE = (2, TOKENS - PER_FRAME, HEADS, HEAD_DIM)
WITH_POSE = {"pose_latents": torch.zeros(1, 16, FRAMES - 1, 24, 32)}


def animate2_block(call: Any, join: Any, skipped: int | None = None) -> Tensor:
    """`forward_gen` of ComfyUI's block: a call a frame with one buffer for all keys."""
    q, k, v = tensors(*SHAPE)
    _, k_pose, v_pose = tensors(*POSE, seed=1)
    k_all, v_all = (torch.cat([x, torch.empty_like(x[:, :PER_FRAME])], 1) for x in (k, v))
    x = torch.full_like(q, float("nan")).flatten(2)
    for frame in range(FRAMES):
        rows = slice(frame * PER_FRAME, (frame + 1) * PER_FRAME)
        keys, values = k, v
        if frame:
            own = slice((frame - 1) * PER_FRAME, frame * PER_FRAME)
            k_all[:, TOKENS:], v_all[:, TOKENS:] = k_pose[:, own], v_pose[:, own]
            keys, values = k_all, v_all
        if frame != skipped:
            x[:, rows] = call(q[:, rows].flatten(2), keys.flatten(2), values.flatten(2))
    return join({"x": x, "q": q, "k": k, "transformer_options": OPTIONS})


def full() -> Tensor:
    return animate2_block(lambda q, k, v: dense(q, k, v, HEADS), lambda args: args["x"])


def through(rig: Rig, **kwargs: Any) -> Tensor:
    return animate2_block(rig.wan, make_join(rig.forward), **kwargs)


def heads_first(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def test_rows_are_the_sparse_video_and_the_exact_pose() -> None:
    rig = Rig(PLAN)
    out = heads_first(through(rig))

    q, k, v = (x.transpose(1, 2) for x in tensors(*SHAPE))
    _, k_pose, v_pose = (x.transpose(1, 2) for x in tensors(*POSE, seed=1))
    video, stats = rectified_attention(q, k, v, LAYOUT, CONFIG, return_stats=True, return_lse=True)
    assert torch.equal(out[:, :, :PER_FRAME], video[:, :, :PER_FRAME]), "the reference has no pose"
    for frame in range(1, FRAMES):
        rows = slice(frame * PER_FRAME, (frame + 1) * PER_FRAME)
        own = slice((frame - 1) * PER_FRAME, frame * PER_FRAME)
        pose = dense_attention_lse(q[:, :, rows], k_pose[:, :, own], v_pose[:, :, own])
        expected, _ = merge_attention(video[:, :, rows], stats.lse[:, :, rows], *pose)
        assert relative_l2(out[:, :, rows], expected) < 1e-6
    assert relative_l2(out, heads_first(full())) > 1e-2
    assert dict(rig.tally.sparse) == {BLOCK: 1}
    assert rig.dense_reasons == {}
    assert rig.run.close(rig.forward, out) is None
    assert rig.forward.density_sums == {BLOCK: pytest.approx(float(stats.density))}


def test_dense_forward_takes_the_dense_path_in_every_frame() -> None:
    reason = why(Reason.ZERO_SPARSITY)
    rig = Rig(ForwardPlan(LAYOUT, None, reason, by_frame=True))
    assert torch.equal(through(rig), full())
    assert rig.dense_reasons == {reason.text: 1}


def test_probe_does_not_measure_them() -> None:
    probed = replace(PLAN, position=Position(0, 4))
    rig = Rig(probed, probe=ProbeSettings(parse_probe_steps("1, -1")))
    assert torch.equal(through(rig), full())
    assert rig.dense_reasons == {Reason.FRAMES_NOT_PROBED.value: 1}


def test_video_that_fails_is_dense() -> None:
    def attend(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory")

    rig = Rig(PLAN, attend=attend)
    assert relative_l2(through(rig), full()) < 1e-6
    assert rig.dense_reasons == {"RuntimeError: no memory": 1}
    assert not rig.tally.sparse
    assert any("no memory" in warning for warning in rig.warnings)


def test_own_attention_of_the_pose_is_counted_and_left_alone() -> None:
    rig = Rig(PLAN)
    q, k, v = (x.flatten(2) for x in tensors(*POSE))
    out = rig.wan(q, k, v)
    assert torch.equal(out, dense(q, k, v, HEADS))
    joined = make_join(rig.forward)({"x": out, "q": q.unflatten(-1, (HEADS, -1))})
    assert joined is out
    assert rig.dense_reasons == {Reason.POSE_BRANCH.value: 1}


def test_a_pose_as_long_as_the_video_is_not_taken_for_it() -> None:
    """Of a model with a frame more than is known, where the pose has one more, too."""
    rig = Rig(PLAN)
    qkv = [x.flatten(2) for x in tensors(*SHAPE)]
    assert torch.equal(rig.wan(*qkv), dense(*qkv, HEADS))
    reason = why(Reason.OTHER_LENGTH, TOKENS, TOKENS - PER_FRAME)
    assert rig.dense_reasons == {reason.text: 1}


def test_forward_with_the_pose_is_not_timed() -> None:
    """With a cache only the first has it, which would make the others seem fast."""
    rig = Rig(ForwardPlan(LAYOUT, None, why(Reason.ZERO_SPARSITY), by_frame=True))
    times = rig.run.report._dense_seconds
    rig.wan(*(x.flatten(2) for x in tensors(*POSE)))
    rig.run.close(rig.forward, torch.zeros(1))
    assert not times
    rig.forward = rig.run.open(rig.forward.plan, torch.device("cpu"))
    rig.override = make_override(rig.forward)
    through(rig)
    rig.run.close(rig.forward, torch.zeros(1))
    assert len(times) == 1


@pytest.mark.parametrize("frame", [1, FRAMES - 1])
def test_missing_frame_has_the_forward_repeated(frame: int) -> None:
    rig = Rig(PLAN)
    through(rig, skipped=frame)
    again = rig.run.close(rig.forward, torch.zeros(1))
    assert again is not None
    assert again.plan.config is None
    assert rig.run.failures.final_reason == why(Reason.NOT_JOINED)


@pytest.mark.parametrize("is_closed", [True, False], ids=["to be repeated", "interrupted"])
def test_parts_that_are_never_joined_are_freed_at_once(is_closed: bool) -> None:
    """They are keys and values of the whole video, and a repeat needs the memory."""
    rig = Rig(PLAN)
    q, k, v = tensors(1, TOKENS, HEADS * HEAD_DIM)
    kept = weakref.ref(k.untyped_storage())
    gc.disable()
    try:
        rig.wan(q[:, :PER_FRAME], k, v)
        del k
        assert kept() is not None
        if is_closed:
            assert rig.run.close(rig.forward, torch.zeros(1)) is not None
        else:
            del rig.forward, rig.override
        assert kept() is None
    finally:
        gc.enable()


def test_what_outlives_a_block_is_made_under_the_guard() -> None:
    is_open = False

    @contextmanager
    def guard() -> Iterator[None]:
        nonlocal is_open
        is_open = True
        yield
        is_open = False

    class Stats(SimpleNamespace):
        @property
        def density(self) -> Tensor:
            assert is_open, "the density is read when the forward is over"
            return torch.ones(())

    def attend(q: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Stats]:
        return q, Stats(lse=torch.zeros(q.shape[:-1]))

    rig = Rig(PLAN, attend=attend, guard=guard)
    through(rig)
    assert dict(rig.tally.sparse) == {BLOCK: 1}


def test_patch_joins_before_the_functions_of_other_nodes() -> None:
    """Through the wrapper of a model call: the latent is that of a block."""
    seen: list[Tensor] = []

    def other(args: dict[str, Any]) -> Tensor:
        seen.append(args["x"])
        return args["x"]

    patch = make_patch()
    out = run(patch, animate2_executor(), conds=WITH_POSE, patches={"attn1_patch": [other]})
    expected = through(Rig(PLAN))
    assert torch.equal(out, expected)
    assert torch.equal(seen[0], expected)
    assert patch.run.report.record().as_dict()["sparse"] == 1


def test_model_that_never_joins_is_run_again_dense() -> None:
    patch = make_patch()
    out = run(patch, animate2_executor(joins=False), conds=WITH_POSE)
    assert torch.equal(out, full())
    record = patch.run.report.record().as_dict()
    assert record["sparse"] == 0
    assert record["reasons"] == {Reason.NOT_JOINED.value: 1}
    assert [text for text in record["warnings"] if "not joined" in text]


def animate2_executor(joins: bool = True) -> Any:
    """A model of one block, whose output is that block's."""

    def forward(x: Tensor, options: dict[str, Any]) -> Tensor:
        override = options["optimized_attention_override"]
        inner = {**OPTIONS, **options}

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return override(dense, q, k, v, heads=HEADS, transformer_options=inner)

        def join(args: dict[str, Any]) -> Tensor:
            for function in options.get("patches", {}).get("attn1_patch", ()) if joins else ():
                args = {**args, "x": function(args)}
            return args["x"]

        return animate2_block(call, join)

    return make_executor(wan_model(rope_encode_pose=object()), forward)


def test_logarithms_of_dense_attention() -> None:
    q, k, v = (x.transpose(1, 2) for x in tensors(1, 70, HEADS, HEAD_DIM))
    out, lse = dense_attention_lse(q[:, :, :50], k, v)
    assert relative_l2(out, dense_attention(q[:, :, :50], k, v)) < 1e-6
    scores = HEAD_DIM**-0.5 * (q[:, :, :50] @ k.mT)
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-5)
    torch.testing.assert_close((out, lse), plain_attention_lse(q[:, :, :50], k, v))


@pytest.mark.parametrize("turned", range(3), ids="qkv")
def test_logarithms_of_operands_whose_channels_are_apart(turned: int) -> None:
    qkv = [x.transpose(1, 2) for x in tensors(1, 70, HEADS, HEAD_DIM)]
    expected = dense_attention_lse(*qkv)
    qkv[turned] = qkv[turned].mT.contiguous().mT
    torch.testing.assert_close(dense_attention_lse(*qkv), expected)


def test_logarithms_where_flash_attention_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: torch has another fused kernel, which fills the logarithms up."""
    qkv = tuple(x.transpose(1, 2) for x in tensors(1, 70, HEADS, HEAD_DIM))
    out, lse = plain_attention_lse(*qkv)
    fused = [
        raising(RuntimeError("USE_FLASH_ATTENTION was not enabled for build.")),
        lambda: (out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32)), None, None),
    ]
    monkeypatch.setattr(attention, "_fused_with_lse", lambda *args: iter(fused))
    assert dense_attention_lse(*qkv)[0] is out
    assert torch.equal(dense_attention_lse(*qkv)[1], lse)
    del fused[1]
    torch.testing.assert_close(dense_attention_lse(*qkv), (out, lse))


def test_fused_attention_of_a_gpu_is_called_as_torch_has_it() -> None:
    with FakeTensorMode():
        q, k, v = (torch.empty(2, HEADS, 64, 128, device="cuda", dtype=torch.half) for _ in "qkv")
        found = [attend() for attend in attention._fused_with_lse(q, k, v, None)]
    assert len(found) == 2
    for out, lse, *_ in found:
        assert out.shape == q.shape
        assert lse.shape == q.shape[:-1]
        assert lse.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_logarithms_of_dense_attention_on_a_gpu(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    q, k, v = (x.transpose(1, 2).cuda().to(dtype) for x in tensors(2, 333, 3, 128))
    out, lse = dense_attention_lse(q[:, :, :77], k, v)
    expected, logs = plain_attention_lse(q[:, :, :77], k, v)
    assert relative_l2(out.float(), expected.float()) < 1e-2
    torch.testing.assert_close(lse, logs, atol=1e-2, rtol=1e-3)
    other, other_lse = dense_attention_lse(q[:, :, :77], k, v, torch.zeros(1, 333, device="cuda"))
    assert relative_l2(other.float(), expected.float()) < 1e-2
    torch.testing.assert_close(other_lse, logs, atol=1e-2, rtol=1e-3)
