"""The linear code: Wan's geometry, orthonormal rows, and pictures that survive a round trip."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rectified_spaattn.benchmarks.clips.picture_metrics import psnr

SIZE = (9, 64, 96)


@pytest.fixture(scope="module")
def latents(tiny: SimpleNamespace) -> ModuleType:
    return tiny.latents


@pytest.fixture(scope="module")
def batches(tiny: SimpleNamespace) -> list[Tensor]:
    """Three clips of every scene."""
    generator = torch.Generator().manual_seed(0)
    return list(tiny.clips.clips_of_every_scene(3, SIZE, generator, "cpu"))


@pytest.fixture(scope="module")
def code(latents: ModuleType, batches: list[Tensor]) -> Any:
    return latents.LinearCode.fit(batches)


def test_rows_are_orthonormal(code: Any) -> None:
    assert torch.allclose(code.basis @ code.basis.T, torch.eye(16), atol=1e-5)


def test_latents_have_unit_variance(code: Any, batches: list[Tensor]) -> None:
    found = torch.cat([code.encode(batch) for batch in batches])
    mean, std = found.mean(dim=(0, 2, 3, 4)), found.std(dim=(0, 2, 3, 4))
    assert torch.allclose(mean, torch.zeros(16), atol=1e-3)
    assert torch.allclose(std, torch.ones(16), atol=1e-3)


def test_fit_is_repeatable_and_takes_one_tensor(
    latents: ModuleType, code: Any, batches: list[Tensor]
) -> None:
    again = latents.LinearCode.fit(iter(batches))
    assert torch.equal(again.basis, code.basis)
    whole = latents.LinearCode.fit(torch.cat(batches))
    assert torch.allclose(whole.std, code.std, rtol=1e-3)


@pytest.mark.parametrize("size", [(1, 8, 8), (5, 16, 40), (33, 8, 16)])
def test_shapes(latents: ModuleType, code: Any, size: tuple[int, int, int]) -> None:
    video = torch.rand(2, 3, *size) * 2 - 1
    latent = code.encode(video)
    assert latent.shape == (2, 16, (size[0] + 3) // 4, size[1] // 8, size[2] // 8)
    assert latent.shape[2:] == latents.latent_shape(*size)
    assert code.decode(latent).shape == video.shape


def test_first_latent_frame_codes_the_first_frame_four_times(code: Any) -> None:
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    latent = code.encode(video)
    assert torch.equal(latent[:, :, :1], code.encode(video[:, :, :1]))
    # A latent frame further on that shows the same picture four times gets the same numbers.
    still = video[:, :, :1].expand(-1, -1, 5, -1, -1)
    first, second = code.encode(still).unbind(2)
    assert torch.allclose(first, second, atol=1e-5)
    changed = video.clone()
    changed[:, :, 5:] = 0
    assert torch.equal(code.encode(changed)[:, :, :2], latent[:, :, :2])


def test_code_is_linear_up_to_its_mean(code: Any) -> None:
    first, second = torch.rand(2, 1, 3, 5, 16, 16)
    both = code.encode((first + second) / 2)
    assert torch.allclose(both, (code.encode(first) + code.encode(second)) / 2, atol=1e-4)


def test_decoding_loses_nothing_of_a_latent(code: Any) -> None:
    latent = torch.randn(2, 16, 3, 4, 5)
    again = code.encode(code.decode(latent))
    assert torch.allclose(again[:, :, 1:], latent[:, :, 1:], atol=1e-3)


def test_decoding_fits_best(code: Any, batches: list[Tensor]) -> None:
    """No change of a latent brings the decoded frames after the first nearer to the clip."""
    video = batches[0][:1]
    latent = code.encode(video)
    best = (code.decode(latent) - video)[:, :, 1:].square().sum()
    for seed in range(3):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        other = (code.decode(latent + 0.01 * noise) - video)[:, :, 1:].square().sum()
        assert other > best


def test_scenes_survive_the_round_trip(
    tiny: SimpleNamespace, latents: ModuleType, code: Any, batches: list[Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "decoder.safetensors"
    tiny.latents.SmoothDecoder.fit(code, batches).save(path)
    smooth = tiny.latents.SmoothDecoder.load(path)
    plain, smoothed = [], []
    for batch in batches:
        latent = code.encode(batch)
        plain.append(psnr(batch, code.decode(latent)).mean())
        assert smooth.decode(latent).shape == batch.shape
        smoothed.append(psnr(batch, smooth.decode(latent)).mean())
    # Small pictures are all edges: at 192 x 320 scenes have some 24 to 33 dB.
    assert min(plain) > 17
    assert all(better > one for better, one in zip(smoothed, plain, strict=True))


def test_save_and_load(latents: ModuleType, code: Any, tmp_path: Path) -> None:
    path = tmp_path / "code.safetensors"
    code.save(path)
    assert path.stat().st_size < 60_000
    loaded = latents.LinearCode.load(path)
    for field in dataclasses.fields(code):
        assert torch.equal(getattr(loaded, field.name), getattr(code, field.name))


def test_load_refuses_another_file(latents: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, str(path))
    with pytest.raises(ValueError, match=r"holds \['weight'\], allowed is \['basis'"):
        latents.LinearCode.load(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 8, 16, 16), "frames is 8, allowed is 4 n"),
        ((1, 3, 5, 12, 16), "height is 12, allowed are multiples of 8"),
        ((1, 3, 5, 16, 20), "width is 20"),
        ((1, 3, 5, 16, 0), "width is 0"),
        ((1, 4, 5, 16, 16), "video has shape"),
        ((3, 5, 16, 16), "video has shape"),
    ],
)
def test_encode_errors(code: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        code.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 8, 2, 4, 4), (16, 2, 4, 4), (1, 16, 0, 4, 4)])
def test_decode_errors(code: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="latent has shape"):
        code.decode(torch.zeros(shape))


def test_code_errors(latents: ModuleType, code: Any) -> None:
    with pytest.raises(ValueError, match=r"mean has shape \(4,\), allowed is \(16,\)"):
        latents.LinearCode(code.basis, torch.zeros(4), code.std)
    with pytest.raises(ValueError, match="std has entries"):
        latents.LinearCode(code.basis, code.mean, torch.zeros(16))
    with pytest.raises(ValueError, match="clips is empty"):
        latents.LinearCode.fit([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        code.mean = code.std
