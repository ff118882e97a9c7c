"""The trained small Wan model samples the same dense latents in ComfyUI and in diffusers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rectified_spaattn.benchmarks.clips import model as clips_model

from .comfy_server import PROJECT_ROOT, Checkout, clean_environment
from .expectations import relative_error

PROBE = Path(__file__).with_name("tiny_wan_probe.py")
CHECKPOINT = PROJECT_ROOT / "tools" / "tiny_wan" / "checkpoint"
SAMPLING = clips_model.Sampling(size=(17, 128, 128), steps=4, cfg=2.0, shift=3.0)
SEEDS = {0: 11, 5: 12}
"""Scenes and the seeds of their noise."""
SAME = 1e-3
"""Largest relative difference between the latents of the two hosts (fp32)."""


@pytest.fixture(scope="module")
def in_diffusers() -> dict[int, Tensor]:
    """Dense latents `[1, 16, T, h, w]` of every scene."""
    pytest.importorskip("diffusers", reason="diffusers is not installed (make venv installs it)")
    model = clips_model.load_checkpoint(CHECKPOINT, torch.device("cpu"), torch.float32)
    return {
        scene: clips_model.sample(model, scene, [seed], SAMPLING, clips_model.DENSE).latents
        for scene, seed in SEEDS.items()
    }


@pytest.fixture(scope="module")
def noise() -> dict[int, Tensor]:
    """Drawn here once more, so that ComfyUI gets nothing that diffusers computed."""
    shape = (1, 16, *SAMPLING.latent_grid)
    return {
        scene: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for scene, seed in SEEDS.items()
    }


@pytest.fixture(scope="module")
def in_comfyui(
    checkout: Checkout, noise: dict[int, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], dict]:
    """What the probe wrote for this version: tensors, and the description of the model."""
    folder = tmp_path_factory.mktemp("tiny_wan_hosts")
    given, got = folder / "in.safetensors", folder / "out.safetensors"
    settings = {"steps": SAMPLING.steps, "cfg": SAMPLING.cfg, "shift": SAMPLING.shift}
    tensors = {f"noise.{scene}": value for scene, value in noise.items()}
    save_file(tensors, given, metadata={"settings": json.dumps(settings)})
    command = [checkout.python, PROBE, checkout.folder, CHECKPOINT, given, got]
    result = subprocess.run(
        [str(each) for each in command],
        env=clean_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    with safe_open(got, "pt") as file:
        described = json.loads(file.metadata()["model"])
    return load_file(got), described


def test_comfyui_loads_the_checkpoint_in_fp32(in_comfyui) -> None:
    _, described = in_comfyui
    assert described == {"class": "WAN21", "dtypes": ["torch.float32"]}


def test_noise_levels_are_the_same(in_comfyui) -> None:
    """ModelSamplingSD3 with the scheduler "simple" gives the levels used in diffusers."""
    tensors, _ = in_comfyui
    torch.testing.assert_close(tensors["levels"], torch.tensor(SAMPLING.levels))


@pytest.mark.parametrize("scene", SEEDS)
def test_dense_latents_are_the_same(
    in_comfyui, in_diffusers: dict[int, Tensor], noise: dict[int, Tensor], scene: int
) -> None:
    theirs, ours = in_comfyui[0][f"latents.{scene}"], in_diffusers[scene]
    assert theirs.shape == ours.shape == (1, 16, 5, 16, 16)
    assert torch.isfinite(theirs).all()
    assert theirs.std() > 0.1
    assert theirs.std(dim=(2, 3, 4)).max() > 0.1
    assert relative_error(theirs, noise[scene]) > 0.1
    assert relative_error(theirs, ours) <= SAME


def test_comparison_tells_scenes_apart(in_comfyui, in_diffusers: dict[int, Tensor]) -> None:
    """The limit is far below the difference between two scenes."""
    first, second = SEEDS
    assert relative_error(in_comfyui[0][f"latents.{first}"], in_diffusers[second]) > 100 * SAME
