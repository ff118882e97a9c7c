"""Wan Animate2, whose video attends frame by frame to itself and to one frame of the pose each."""

from __future__ import annotations

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig

from .expectations import COMPILED, EXACT, expected_density, has_compiler, relative_error
from .graphs import STEPS, WAN_IMAGE, WAN_LATENT, Scene, chain, model_node, rectified, sampled

POSE = "the pose's own attention, which may serve all steps"
FRAMES = {**WAN_IMAGE, "clip_vision": [1, 257, 1280]}
SCENE = Scene(
    ("wan_animate2",),
    WAN_LATENT,
    # The first frame of the video is the reference, which has no pose.
    extras={**FRAMES, "pose_video_latent": [1, 16, WAN_LATENT[0] - 1, *WAN_LATENT[1:]]},
)
CACHE = model_node("WanAnimate2Cache", device="cpu", dtype="default")


@pytest.fixture(autouse=True)
def only_where_it_is_known(comfy) -> None:
    if not comfy.object_info("WanAnimate2ToVideo"):
        pytest.skip("this ComfyUI has no WanAnimate2ToVideo")


def calls(report: dict) -> tuple[int, int]:
    """Sparse and dense calls of every block and step, if all have equally many."""
    ((sparse, dense),) = {tuple(row[3:]) for row in report["calls"]}
    assert {tuple(row[:3]) for row in report["calls"]} == {
        (step, kind, index) for step in range(STEPS) for kind, index, _ in block_list()
    }
    return sparse, dense


def block_list():
    return SCENE.model.attention_blocks


def test_attention_and_pose_matter(comfy):
    other = {**SCENE.extras, "pose_strength": 0.5}
    assert relative_error(comfy.dense(SCENE, extras=other), comfy.dense(SCENE)) > 1e-2
    still = {name: value for name, value in SCENE.extras.items() if "pose" not in name}
    assert relative_error(comfy.dense(SCENE, extras=still), comfy.dense(SCENE)) > 1e-2


def test_sparse_run(comfy):
    run = comfy.run(sampled(SCENE, rectified(sparsity=0.75)))

    assert calls(run.report) == (1, 1), "the whole video once, and the pose's own attention"
    assert run.report["reasons"] == {POSE: STEPS * len(block_list())}
    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64)
    assert run.report["density"] == pytest.approx(expected_density(SCENE.grid, config), abs=1e-5)
    assert torch.isfinite(run.samples).all()
    assert relative_error(run.samples, comfy.dense(SCENE)) > 1e-3


@pytest.mark.parametrize("rectification", ["paper", "precise"])
def test_exact_when_every_block_is_kept(comfy, rectification):
    """Both parts of every row, and their weights: the sums of their own keys' weights."""
    run = comfy.run(sampled(SCENE, rectified(top_p=1.0, rectification=rectification)))

    assert calls(run.report) == (1, 1)
    assert run.report["density"] == pytest.approx(1.0, abs=1e-5)
    assert relative_error(run.samples, comfy.dense(SCENE)) < EXACT


def test_sparsity_zero_is_dense(comfy):
    run = comfy.run(sampled(SCENE, rectified(sparsity=0.0)))

    assert run.report["sparse"] == 0
    blocks = STEPS * len(block_list())
    assert run.report["reasons"] == {"schedule: sparsity 0": blocks, POSE: blocks}
    assert torch.equal(run.samples, comfy.dense(SCENE))


def test_pose_is_computed_once_with_the_core_cache(comfy):
    run = comfy.run(sampled(SCENE, chain(rectified(top_p=1.0), CACHE)))

    assert run.report["reasons"] == {POSE: len(block_list())}
    assert run.report["sparse"] == STEPS * len(block_list())
    assert relative_error(run.samples, comfy.dense(SCENE)) < EXACT


@has_compiler
def test_torch_compile(comfy):
    compiled = model_node("TorchCompileModel", backend="inductor")
    ours = rectified(start_percent=0.2)
    eager = comfy.run(sampled(SCENE, ours))
    run = comfy.run(sampled(SCENE, chain(ours, compiled)))

    assert run.report["calls"] == eager.report["calls"]
    assert run.report["reasons"] == eager.report["reasons"]
    assert run.report["sparse"] == (STEPS - 1) * len(block_list())
    assert relative_error(run.samples, eager.samples) < COMPILED


def test_a_subclass_with_an_added_stream_of_tokens(comfy):
    """Video and pose have a frame more than is known; the pose is then as long as the video."""
    unknown = model_node("RSPATestAddedStream")
    dense = comfy.dense(SCENE, patch=unknown)
    run = comfy.run(sampled(SCENE, chain(rectified(), unknown)))

    assert torch.equal(run.samples, dense)
    assert run.report["sparse"] == 0
    (reason,) = run.report["reasons"]
    found, expected = (int(word) for word in reason.split() if word.isdigit())
    assert reason == f"{found} tokens where {expected} were expected"
    assert found == expected + 143


def test_strengths_and_guidance(comfy):
    """The reference's values are scaled in place, both conditions come in one batch."""
    options = {"extras": {**SCENE.extras, "pose_strength": 0.7, "reference_strength": 1.3}}
    dense = comfy.dense(SCENE, cfg=4.0, **options)
    run = comfy.run(sampled(SCENE, rectified(top_p=1.0), cfg=4.0, **options))

    assert run.report["sparse"] > 0
    assert relative_error(run.samples, dense) < EXACT


def test_without_a_pose_it_is_like_any_wan(comfy):
    still = {"extras": FRAMES}
    run = comfy.run(sampled(SCENE, rectified(top_p=1.0), **still))

    assert calls(run.report) == (1, 0)
    assert relative_error(run.samples, comfy.dense(SCENE, **still)) < EXACT
