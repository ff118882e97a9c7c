"""The ramp in ComfyUI's own samplers, with the trained small model: one sampler, and two."""

from __future__ import annotations

import pytest

from rectified_spaattn.rspa_core.run.schedule import Position, SparsitySchedule, even_course

from .comfy_server import PROJECT_ROOT
from .expectations import relative_error
from .graphs import Graph, Link, rectified

CHECKPOINT = PROJECT_ROOT / "tools" / "tiny_wan" / "checkpoint"
MODEL = "trained_tiny_wan.safetensors"
SHIFT, SCENE, SPARSITY = 3.0, 3, 0.5
RAMP = SparsitySchedule(SPARSITY, SPARSITY, "constant", ramp=1.0)
SAME_LEVELS = 5e-3
"""ComfyUI takes its levels out of a table of 1000: shares are off by as much."""
SAME_CLIP = 0.3
"""Relative difference to the dense clip below which it is the same one, not another."""


@pytest.fixture(scope="module")
def trained(comfy):
    """The server, which has the trained model, too."""
    link = comfy.server.base / "models" / "diffusion_models" / MODEL
    if not link.exists():
        link.symlink_to(CHECKPOINT / "tiny_wan.safetensors")
    return comfy


def planned_steps(num_steps: int) -> list[float]:
    """What a sampler that takes all steps is to keep."""
    course = even_course(num_steps, SHIFT)
    found = [
        RAMP.sparsity_at(Position(step, num_steps, percent, course))
        for step, percent in enumerate(course.percents)
    ]
    return [1.0 - each if isinstance(each, float) else 1.0 for each in found]


def clip(parts: list[dict], scheduler: str = "simple", **settings) -> dict:
    """One clip of 720 tokens, each part of the sampling by a sampler and a node of its own.

    Without settings the model is as it was.
    """
    graph = Graph()
    prompts = str(CHECKPOINT / "tiny_wan_prompts.safetensors")
    text = graph.add("RSPATestPrompt", path=prompts, key=f"prompt.{SCENE}")
    latent = graph.add("EmptyHunyuanLatentVideo", width=192, height=192, length=17, batch_size=1)
    for index, part in enumerate(parts):
        model: Link = graph.add("UNETLoader", unet_name=MODEL, weight_dtype="default")
        if settings:
            model = rectified(rectification="precise", **settings)(graph, model)
        latent = graph.add(
            "KSamplerAdvanced",
            model=graph.add("ModelSamplingSD3", model=model, shift=SHIFT),
            add_noise="disable" if index else "enable",
            noise_seed=7,
            cfg=1.0,
            sampler_name="euler",
            scheduler=scheduler,
            positive=text,
            negative=text,
            latent_image=latent,
            return_with_leftover_noise="enable" if index + 1 < len(parts) else "disable",
            **part,
        )
    graph.add("RSPATestSaveLatent", latent=latent, name="latent")
    return graph.nodes


def part(steps: int, first: int = 0, last: int = 10000) -> dict:
    return {"steps": steps, "start_at_step": first, "end_at_step": last}


def test_noisy_steps_keep_more_at_the_same_mean(trained):
    run = trained.run(clip([part(8)], sparsity=SPARSITY, ramp=1.0))
    report = run.report
    assert report["planned"] == pytest.approx(1.0 - SPARSITY, abs=1e-3)
    steps = report["steps"]
    assert [each["planned"] for each in steps] == pytest.approx(planned_steps(8), abs=SAME_LEVELS)
    # Twelve blocks of 64 tokens, whole ones only; neighbours may be more than that.
    assert all(each["density"] >= each["planned"] - 1 / 12 for each in steps)
    assert steps[0]["density"] > steps[5]["density"]
    assert report["reached"] == pytest.approx(report["density"])
    assert "0.50 planned on average over 8 steps" in run.log
    dense = trained.run(clip([part(8)]))
    assert relative_error(run.samples, dense.samples) < SAME_CLIP


@pytest.mark.parametrize("scheduler", ["karras", "beta", "linear_quadratic"])
def test_every_scheduler_keeps_the_mean(trained, scheduler):
    report = trained.run(clip([part(5)], scheduler, sparsity=SPARSITY, ramp=1.0)).report
    assert report["planned"] == pytest.approx(1.0 - SPARSITY, abs=1e-3)
    assert len({each["planned"] for each in report["steps"]}) > 2


def test_dense_steps_are_no_part_of_the_mean(trained):
    settings = {"sparsity": SPARSITY, "ramp": 1.0, "start_percent": 0.4}
    report = trained.run(clip([part(5)], **settings)).report
    assert report["planned"] == pytest.approx(1.0 - SPARSITY, abs=1e-3)
    of_ramp = [each["planned"] is not None for each in report["steps"]]
    assert of_ramp == [False, False, True, True, True]


def test_two_samplers_share_one_ramp(trained):
    """As with the experts of Wan 2.2: each sampler sees its own part of the levels only."""
    parts = [part(8, last=3), part(8, first=3)]
    run = trained.run(clip(parts, sparsity=SPARSITY, ramp=1.0))
    high, low = run.reports
    planned = [each["planned"] for report in (high, low) for each in report["steps"]]
    assert planned == pytest.approx(planned_steps(8), abs=SAME_LEVELS)
    assert sum(planned) / 8 == pytest.approx(1.0 - SPARSITY, abs=SAME_LEVELS)
    assert high["planned"] > 1.0 - SPARSITY > low["planned"]
    assert "both samplers: " in run.log
    assert "kept 0.50 planned on average over 8 steps" in run.log
    dense = trained.run(clip(parts))
    assert relative_error(run.samples, dense.samples) < SAME_CLIP
