"""Every model family runs from start to end with our node, and attention really is sparse."""

from __future__ import annotations

import pytest
import torch

from rectified_spaattn.rspa_core import SparseConfig

from .comfy_server import Run
from .expectations import EXACT, check_wholly_sparse, expected_density, relative_error
from .graphs import SCENES, STEPS, model_node, rectified, sampled

each_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))


@each_scene
def test_attention_matters(comfy, scene):
    """Without self-attention the latents are others: the comparisons below are not vacuous."""
    comfy.require(scene)
    without = comfy.run(sampled(scene, model_node("RSPATestAttentionOverride", mode="zero")))
    assert relative_error(without.samples, comfy.dense(scene)) > 0.05


@each_scene
def test_sparse_run(comfy, scene):
    comfy.require(scene)
    run = comfy.run(sampled(scene, rectified(sparsity=0.75, block_size="64")))

    config = SparseConfig(sparsity=0.75, q_block=64, kv_block=64)
    assert len(run.reports) == len(scene.experts)
    for report in run.reports:
        check_wholly_sparse(report, scene)
        assert report["forwards"] == STEPS
        assert report["density"] == pytest.approx(expected_density(scene.grid, config), abs=1e-5)
    assert torch.isfinite(run.samples).all()
    assert relative_error(run.samples, comfy.dense(scene)) > 1e-3


@each_scene
def test_exact_when_every_block_is_kept(comfy, scene):
    """top_p = 1 keeps all blocks: the sparse path itself must reproduce dense attention."""
    comfy.require(scene)
    run = comfy.run(sampled(scene, rectified(top_p=1.0)))

    for report in run.reports:
        check_wholly_sparse(report, scene)
        assert report["density"] == pytest.approx(1.0, abs=1e-5)
    check_equal(run, comfy.dense_run(scene))


@each_scene
def test_sparsity_zero_is_dense(comfy, scene):
    comfy.require(scene)
    run = comfy.run(sampled(scene, rectified(sparsity=0.0)))

    for report in run.reports:
        assert report["sparse"] == 0
        assert report["reasons"] == {"schedule: sparsity 0": report["dense"]}
    check_equal(run, comfy.dense_run(scene))


def check_equal(run: Run, dense: Run) -> None:
    """Video and, where the model makes it, sound are those of full attention."""
    assert set(run.latents) == set(dense.latents)
    for name, latent in dense.latents.items():
        assert relative_error(run.latents[name], latent) < EXACT, name


# Not LTX: there the sound listens to the video behind the sparse attention of the same block.
@pytest.mark.parametrize("name", [name for name in SCENES if name.startswith("minimax")])
def test_tokens_outside_the_video_are_exact(comfy, name):
    """Audio sampled along: sparse video in the last block of the only step leaves it as it is."""
    scene = SCENES[name]
    comfy.require(scene)
    dense = comfy.run(sampled(scene, steps=1))
    run = comfy.run(sampled(scene, rectified(sparsity=0.9, dense_blocks="0"), steps=1))

    assert run.report["calls"] == [[0, "double", 0, 0, 1], [0, "double", 1, 1, 0]]
    assert relative_error(run.samples, dense.samples) > 1e-3
    assert relative_error(run.latents["audio"], dense.latents["audio"]) < 1e-6


@pytest.mark.parametrize("name", ["hunyuan_t2v", "hunyuan15_t2v"])
def test_padding_of_the_text_is_left_out(comfy, name):
    """A text mask that ComfyUI hands to every attention call."""
    scene = SCENES[name]
    extras = {**scene.extras, "attention_mask": [scene.text_tokens, 9]}
    if name == "hunyuan15_t2v":
        del extras["conditioning_byt5small"]  # the core's mask covers the text alone
    dense = comfy.dense(scene, extras=extras)
    run = comfy.run(sampled(scene, rectified(top_p=1.0), extras=extras))

    assert relative_error(dense, comfy.dense(scene)) > 1e-3, "the mask matters"
    check_wholly_sparse(run.report, scene)
    assert relative_error(run.samples, dense) < EXACT


@pytest.mark.parametrize(
    "settings",
    [
        {"block_size": "128"},
        {"token_order": "raster"},
        {"token_order": "tile"},
        {"rectification": "precise"},
        {"rectification": "none"},
        {"sparsity": 0.9},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("name", ["wan21_t2v", "hunyuan_t2v"])
def test_settings(comfy, name, settings):
    """Every choice on the node reaches the attention calls and is reported as configured."""
    scene = SCENES[name]
    run = comfy.run(sampled(scene, rectified(**settings)))

    block = int(settings.get("block_size", "64"))
    config = SparseConfig(
        sparsity=settings.get("sparsity", 0.75),
        q_block=block,
        kv_block=block,
        order=settings.get("token_order", "gilbert"),
    )
    check_wholly_sparse(run.report, scene)
    assert run.report["density"] == pytest.approx(expected_density(scene.grid, config), abs=1e-5)
    assert torch.isfinite(run.samples).all()
    assert relative_error(run.samples, comfy.dense(scene)) > 1e-3
