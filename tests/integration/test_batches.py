"""Batches of conditions, context windows and areas: shapes that change from call to call."""

from __future__ import annotations

import re

import pytest
import torch

from .expectations import EXACT, check_wholly_sparse, relative_error
from .graphs import SCENES, STEPS, Graph, Link, model_node, rectified, sampled

WAN = SCENES["wan21_t2v"]


def grids(log: str) -> set[tuple[int, ...]]:
    """Token grids (T, H, W) our node's verbose lines mention."""
    return {tuple(map(int, found)) for found in re.findall(r"grid \((\d+), (\d+), (\d+)\)", log)}


def check_exact_and_sparse(comfy, scene, **options) -> list[dict]:
    """The sparse path is exact with all blocks kept; sparse runs are finite and differ.

    Returns:
        the reports of the sparse run.
    """
    dense = comfy.dense(scene, **options)
    patch = options.pop("patch", None)

    def run(**settings):
        ours = rectified(**settings)
        return comfy.run(
            sampled(
                scene,
                (lambda graph, model: ours(graph, patch(graph, model))) if patch else ours,
                **options,
            )
        )

    exact = run(top_p=1.0)
    assert relative_error(exact.samples, dense) < EXACT
    assert all(report["dense"] == 0 < report["sparse"] for report in exact.reports)
    sparse = run(sparsity=0.75)
    assert torch.isfinite(sparse.samples).all()
    assert relative_error(sparse.samples, dense) > 1e-3
    for report in sparse.reports:
        report["grids"] = grids(sparse.log)
    return sparse.reports


@pytest.mark.parametrize("name", ["wan21_i2v", "wan22_i2v_a14b", "wan_vace", "hunyuan15_t2v"])
def test_guidance_with_equal_shapes(comfy, name):
    """cfg > 1: conditional and unconditional text run as one batch, or one after the other."""
    scene = SCENES[name]
    for report in check_exact_and_sparse(comfy, scene, cfg=5.0):
        per_step = report["forwards"] // STEPS
        assert per_step in (1, 2)  # the server decides by its free memory
        check_wholly_sparse(report, scene, forwards_per_step=per_step)


@pytest.mark.parametrize("name", ["wan21_t2v", "hunyuan15_t2v", "minimax_h3_i2v"])
def test_guidance_with_other_text_length(comfy, name):
    """Negative text of another length runs by itself; its sequence has another length then."""
    scene = SCENES[name]
    comfy.require(scene)
    (report,) = check_exact_and_sparse(comfy, scene, cfg=5.0, negative_tokens=61)
    assert report["forwards"] == 2 * STEPS
    check_wholly_sparse(report, scene, forwards_per_step=2)


@pytest.mark.parametrize("name", ["wan21_t2v", "hunyuan15_t2v"])
def test_batch_of_latents(comfy, name):
    scene = SCENES[name]
    (report,) = check_exact_and_sparse(comfy, scene, batch=2)
    check_wholly_sparse(report, scene)


def test_context_windows(comfy):
    """Windows over 9 latent frames: 3 per window, and one more in windows that newer cores fix."""
    windows = model_node(
        "WanContextWindowsManual",
        context_length=9,
        context_overlap=4,
        context_schedule="standard_static",
        context_stride=1,
        closed_loop=False,
        fuse_method="pyramid",
        freenoise=False,
        retain_first_frame=False,
        split_conds_to_windows=False,
    )
    (report,) = check_exact_and_sparse(comfy, WAN, patch=windows, latent=(9, 22, 26))

    frames = {grid[0] for grid in report["grids"]}
    assert frames <= {3, 4}
    assert {grid[1:] for grid in report["grids"]} == {(11, 13)}
    assert report["forwards"] >= 4 * STEPS
    check_wholly_sparse(report, WAN, forwards_per_step=report["forwards"] // STEPS)


def _left_part(graph: Graph, positive: Link) -> Link:
    """The text for the left half of the picture, and another for all of it."""
    area = graph.add(
        "ConditioningSetAreaPercentageVideo",
        conditioning=positive,
        width=0.5,
        height=1.0,
        temporal=1.0,
        x=0.0,
        y=0.0,
        z=0.0,
        strength=1.0,
    )
    width = graph.nodes[positive[0]]["inputs"]["width"]
    whole = graph.add("RSPATestConditioning", tokens=40, width=width, seed=300, extras="{}")
    return graph.add("ConditioningCombine", conditioning_1=area, conditioning_2=whole)


def test_area_conditions(comfy):
    """An area crops the latent to 13 columns, an odd number: the token grid is 7 wide there."""
    (report,) = check_exact_and_sparse(comfy, WAN, conditioning=_left_part)

    assert report["grids"] == {(5, 11, 13), (5, 11, 7)}
    check_wholly_sparse(report, WAN, forwards_per_step=2)
