"""Our node together with other model nodes, in either order."""

from __future__ import annotations

import pytest
import torch

from .expectations import (
    COMPILED,
    EXACT,
    check_wholly_sparse,
    expected_calls,
    has_compiler,
    relative_error,
    steps_with_sparse_calls,
)
from .graphs import SCENES, STEPS, chain, model_node, rectified, sampled, scheduled, unpatched

WAN = SCENES["wan21_t2v"]
HUNYUAN = SCENES["hunyuan_t2v"]


def test_schedule_reads_the_final_sampling_shift(comfy):
    """The percents of two samplers follow ModelSamplingSD3 wherever it stands.

    The steps of the second begin at 1/2, 2/3 and 5/6 of the sampling; judged by the checkpoint's
    own shift instead of the node's, the first of them would begin at 0.62.
    """
    node, scene = rectified(start_percent=0.6), SCENES["wan22_t2v_a14b"]
    before = comfy.run(sampled(scene, node))
    after = comfy.run(sampled(scene, after_shift=node))

    assert [steps_with_sparse_calls(each) for each in before.reports] == [[], [1, 2]]
    assert [each["calls"] for each in before.reports] == [each["calls"] for each in after.reports]
    assert torch.equal(before.samples, after.samples)


@pytest.mark.parametrize("scheduler", ["simple", "karras", "linear_quadratic"])
def test_percents_are_shares_of_the_steps(comfy, scheduler):
    """By their noise the first 20 % would be 2, 1 and 6 of these 10 steps."""
    nodes = sampled(WAN, rectified(start_percent=0.2), steps=10)
    (sampler,) = [each for each in nodes.values() if each["class_type"] == "KSampler"]
    sampler["inputs"]["scheduler"] = scheduler
    assert steps_with_sparse_calls(comfy.run(nodes).report) == list(range(2, 10))


def test_schedule_node(comfy):
    """A connected schedule replaces the sparsity and percents on the node."""
    schedule = {"steps": "off, 0.6, 0.8"}
    run = comfy.run(sampled(WAN, scheduled(schedule, sparsity=0.0, end_percent=0.0)))

    assert steps_with_sparse_calls(run.report) == [1, 2]
    assert run.report["reasons"] == {"schedule: step is off": 2}


def test_dense_step_list_restarts_for_each_expert(comfy):
    """Wan 2.2: each expert's sampler has steps of its own, so -1 is the last of both."""
    scene = SCENES["wan22_i2v_a14b"]
    run = comfy.run(sampled(scene, scheduled({"dense_steps": "-1", "start_percent": 0.0})))

    assert [steps_with_sparse_calls(report) for report in run.reports] == [[0, 1], [0, 1]]


def test_dense_blocks(comfy):
    run = comfy.run(sampled(HUNYUAN, rectified(dense_blocks="0, single -1")))

    dense = {("double", 0), ("single", 1)}
    for _, block_type, index, sparse_calls, dense_calls in run.report["calls"]:
        is_dense = (block_type, index) in dense
        assert (sparse_calls, dense_calls) == ((0, 1) if is_dense else (1, 0))
    assert run.report["reasons"] == {"dense_blocks": 2 * STEPS}


def test_last_of_two_copies_acts(comfy):
    only = comfy.run(sampled(WAN, rectified(sparsity=0.75)))
    two = comfy.run(sampled(WAN, chain(rectified(sparsity=0.5), rectified(sparsity=0.75))))
    around = comfy.run(sampled(WAN, rectified(sparsity=0.5), after_shift=rectified(sparsity=0.75)))

    for run in (two, around):
        assert torch.equal(run.samples, only.samples)
        assert run.report["calls"] == only.report["calls"]
        assert run.report["density"] == only.report["density"]
        assert run.log.count("Rectified SpaAttn: sigma") == STEPS  # one wrapper, not two
        assert "installed, but" not in run.log

    # The first copy must not step in where the second stays dense.
    dense = comfy.run(sampled(WAN, chain(rectified(), rectified(min_tokens=716))))
    assert torch.equal(dense.samples, comfy.dense(WAN))


def test_disabled_node_changes_nothing(comfy):
    off = rectified(enabled=False)
    alone = comfy.run(sampled(WAN, off))
    assert torch.equal(alone.samples, comfy.dense(WAN))
    assert alone.reports == []
    assert "Rectified SpaAttn" not in alone.log

    upstream = comfy.run(sampled(WAN, chain(rectified(), off)))
    check_wholly_sparse(upstream.report, WAN)


def test_runs_do_not_leak_into_each_other(comfy):
    """The loader's model, cached by the server, stays dense; a repeated run repeats exactly."""
    first = comfy.run(sampled(WAN, rectified()))
    assert torch.equal(comfy.run(sampled(WAN)).samples, comfy.dense(WAN))
    second = comfy.run(sampled(WAN, rectified()))
    assert torch.equal(first.samples, second.samples)
    assert first.report["calls"] == second.report["calls"]


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours_first", "ours_last"])
def test_other_attention_override(comfy, ours_first):
    """Another pack's override keeps the calls that stay dense, and does not switch ours off."""
    ours = rectified(dense_blocks="1")
    theirs = model_node("RSPATestAttentionOverride", mode="pass")
    alone = comfy.run(sampled(WAN, ours))
    run = comfy.run(sampled(WAN, chain(*((ours, theirs) if ours_first else (theirs, ours)))))

    assert torch.equal(run.samples, alone.samples)
    assert run.report["calls"] == alone.report["calls"]
    # Per forward: the dense self-attention of block 1, and both blocks' cross-attention.
    assert run.log.count("RSPA_TEST_OVERRIDE") == 3 * STEPS


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours_first", "ours_last"])
def test_easy_cache(comfy, ours_first):
    """EasyCache answers some model calls itself: they count as forwards without attention calls."""
    cache = model_node(
        "EasyCache", reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=True
    )
    dense = comfy.dense(WAN, patch=cache, steps=6)

    def run(**settings):
        ours = rectified(**settings)
        return comfy.run(
            sampled(WAN, chain(*((ours, cache) if ours_first else (cache, ours))), steps=6)
        )

    exact, sparse = run(top_p=1.0), run(sparsity=0.75)
    assert relative_error(exact.samples, dense) < EXACT
    for result in (exact, sparse):
        skipped = result.log.count("] - skipping step")
        steps = steps_with_sparse_calls(result.report)
        assert skipped > 0
        assert len(steps) == 6 - skipped
        assert result.report["sparse"] == 2 * len(steps)
        assert result.report["dense"] == 0
        assert "installed, but" not in result.log
    assert torch.isfinite(sparse.samples).all()
    assert relative_error(sparse.samples, dense) > 1e-3


@has_compiler
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours_first", "ours_last"])
def test_torch_compile(comfy, ours_first):
    """Compiled, the decision still changes from step to step.

    ComfyUI's node drops the guards on transformer_options: an attention override that is traced
    would keep the first (here dense) step's decision.
    """
    ours = rectified(start_percent=0.2)
    compiled = model_node("TorchCompileModel", backend="inductor")
    eager = comfy.run(sampled(WAN, ours))
    run = comfy.run(sampled(WAN, chain(*((ours, compiled) if ours_first else (compiled, ours)))))

    assert steps_with_sparse_calls(run.report) == [1, 2]
    assert run.report["calls"] == eager.report["calls"]
    assert relative_error(run.samples, eager.samples) < COMPILED


@has_compiler
@pytest.mark.parametrize("name", ["minimax_h3_t2v", "ltx_av"])
def test_torch_compile_of_models_whose_blocks_are_labelled(comfy, name):
    """ComfyUI does not number the blocks of these: each is replaced with itself and a label."""
    scene = SCENES[name]
    comfy.require(scene)
    ours, compiled = (
        rectified(start_percent=0.2),
        model_node("TorchCompileModel", backend="inductor"),
    )
    eager = comfy.run(sampled(scene, ours))
    run = comfy.run(sampled(scene, chain(ours, compiled)))

    assert steps_with_sparse_calls(run.report) == [1, 2]
    assert run.report["calls"] == eager.report["calls"]
    assert run.report["reasons"] == eager.report["reasons"]
    assert relative_error(run.samples, eager.samples) < COMPILED


@has_compiler
def test_torch_compile_after_a_run_without_our_node(comfy):
    """Comparing with and without: the node is added to a graph that has run compiled before.

    The first call runs the old code, and its output stands: a second call may have effects.
    """
    scene = HUNYUAN  # compiled by no other test: the code must be new to the server
    compiled = model_node("TorchCompileModel", backend="inductor")
    steps = ", ".join(["off", *["0.75"] * (STEPS - 1)])
    eager = comfy.run(sampled(scene, scheduled({"steps": steps})))
    comfy.run(sampled(scene, compiled))
    run = comfy.run(sampled(scene, chain(rectified(), compiled)))

    assert steps_with_sparse_calls(run.report) == list(range(1, STEPS))
    assert run.report["forwards"] == STEPS
    assert relative_error(run.samples, eager.samples) < COMPILED


def test_skip_layer_guidance(comfy):
    """An extra forward without block 0: blocks are told by their label, not by counting calls."""
    skip = model_node(
        "SkipLayerGuidanceDiT",
        double_layers="0",
        single_layers="",
        scale=3.0,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
    )
    run = comfy.run(sampled(WAN, chain(rectified(top_p=1.0), skip), cfg=5.0))

    assert relative_error(run.samples, comfy.dense(WAN, patch=skip, cfg=5.0)) < EXACT
    assert steps_with_sparse_calls(run.report) == list(range(STEPS))
    calls = {(step, index): sparse for step, _, index, sparse, _ in run.report["calls"]}
    assert all(calls[step, 1] == calls[step, 0] + 1 for step in range(STEPS))


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "uni_pc"])
def test_samplers(comfy, sampler):
    """Heun evaluates at the next step's sigma, DPM-2 between two: attributed by sigma."""
    run = comfy.run(sampled(WAN, rectified(top_p=1.0), sampler=sampler))

    per_step = {"heun": [1, 2, 2], "dpm_2": [2, 2, 1], "uni_pc": [1, 1, 1]}[sampler]
    rows = expected_calls(WAN)
    for row in rows:
        row[3] = per_step[row[0]]
    assert run.report["calls"] == rows
    assert relative_error(run.samples, comfy.dense(WAN, sampler=sampler)) < EXACT


def test_patched_model_is_a_clone(comfy):
    """Two samplers in one graph, one with our node and one without, on the same loader."""
    nodes = sampled(WAN, rectified())
    dense_nodes = sampled(WAN, unpatched)
    offset = len(nodes)
    for node_id, node in dense_nodes.items():
        inputs = {
            name: [str(int(value[0]) + offset), value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        if node["class_type"] == "RSPATestSaveLatent":
            inputs["name"] = "dense"
        nodes[str(int(node_id) + offset)] = {**node, "inputs": inputs}
    loaders = [key for key, node in nodes.items() if node["class_type"] == "UNETLoader"]
    for node in nodes.values():  # both branches from the first loader
        if node["inputs"].get("model") == [loaders[1], 0]:
            node["inputs"]["model"] = [loaders[0], 0]
    del nodes[loaders[1]]

    run = comfy.run(nodes)
    assert torch.equal(run.latents["dense"], comfy.dense(WAN))
    check_wholly_sparse(run.report, WAN)
    assert relative_error(run.latents["latent"], run.latents["dense"]) > 1e-3
