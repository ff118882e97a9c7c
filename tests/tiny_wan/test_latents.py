"""The geometry of latents, and the linear code that the autoencoder's training begins with."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def batches(footage: Any) -> list[Tensor]:
    """Three clips of every scene."""
    generator = torch.Generator().manual_seed(0)
    return [footage.draw(scene, 3, (9, 64, 96), generator) for scene in range(len(footage.names))]


@pytest.fixture(scope="module")
def code(tiny: SimpleNamespace, batches: list[Tensor]) -> Any:
    return tiny.latents.LinearCode.fit(batches)


def test_rows_are_orthonormal(code: Any) -> None:
    assert torch.allclose(code.basis @ code.basis.T, torch.eye(16), atol=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        code.mean = code.std


def test_numbers_have_unit_variance(
    tiny: SimpleNamespace, code: Any, batches: list[Tensor]
) -> None:
    patches = torch.cat([tiny.latents.to_patches(batch).flatten(0, 3) for batch in batches])
    numbers = (patches @ code.basis.T - code.mean) / code.std
    assert torch.allclose(numbers.mean(0), torch.zeros(16), atol=1e-3)
    # The last components have next to none.
    assert torch.allclose(numbers.std(0)[:4], torch.ones(4), atol=1e-3)


def test_fit_is_repeatable_and_takes_one_tensor(
    tiny: SimpleNamespace, code: Any, batches: list[Tensor]
) -> None:
    again = tiny.latents.LinearCode.fit(iter(batches))
    assert torch.equal(again.basis, code.basis)
    whole = tiny.latents.LinearCode.fit(torch.cat(batches))
    assert torch.allclose(whole.std, code.std, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="clips is empty"):
        tiny.latents.LinearCode.fit([])


@pytest.mark.parametrize("size", [(1, 8, 8), (5, 16, 40), (33, 8, 16)])
def test_patches_and_back(tiny: SimpleNamespace, size: tuple[int, int, int]) -> None:
    video = torch.rand(2, 3, *size) * 2 - 1
    patches = tiny.latents.to_patches(video)
    assert patches.shape == (2, (size[0] + 3) // 4, size[1] // 8, size[2] // 8, 768)
    assert patches.shape[1:4] == tiny.latents.latent_shape(*size)
    assert torch.allclose(tiny.latents.from_patches(patches), video)
    first = patches[:, 0].unflatten(-1, (3, 4, 64))
    assert torch.equal(first, first[..., :1, :].expand_as(first)), "the first frame four times"


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
def test_videos_without_latents(
    tiny: SimpleNamespace, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.latents.to_patches(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 8, 2, 4, 4), (16, 2, 4, 4), (1, 16, 0, 4, 4)])
def test_no_latents(tiny: SimpleNamespace, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="latent has shape"):
        tiny.latents.check_latent(torch.zeros(shape))
