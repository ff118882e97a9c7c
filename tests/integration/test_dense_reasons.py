"""What must not run sparse stays dense, to the last bit, and the report says why."""

from __future__ import annotations

import pytest
import torch

from .expectations import has_compiler
from .graphs import SCENES, STEPS, Scene, chain, model_node, rectified, sampled


@pytest.mark.parametrize("name", ["wan21_t2v", "wan22_i2v_a14b", "hunyuan_t2v", "hunyuan15_i2v"])
def test_too_few_tokens(comfy, name):
    scene = SCENES[name]
    run = comfy.run(sampled(scene, rectified(min_tokens=716)))

    assert torch.equal(run.samples, comfy.dense(scene))
    calls = STEPS * sum(block[2] for block in scene.model.attention_blocks)
    for report in run.reports:
        assert report["sparse"] == 0
        assert report["density"] is None
        assert report["reasons"] == {"715 video tokens, below min_tokens 716": calls}


@pytest.mark.parametrize(
    "name", ["wan21_t2v", "hunyuan_t2v", "minimax_h3_t2v", "ltx_video", "ltx_av"]
)
def test_a_subclass_with_an_added_stream_of_tokens(comfy, name):
    """It has all parts of a known model, and 143 tokens that nothing here knows about."""
    scene = SCENES[name]
    comfy.require(scene)
    unknown = model_node("RSPATestAddedStream")
    dense = comfy.dense(scene, patch=unknown)
    run = comfy.run(sampled(scene, chain(rectified(), unknown)))

    assert torch.equal(run.samples, dense)
    assert not torch.equal(dense, comfy.dense(scene)), "the stream takes part"
    assert run.report["sparse"] == 0
    (reason,) = run.report["reasons"]
    found, expected = (int(word) for word in reason.split() if word.isdigit())
    assert reason == f"{found} tokens where {expected} were expected"
    assert found == expected + 143


@has_compiler
def test_autoregressive_sampling_stays_dense_and_runs_to_its_end(comfy):
    """Chunks of three frames beside a cache of keys, which a repeated call would overflow."""
    if not comfy.object_info("SamplerARVideo"):
        pytest.skip("this ComfyUI has no autoregressive sampler")
    scene = Scene(("wan_causal",), (6, 22, 26), "basic_guider")

    def sample(patch):
        nodes = sampled(scene, patch)
        (chosen,) = [node for node in nodes.values() if node["class_type"] == "KSamplerSelect"]
        chosen |= {"class_type": "SamplerARVideo", "inputs": {"num_frame_per_block": 3}}
        return comfy.run(nodes)

    compiled = model_node("TorchCompileModel", backend="inductor")
    dense, run = sample(compiled), sample(chain(rectified(), compiled))
    assert torch.equal(run.samples, dense.samples)
    assert run.report["forwards"] == 2 * (STEPS + 1), "two chunks, each once more for the cache"
    (warning,) = run.report["warnings"]
    assert warning.startswith("this model stays dense: autoregressive sampling")


def test_outside_the_percent_range(comfy):
    scene = SCENES["wan21_t2v"]
    run = comfy.run(sampled(scene, rectified(start_percent=0.99)))

    assert torch.equal(run.samples, comfy.dense(scene))
    assert run.report["sparse"] == 0
    assert run.report["reasons"] == {"schedule: first 99 %": 2 * STEPS}


def test_a_cpu_is_dense_unless_the_reference_is_asked_for(comfy):
    scene = SCENES["wan21_t2v"]
    run = comfy.run(sampled(scene, rectified(backend="auto")))

    assert torch.equal(run.samples, comfy.dense(scene))
    assert run.report["sparse"] == 0
    (reason,) = run.report["reasons"]
    assert "full attention is faster on a CPU" in reason


def test_warns_when_attention_is_never_called(comfy):
    """A pack that replaces the attention modules altogether: said once, nothing breaks."""
    scene = SCENES["wan21_t2v"]
    run = comfy.run(sampled(scene, rectified(dense_blocks="0-1")))
    assert "installed, but" not in run.log

    bypassed = chain(rectified(), model_node("RSPATestBypassAttention"))
    bypass = comfy.run(sampled(scene, bypassed))
    said = [line for line in bypass.log.splitlines() if "installed, but no attention" in line]
    assert ["RSPA_REPORT" in line for line in said] == [False, True], "once, and in the record"
    assert bypass.report["sparse"] == bypass.report["dense"] == 0
