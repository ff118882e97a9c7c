"""ComfyUI's MultiGPU CFG Split: a copy of the model and a thread for each device."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from .expectations import EXACT, check_wholly_sparse, relative_error
from .graphs import SCENES, STEPS, chain, model_node, rectified, sampled, unpatched

SPLIT = model_node("RSPATestTwoDevices")


@pytest.fixture(autouse=True)
def _has_split(comfy) -> None:
    if not comfy.object_info("MultiGPU_WorkUnits"):
        pytest.skip("this ComfyUI cannot split guidance over GPUs")


def devices(log: str) -> Counter[tuple[str, str]]:
    """Model calls by device and copy of the model."""
    return Counter(re.findall(r"RSPA_TEST_DEVICE (\S+) (\d+)", log))


@pytest.mark.parametrize("name", ["wan21_t2v", "hunyuan15_t2v"])
@pytest.mark.parametrize("order", ["before the split", "behind the split"])
def test_both_devices_are_sparse(comfy, name, order):
    scene = SCENES[name]

    def split(**settings):
        ours = rectified(**settings)
        patch = chain(ours, SPLIT) if order == "before the split" else chain(SPLIT, ours)
        return comfy.run(sampled(scene, patch, cfg=5.0))

    alone = comfy.run(sampled(scene, rectified(), cfg=5.0))
    run = split()
    # One condition each, on two copies of the model.
    assert sorted(devices(run.log).values()) == [STEPS, STEPS]
    assert len({device for device, _ in devices(run.log)}) == 2
    assert len({copy for _, copy in devices(run.log)}) == 2
    (report,) = run.reports
    check_wholly_sparse(report, scene, forwards_per_step=2)
    assert report["forwards"] == 2 * STEPS
    assert report["density"] == pytest.approx(alone.report["density"])
    assert relative_error(run.samples, alone.samples) < EXACT

    dense = comfy.dense(scene, cfg=5.0)
    assert relative_error(run.samples, dense) > 1e-3
    exact = split(top_p=1.0)
    assert relative_error(exact.samples, dense) < EXACT
    assert torch.equal(split().samples, run.samples)  # nothing is left of the runs between


def test_the_split_alone(comfy):
    """What the figures above rest on: the copies give what one model gives."""
    scene = SCENES["wan21_t2v"]
    run = comfy.run(sampled(scene, chain(unpatched, SPLIT), cfg=5.0))
    assert relative_error(run.samples, comfy.dense(scene, cfg=5.0)) < EXACT
