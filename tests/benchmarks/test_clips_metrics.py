"""PSNR and SSIM against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rectified_spaattn.benchmarks.clips.picture_metrics import psnr, ssim
from rectified_spaattn.benchmarks.clips.report import mean_and_spread


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_clips() -> None:
    video = clip(2, 3, 2, 16, 16)
    assert psnr(video, video).tolist() == [math.inf, math.inf]
    assert ssim(video, video).tolist() == pytest.approx([1.0, 1.0])


def test_psnr_of_known_errors() -> None:
    video = clip(2, 3, 2, 12, 12) * 0.5
    sign = torch.where(clip(2, 3, 2, 12, 12, seed=1) > 0, 1.0, -1.0)
    scale = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)
    # An error of 0.2 in a range of 2 is a tenth of the range: 20 dB.
    assert psnr(video, video + scale * sign).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    noise = torch.randn((1, 3, 4, 64, 64), generator=torch.Generator().manual_seed(2))
    assert psnr(0 * noise, 0.1 * noise).item() == pytest.approx(10 * math.log10(4 / 0.01), abs=0.1)


def test_what_lies_outside_is_cut_off() -> None:
    white = torch.ones(1, 3, 1, 12, 12)
    assert psnr(white, 3 * white).item() == math.inf
    assert psnr(white, -5 * white).item() == 0.0
    assert ssim(white, 3 * white).item() == 1.0


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    first, second = torch.full((1, 3, 1, 11, 11), -0.5), torch.full((1, 3, 1, 11, 11), 0.5)
    # In [0, 1] they are 1/4 and 3/4.
    expected = (2 * 3 / 16 + 1e-4) / (1 / 16 + 9 / 16 + 1e-4)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_negative() -> None:
    # The window sees a chequerboard with mean 1/2 +- e and variance 1/4 - e^2, its negative with
    # the opposite e and the opposite covariance.
    weights = [math.exp(-0.5 * ((i - 5) / 1.5) ** 2) for i in range(11)]
    bias = sum(w * (-1) ** (i - 5) for i, w in enumerate(weights)) / sum(weights)
    e = bias**2 / 2
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(14), indexing="ij")
    board = (((rows + columns) % 2) * 2.0 - 1.0).expand(1, 3, 2, 12, 14)
    c1, c2, variance = 1e-4, 9e-4, 0.25 - e**2
    luminance = (2 * (0.25 - e**2) + c1) / (0.5 + 2 * e**2 + c1)
    expected = luminance * (c2 - 2 * variance) / (c2 + 2 * variance)
    assert ssim(board, -board).item() == pytest.approx(expected, abs=1e-5)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The formula of the paper, window by window, for one picture `[H, W]` in [0, 1]."""
    axis = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (each[top : top + 11, left : left + 11] for each in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            covariance = (window * (a - mean_a) * (b - mean_b)).sum()
            value = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
            values.append(value / (mean_a**2 + mean_b**2 + 1e-4) / (var_a + var_b + 9e-4))
    return float(np.mean(values))


def test_ssim_is_the_formula() -> None:
    first = clip(2, 3, 2, 15, 13)
    second = first + 0.5 * clip(2, 3, 2, 15, 13, seed=1)
    found = ssim(first, second).tolist()
    for index, value in enumerate(found):
        x, y = (((each[index].clamp(-1, 1) + 1) / 2).double().numpy() for each in (first, second))
        expected = [naive_ssim(x[c, f], y[c, f]) for c in range(3) for f in range(2)]
        assert value == pytest.approx(np.mean(expected), abs=1e-5)
        assert 0.5 < value < 0.95


def test_shapes_are_checked() -> None:
    video = torch.zeros(1, 3, 1, 12, 12)
    for wrong in (video[0], video[:, :1], video[..., :11]):
        with pytest.raises(ValueError, match="clips have shapes"):
            psnr(video, wrong)
    with pytest.raises(ValueError, match="height and width are 12, 8, allowed are 11 or more"):
        ssim(video[..., :8], video[..., :8])


def test_spread() -> None:
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, spread = mean_and_spread([5.0])
    assert mean == 5.0
    assert math.isnan(spread)
