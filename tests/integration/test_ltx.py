"""LTX: sparse is what the video attends to within itself; audio and guides are as without us."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from .expectations import (
    COMPILED,
    EXACT,
    check_wholly_sparse,
    expected_calls,
    has_compiler,
    relative_error,
)
from .graphs import (
    LTX_LATENT,
    SCENES,
    STEPS,
    Graph,
    Link,
    Start,
    chain,
    model_node,
    rectified,
    sampled,
)

VIDEO, AUDIO_VIDEO = SCENES["ltx_video"], SCENES["ltx_av"]
BLOCKS = 2
AREA = LTX_LATENT[1] * LTX_LATENT[2]
each_scene = pytest.mark.parametrize("scene", [VIDEO, AUDIO_VIDEO], ids=["video", "audio_video"])


def picture(graph: Graph) -> Link:
    """An image of the size of the video."""
    height, width = (32 * size for size in LTX_LATENT[1:])
    return graph.add("EmptyImage", width=width, height=height, batch_size=1, color=0x808080)


def guide(strength: float = 1.0, frame: int = 0, mask: float | None = None) -> Start:
    """ComfyUI's node that appends a picture as a guide behind the video.

    `mask`: of the picture, what its strength is to be taken times.
    """

    def start(graph: Graph, positive: Link, negative: Link, latent: Link):
        vae = graph.add("RSPATestInput", kind="ltx_vae")
        values = {"image": picture(graph), "frame_idx": frame, "strength": strength}
        if mask is not None:
            height, width = (32 * size for size in LTX_LATENT[1:])
            values["attention_mask"] = graph.add(
                "SolidMask", value=mask, width=width // 2, height=height
            )
        node, _ = graph.add(
            "LTXVAddGuide", positive=positive, negative=negative, vae=vae, latent=latent, **values
        )
        return [node, 0], [node, 1], [node, 2]

    return start


STRONGER = guide(2.0)


def guide_inputs(comfy) -> set[str]:
    """Names of the inputs of ComfyUI's node for guides."""
    inputs = comfy.object_info("LTXVAddGuide")["input"]
    return {*inputs["required"], *inputs.get("optional", ())}


def both(*starts: Start) -> Start:
    """One after the other."""

    def start(graph: Graph, positive: Link, negative: Link, latent: Link):
        for each in starts:
            positive, negative, latent = each(graph, positive, negative, latent)
        return positive, negative, latent

    return start


def first_frame(graph: Graph, positive: Link, negative: Link, latent: Link):
    """ComfyUI's node that starts the video with a picture, as the image-to-video template does."""
    vae = graph.add("RSPATestInput", kind="ltx_vae")
    latent = graph.add(
        "LTXVImgToVideoInplace", vae=vae, image=picture(graph), latent=latent, strength=1.0,
        bypass=False,
    )  # fmt: skip
    return positive, negative, latent


def option(name: str, value: str):
    """One of the transformer_options that guidance nodes set."""
    return model_node("RSPATestOption", name=name, value=value)


def test_audio_is_exact(comfy):
    """Where the audio does not listen to the video it is the same to the last bit."""
    alone = option("v2a_cross_attn", "false")
    dense = comfy.run(sampled(AUDIO_VIDEO, alone))
    sparse = comfy.run(sampled(AUDIO_VIDEO, chain(rectified(sparsity=0.75), alone)))
    check_wholly_sparse(sparse.report, AUDIO_VIDEO)
    assert relative_error(sparse.samples, dense.samples) > 1e-3
    assert torch.equal(sparse.latents["audio"], dense.latents["audio"])

    listening = comfy.run(sampled(AUDIO_VIDEO, rectified(top_p=1.0)))
    wanted = comfy.run(sampled(AUDIO_VIDEO)).latents["audio"]
    assert relative_error(listening.latents["audio"], wanted) < EXACT
    assert relative_error(dense.latents["audio"], wanted) > 1e-3


def test_audio_of_more_tokens_than_the_video(comfy):
    """Its calls are known to be the audio's: nothing is sparse or counted but the video's."""
    latent = (2, 5, 7)
    scene = replace(AUDIO_VIDEO, audio=math.prod(latent) + 30)
    run = comfy.run(sampled(scene, rectified(top_p=1.0), latent=latent))
    check_wholly_sparse(run.report, scene)
    assert relative_error(run.samples, comfy.dense(scene, latent=latent)) < EXACT


def test_audio_of_as_many_tokens_as_the_video(comfy):
    latent = (2, 5, 7)
    tokens = math.prod(latent)
    scene = replace(AUDIO_VIDEO, audio=tokens)
    run = comfy.run(sampled(scene, rectified(), latent=latent))
    assert torch.equal(run.samples, comfy.dense(scene, latent=latent))
    assert run.report["sparse"] == 0
    (reason,) = run.report["reasons"]
    assert reason == f"{tokens} video tokens are as many as the condition has"


@each_scene
def test_guides_are_exact_context(comfy, scene):
    dense = comfy.dense(scene, start=guide())
    run = comfy.run(sampled(scene, rectified(top_p=1.0), start=guide()))
    check_wholly_sparse(run.report, scene)
    assert run.report["tokens"] == math.prod(LTX_LATENT) + AREA
    assert run.report["grid"] == list(LTX_LATENT)
    assert relative_error(run.samples, dense) < EXACT

    sparse = comfy.run(sampled(scene, rectified(sparsity=0.75), start=guide()))
    check_wholly_sparse(sparse.report, scene)
    assert relative_error(sparse.samples, dense) > 1e-3


@each_scene
@pytest.mark.parametrize(
    "strengths",
    [guide(0.7), STRONGER, both(guide(0.6), guide(1.0, frame=16)), guide(0.0)],
    ids=["weaker", "stronger", "of two", "none"],
)
def test_guides_with_a_strength(comfy, scene, strengths):
    """Newer cores weigh their keys: sparse within the video, and with all else exact."""
    if strengths is STRONGER and "attention_mask" not in guide_inputs(comfy):
        pytest.skip("this ComfyUI has no strength above 1")
    dense = comfy.dense(scene, start=strengths)
    run = comfy.run(sampled(scene, rectified(top_p=1.0), start=strengths))
    check_wholly_sparse(run.report, scene)
    assert run.report["grid"] == list(LTX_LATENT)
    assert relative_error(run.samples, dense) < EXACT

    sparse = comfy.run(sampled(scene, rectified(sparsity=0.75), start=strengths))
    check_wholly_sparse(sparse.report, scene)
    assert relative_error(sparse.samples, dense) > 1e-3
    none = comfy.run(sampled(scene, rectified(sparsity=0.0), start=strengths))
    assert torch.equal(none.samples, dense)
    assert none.report["reasons"] == {"schedule: sparsity 0": BLOCKS * STEPS}


@has_compiler
def test_guides_with_a_strength_in_a_compiled_model(comfy):
    compiled = model_node("TorchCompileModel", backend="inductor")
    eager = comfy.run(sampled(VIDEO, rectified(), start=guide(0.7)))
    run = comfy.run(sampled(VIDEO, chain(rectified(), compiled), start=guide(0.7)))
    check_wholly_sparse(run.report, VIDEO)
    assert relative_error(run.samples, eager.samples) < COMPILED


@each_scene
def test_guides_with_a_mask_of_their_own(comfy, scene):
    if "attention_mask" not in guide_inputs(comfy):
        pytest.skip("this ComfyUI has no masks of guides")
    masked = guide(0.9, mask=0.5)
    dense = comfy.dense(scene, start=masked)
    assert relative_error(dense, comfy.dense(scene, start=guide(0.9))) > 1e-4
    run = comfy.run(sampled(scene, rectified(top_p=1.0), start=masked))
    check_wholly_sparse(run.report, scene)
    assert relative_error(run.samples, dense) < EXACT


@each_scene
def test_first_frame_of_a_picture(comfy, scene):
    """Its tokens have a noise level of their own and are tokens of the video like the others."""
    dense = comfy.dense(scene, start=first_frame)
    assert relative_error(dense, comfy.dense(scene)) > 1e-3
    run = comfy.run(sampled(scene, rectified(top_p=1.0), start=first_frame))
    check_wholly_sparse(run.report, scene)
    assert relative_error(run.samples, dense) < EXACT


def test_blocks_have_numbers(comfy):
    run = comfy.run(sampled(AUDIO_VIDEO, rectified(dense_blocks="-1")))
    assert run.report["reasons"] == {"dense_blocks": STEPS}
    for row, (step, kind, index, *_) in zip(
        run.report["calls"], expected_calls(AUDIO_VIDEO), strict=True
    ):
        assert row == [step, kind, index, *((1, 0) if index == 0 else (0, 1))]


def test_context_windows(comfy):
    """Windows of three frames of the video."""
    windows = model_node(
        "ContextWindowsManual", context_length=3, context_overlap=1,
        context_schedule="standard_static", context_stride=1, closed_loop=False,
        fuse_method="pyramid", dim=2, freenoise=False, split_conds_to_windows=False,
        cond_retain_index_list="", latent_retain_index_list="", causal_window_fix=True,
    )  # fmt: skip
    dense = comfy.dense(VIDEO, after_shift=windows)
    assert relative_error(dense, comfy.dense(VIDEO)) > 1e-3
    run = comfy.run(sampled(VIDEO, rectified(top_p=1.0), after_shift=windows))
    assert run.report["sparse"] == 2 * BLOCKS * STEPS
    assert run.report["dense"] == 0
    assert relative_error(run.samples, dense) < EXACT


def test_spatio_temporal_guidance(comfy):
    """One more pass a step, in which the attention of a block is left out altogether."""
    if not comfy.object_info("LTXVSpatioTemporalGuidance"):
        pytest.skip("this ComfyUI has no spatio-temporal guidance")
    values = {"scale": 1.0, "blocks": "1", "start_percent": 0.0, "end_percent": 1.0}
    other = model_node("LTXVSpatioTemporalGuidance", **values)
    dense = comfy.dense(AUDIO_VIDEO, after_shift=other)
    assert relative_error(dense, comfy.dense(AUDIO_VIDEO)) > 1e-3
    run = comfy.run(sampled(AUDIO_VIDEO, rectified(top_p=1.0), after_shift=other))
    assert relative_error(run.samples, dense) < EXACT
    assert run.report["calls"] == [
        [step, "double", index, 1 if index else 2, 0]
        for step in range(STEPS)
        for index in range(BLOCKS)
    ]
